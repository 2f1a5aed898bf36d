"""The Helm chart: made from the renderer, equal to what it renders, and careful about its values."""

import re
from collections.abc import Mapping

import kubernetes_validate
import pytest
import yaml
from helm_python.chart import Chart, lint
from helm_python.errors import HelmError

from tests.deploy.kubernetes.chart.helm import CHART, helm_template
from tests.deploy.kubernetes.conftest import find
from tests.deploy.kubernetes.hardening import habit_faults, standard_faults
from tests.deploy.kubernetes.references import faults
from understudy.deploy.kubernetes.chart.generate import chart_files
from understudy.deploy.kubernetes.preflight.load_manifests import load
from understudy.deploy.kubernetes.preflight.manifest_index import where
from understudy.deploy.kubernetes.render.kustomize import files, write
from understudy.deploy.kubernetes.render.plan import (
    Autoscale,
    Images,
    Plan,
    Pool,
    choose_images,
    parse_certificates,
    parse_etcd,
    parse_mirror,
)
from understudy.statesync.pool.spec_reader import parse_spec

CART = {"pool": "cart", "front": {"port": 8080, "hosts": ["shop.example"]}, "session_key": [{"header": "x-cart"}]}
TLS = {"cert": "/etc/understudy-front/desk/tls.crt", "key": "/etc/understudy-front/desk/tls.key"}
DESK = {"pool": "desk", "front": {"port": 443, "hosts": ["desk.example"], "tls": TLS}}
LEDGER = {"pool": "ledger", "protocol": "tcp", "front": {"port": 5432}}
ENDPOINTS = ["https://etcd-0.etcd.data.svc:2379", "https://10.9.8.7:2379", "https://etcd.example.org:12379"]
ENDPOINTS += ["https://[fd00::1]:2379", "https://etcd.data.svc"]
TRIAL = {"trial": True}
REGISTRY = "registry.example/shop"


def pool(spec, namespace="", port=8080, target=""):
    return Pool(parse_spec(yaml.safe_dump(spec), where="test"), namespace, port, target)


def plan(*pools, **more):
    return Plan(pools, choose_images(REGISTRY, "1.2.3"), shared=True, **more)


OWN = parse_etcd(",".join(ENDPOINTS), "etcd-client")
CASES = {
    "a trial": (
        {"etcd": TRIAL, "pools": [{"spec": CART}], "example": {"enabled": True}},
        plan(pool(CART)),
        "overlays/trial",
    ),
    "a trial with certificates and pools of two kinds": (
        {
            "etcd": TRIAL,
            "pools": [{"spec": CART}, {"spec": LEDGER, "appPort": 9000}],
            "example": {"enabled": True, "members": 5},
            "certificates": {"issuer": "us", "kind": "ClusterIssuer"},
            "front": {"service": {"type": "LoadBalancer"}, "drain": "sleep"},
        },
        plan(
            pool(CART),
            pool(LEDGER, port=9000),
            certificates=parse_certificates("csi:us:ClusterIssuer"),
            example_members=5,
            front_service="LoadBalancer",
            front_drain="sleep",
        ),
        "overlays/trial",
    ),
    "production with three pools": (
        {
            "etcd": {"endpoints": ENDPOINTS, "tlsSecret": "etcd-client"},
            "pools": [
                {"spec": CART, "namespace": "shop", "workload": {"kind": "Deployment", "name": "web"}},
                {"spec": DESK, "appPort": 9000, "namespace": "shop"},
                {"spec": LEDGER},
            ],
            "control": {"replicas": 5, "rightsSecret": "rights"},
            "front": {"replicas": 4, "tlsSecrets": ["desk"]},
            "mirror": {"site": "east", "peer": "west", "peerEndpoints": ENDPOINTS, "peerTlsSecret": "west"},
            "monitoring": {"enabled": True, "namespace": "prom", "runbookBase": "https://docs.example/operations/"},
            "clusterDomain": "k8s.example",
            "autoscaling": {"enabled": True, "form": "keda", "max": 7},
        },
        plan(
            pool(CART, "shop", target="Deployment/web"),
            pool(DESK, "shop", 9000),
            pool(LEDGER),
            etcd=OWN,
            replicas=5,
            front_replicas=4,
            front_tls_secrets=("desk",),
            rights_secret="rights",
            monitoring_namespace="prom",
            runbook_base="https://docs.example/operations/",
            cluster_domain="k8s.example",
            autoscale=Autoscale("keda", 7, "http://prometheus-operated.prom.svc:9090"),
            mirror=parse_mirror("east", f"west={','.join(ENDPOINTS)}", "west"),
        ),
        "overlays/production",
    ),
    "production with a password and certificates": (
        {
            "etcd": {"endpoints": ENDPOINTS, "tlsSecret": "ca", "loginSecret": "login"},
            "pools": [{"spec": CART}],
            "certificates": {"issuer": "us"},
            "control": {"rightsSecret": "who-may"},
            "monitoring": {"enabled": True},
        },
        plan(
            pool(CART),
            etcd=parse_etcd(",".join(ENDPOINTS), "ca", "login"),
            certificates=parse_certificates("csi:us"),
            rights_secret="who-may",
        ),
        "overlays/production",
    ),
    "production in plain text with a password": (
        {
            "etcd": {"endpoints": ["etcd.data.svc:2379"], "loginSecret": "login"},
            "pools": [{"spec": {**CART, "copies": 2}}],
            "mirror": {"site": "west", "peer": "east", "peerEndpoints": ["etcd.east.example"]},
            "autoscaling": {"enabled": True},
            "monitoring": {"enabled": True},
        },
        plan(
            pool({**CART, "copies": 2}),
            etcd=parse_etcd("etcd.data.svc:2379", "", "login"),
            autoscale=Autoscale("hpa"),
            mirror=parse_mirror("west", "east=etcd.east.example"),
        ),
        "overlays/production",
    ),
}
EXTENSIONS = ("monitoring.coreos.com/", "keda.sh/")
"""Kinds that the Prometheus operator and KEDA bring: Kubernetes has no schema of them."""
COMMON = {"registry": REGISTRY, "version": "1.2.3", "createNamespaces": True}


