"""Every object is what Kubernetes' own schemas, and those of the Prometheus operator, ask for."""

import re

import kubernetes_validate
import pytest

from understudy.deploy.kubernetes.preflight.load_manifests import load

VERSIONS = ("1.25", kubernetes_validate.latest_version())
"""The oldest and the newest Kubernetes whose schemas the package brings."""
DURATION = re.compile(r"^(0|(\d+y)?(\d+w)?(\d+d)?(\d+h)?(\d+m)?(\d+s)?(\d+ms)?)$")
ENDPOINT = {"port", "path", "interval", "scheme", "scrapeTimeout", "params", "relabelings"}
RULE = {"alert", "record", "expr", "for", "keep_firing_for", "labels", "annotations"}


@pytest.fixture(scope="module", params=["overlays/trial", "overlays/production", "components/closed-application"])
def everything(request, rendered):
    return load(rendered / request.param)


def ours(objects):
    return [one for one in objects if not one["apiVersion"].startswith("monitoring.coreos.com/")]


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_knows_every_field(everything, version):
    for body in ours(everything):
        kubernetes_validate.validate(body, version, strict=True)


def test_a_wrong_field_would_be_noticed(everything):
    body = ours(everything)[0]

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**body, "spce": {}}, VERSIONS[0], strict=True)


def check_labels(labels):
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in labels.items())


def check_monitor(spec, endpoints):
    assert set(spec) == {"selector", endpoints}
    check_labels(spec["selector"]["matchLabels"])
    for endpoint in spec[endpoints]:
        assert set(endpoint) <= ENDPOINT
        assert isinstance(endpoint["port"], str)
        assert DURATION.match(endpoint["interval"])


def check_rules(spec):
    assert set(spec) == {"groups"}
    names = [group["name"] for group in spec["groups"]]
    assert all(names)
    assert len(set(names)) == len(names), "groups are told apart by name"
    for group in spec["groups"]:
        assert set(group) <= {"name", "interval", "rules", "limit", "labels"}
        for rule in group["rules"]:
            assert set(rule) <= RULE
            assert ("alert" in rule) != ("record" in rule), "one of alert and record"
            assert isinstance(rule["expr"], str | int)
            assert DURATION.match(rule.get("for", "0"))
            check_labels(rule.get("labels", {}))
            check_labels(rule.get("annotations", {}))


def test_the_prometheus_operator_knows_every_field(rendered):
    checks = {
        "ServiceMonitor": lambda spec: check_monitor(spec, "endpoints"),
        "PodMonitor": lambda spec: check_monitor(spec, "podMetricsEndpoints"),
        "PrometheusRule": check_rules,
    }
    found = load(rendered / "overlays" / "production")
    theirs = [one for one in found if one["apiVersion"] == "monitoring.coreos.com/v1"]

    assert {one["kind"] for one in theirs} == set(checks)
    for body in theirs:
        checks[body["kind"]](body["spec"])
