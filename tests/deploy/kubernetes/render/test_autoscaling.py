"""Autoscalers that follow ``understudy_wanted_members``, one object for each pool."""

import kubernetes_validate
import pytest

from tests.deploy.kubernetes.conftest import OWN_ETCD, SPEC, find, render
from understudy.deploy.kubernetes.preflight.load_manifests import load
from understudy.deploy.kubernetes.render.monitoring import rules

PRODUCTION = (*OWN_ETCD, "--etcd-tls-secret", "etcd")


def made(directory, *arguments, spec=SPEC):
    rendered, out = render(directory, *PRODUCTION, *arguments, spec=spec)
    assert rendered.exit_code == 0, rendered.output
    return load(out / "overlays" / "production")


def test_the_horizontal_autoscaler_follows_the_metric_and_lets_one_go_at_a_time(tmp_path):
    scaler = find(made(tmp_path, "--autoscale", "hpa"), "HorizontalPodAutoscaler", "members-cart")

    kubernetes_validate.validate(scaler, "1.25", strict=True)
    spec = scaler["spec"]
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "cart"}
    assert (spec["minReplicas"], spec["maxReplicas"]) == (3, 10), "no fewer than a slot has copies"
    (metric,) = spec["metrics"]
    assert metric["external"]["metric"] == {
        "name": "understudy_wanted_members",
        "selector": {"matchLabels": {"pool": "cart"}},
    }
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "1"}
    (policy,) = spec["behavior"]["scaleDown"]["policies"]
    assert (policy["type"], policy["value"]) == ("Pods", 1)
    assert policy["periodSeconds"] > 60, "longer than a member of the example may take to end"


def test_keda_scales_nothing_while_prometheus_has_no_value(tmp_path):
    wanted = ("--autoscale", "keda", "--autoscale-max", "5", "--autoscale-target", "cart=Deployment/web")
    scaled = find(made(tmp_path, *wanted, spec=SPEC + "copies: 2\n"), "ScaledObject", "members-cart")["spec"]

    assert scaled["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (2, 5)
    (trigger,) = scaled["triggers"]
    assert trigger["metadata"] == {
        "serverAddress": "http://prometheus-operated.monitoring.svc:9090",
        "query": 'max(understudy:wanted_members{pool="cart"})',
        "threshold": "1",
        "ignoreNullValues": "false",
    }
    recorded = {one.get("record") for group in rules()["groups"] for one in group["rules"]}
    assert "understudy:wanted_members" in recorded


def test_without_the_option_nothing_is_scaled(rendered):
    objects = load(rendered / "overlays" / "production")
    assert not [one for one in objects if one["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--autoscale-max", "2"), "less than the 3 copies of pool 'cart'"),
        (("--autoscale-target", "DaemonSet/cart"), "StatefulSet/NAME or Deployment/NAME"),
        (("--autoscale-target", "shop=Deployment/cart"), "no -f has pool 'shop'"),
    ],
)
def test_what_cannot_be_scaled_is_refused_by_name(tmp_path, arguments, complaint):
    refused, _ = render(tmp_path, "--autoscale", "hpa", *arguments)

    assert refused.exit_code == 2
    assert complaint in refused.output