@pytest.mark.parametrize("case", CASES)
def test_the_chart_makes_what_the_renderer_makes(case, tmp_path):
    values, wanted, overlay = CASES[case]
    write(files(wanted), tmp_path)

    made = by_place(helm_template({**COMMON, **values}))

    rendered = by_place(load(tmp_path / overlay))
    del rendered["Namespace understudy"]  # Helm makes it: --create-namespace
    assert made.keys() == rendered.keys()
    for place, body in rendered.items():
        assert made[place] == body, place


@pytest.mark.parametrize("case", ["the least values", *CASES])
def test_kubernetes_knows_every_field_that_the_chart_makes(case):
    values = CASES[case][0] if case in CASES else {"etcd": TRIAL}
    oldest = "1.30" if values.get("front", {}).get("drain") == "sleep" else "1.25"
    checked = [one for one in helm_template({**COMMON, **values}) if not one["apiVersion"].startswith(EXTENSIONS)]
    assert len(checked) > 20
    for body in checked:
        for version in (oldest, kubernetes_validate.latest_version()):
            kubernetes_validate.validate(body, version, strict=True)


def test_rights_reach_control_servers_whole_and_others_as_a_token_alone():
    values, _, _ = CASES["production with three pools"]
    made = helm_template({**COMMON, **values})
    for name, keys in {"control": None, "operator": [{"key": "token", "path": "token"}]}.items():
        pod = find(made, "Deployment", name)["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        variables = {one["name"]: one.get("value") for one in container["env"]}
        (volume,) = [one for one in pod["volumes"] if one["name"] == "rights"]
        assert (volume["secret"]["secretName"], volume["secret"].get("items")) == ("rights", keys)
        assert {"name": "rights", "mountPath": "/etc/understudy-rights", "readOnly": True} in container["volumeMounts"]
        assert variables["UNDERSTUDY_CONTROL_TOKEN_FILE"] == "/etc/understudy-rights/token"
        assert variables.get("UNDERSTUDY_RIGHTS") == ("/etc/understudy-rights/rights.yaml" if not keys else None)
    endpoints = find(made, "ServiceMonitor", "control")["spec"]["endpoints"]
    assert len(endpoints) == 4
    assert all(one["authorization"]["credentials"] == {"name": "rights", "key": "token"} for one in endpoints)


def by_place(objects):
    return {without_digests(where(one)): plain(one) for one in objects}


def without_digests(text):
    return re.sub(r"\b((?:spec|front)(?:-[a-z]+)?)-[0-9a-f]{8}\b", r"\1-DIGEST", text)


def plain(value, key=""):
    """An object without what may differ: digests, Helm's labels, defaults of specs, and the order of lists of sets."""
    if isinstance(value, Mapping):
        made = {name: plain(one, name) for name, one in value.items()}
        return {k: v for k, v in made.items() if k not in ("helm.sh/chart", "app.kubernetes.io/managed-by")}
    if isinstance(value, list):
        made = [plain(one) for one in value]
        return sorted(made, key=str) if key in ("values", "env", "volumes", "volumeMounts") else made
    if key == "pool.yaml":
        return parse_spec(value, where="pool.yaml")
    return without_digests(value) if isinstance(value, str) else value


def test_the_committed_chart_is_the_generated_one():
    made = chart_files()
    for name, text in made.items():
        assert (CHART / name).read_text() == text, f"{name}: run make chart"
    generated = {CHART / name for name in made}
    by_hand = {CHART / "templates/_helpers.tpl", CHART / "templates/NOTES.txt"}
    assert set((CHART / "templates").iterdir()) | set((CHART / "files").iterdir()) == by_hand | {
        one for one in generated if one.parent != CHART
    }


def test_its_version_and_its_images_are_ours():
    import understudy

    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    images = yaml.safe_load((CHART / "values.yaml").read_text())["images"]

    assert (about["version"], about["appVersion"]) == (understudy.__version__, understudy.__version__)
    defaults = Images("c:1", "s:1", "i:1")
    assert (images["envoy"], images["etcd"]) == (defaults.envoy, defaults.etcd)


def test_helm_lint_has_nothing_to_say():
    messages = lint(CHART)["messages"]

    assert [one for one in messages if "icon is recommended" not in str(one)] == []


def test_labels_and_places_of_pods_are_taken_over():
    values = {
        **COMMON,
        "etcd": TRIAL,
        "commonLabels": {"team": "shop"},
        "podAnnotations": {"note": "x"},
        "imagePullSecrets": [{"name": "pull"}],
        "podDisruptionBudgets": False,
        "injector": {"enabled": False},
        "control": {
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "infra", "operator": "Exists"}],
            "priorityClassName": "high",
            "resources": {"limits": {"memory": "2Gi"}},
        },
        "front": {"service": {"annotations": {"lb": "internal"}}},
    }
    made = helm_template(values)

    assert {one["metadata"]["labels"]["team"] for one in made} == {"shop"}
    assert not [one for one in made if one["kind"] in ("PodDisruptionBudget", "MutatingWebhookConfiguration")]
    template = find(made, "Deployment", "control")["spec"]["template"]
    assert (template["metadata"]["labels"]["team"], template["metadata"]["annotations"]) == ("shop", {"note": "x"})
    pod = template["spec"]
    assert (pod["nodeSelector"], pod["priorityClassName"]) == ({"disk": "ssd"}, "high")
    assert (pod["tolerations"], pod["imagePullSecrets"]) == (values["control"]["tolerations"], [{"name": "pull"}])
    assert pod["containers"][0]["resources"]["limits"]["memory"] == "2Gi"
    assert find(made, "Service", "front")["metadata"]["annotations"] == {"lb": "internal"}
    for one in made:
        kubernetes_validate.validate(one, "1.25", strict=True)


def test_what_the_chart_makes_fits_together_and_is_as_careful_as_the_manifests():
    values, _, _ = CASES["a trial with certificates and pools of two kinds"]
    made = helm_template({**COMMON, **values})

    assert faults(made) == []
    assert standard_faults(made) == []
    assert habit_faults(made) == []
    for one in made:
        kubernetes_validate.validate(one, "1.30", strict=True)


def test_a_job_has_another_name_when_anything_in_it_changes():
    def name(**more):
        made = helm_template({**COMMON, "etcd": TRIAL, **more})
        return next(one["metadata"]["name"] for one in made if one["kind"] == "Job")

    first = name(control={"replicas": 1})
    assert name(control={"replicas": 5}) == first
    assert len({first, name(version="2"), name(commonLabels={"a": "b"})}) == 3


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"contorl": {}}, "contorl"),
        ({"control": {"replicas": 0}}, "/control/replicas"),
        ({"control": {"replica": 1}}, "replica"),
        ({"front": {"service": {"type": "Ingress"}}}, "/front/service/type"),
        ({"etcd": {"endpoints": ["https://etcd:2379"]}}, "/etcd/endpoints"),
        ({"etcd": {"trial": True, "endpoints": ["etcd:2379"]}}, "/etcd/endpoints"),
        ({"images": {"envoy": "envoyproxy/envoy:latest"}}, "/images/envoy"),
        ({"mirror": {"site": "east", "peer": "west", "peerEndpoints": []}}, "/mirror/peerEndpoints"),
        ({"mirror": {"site": "east", "peer": "west", "peerEndpoints": ["https://etcd"]}}, "/mirror/peerEndpoints"),
        ({"pools": []}, "/pools"),
        ({"pools": [{"spec": {"pool": "shop.cart", "front": {"port": 1}}}]}, "/pools/0/spec/pool"),
        ({"pools": [{"spec": {"pool": "cart"}}]}, "front"),
        ({"pools": [{"spec": {"pool": "cart", "front": {"port": 9901}}}]}, "/pools/0/spec/front/port"),
        ({"pools": [{"spec": {**CART, "copies": 99}}]}, "/pools/0/spec/copies"),
        ({"pools": [{"spec": {**CART, "copys": 2}}]}, "copys"),
        ({"pools": [{"spec": CART, "appPort": 0}]}, "/pools/0/appPort"),
    ],
)
def test_wrong_values_are_refused_by_name(values, complaint):
    with Chart.load(CHART) as chart, pytest.raises(HelmError) as refused:
        chart.validate_schema({**COMMON, **values})

    assert complaint in str(refused.value)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"etcd": {"trial": True}}, "registry: name the registry"),
        ({"registry": REGISTRY}, "etcd.endpoints: name your etcd, or set etcd.trial=true"),
    ],
)
def test_what_has_no_default_is_asked_for_by_name(values, complaint):
    with pytest.raises(HelmError) as refused:
        helm_template(values)

    assert complaint in str(refused.value)
