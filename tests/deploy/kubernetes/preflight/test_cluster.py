"""A preflight of a cluster: what is asked of kubectl, and what is made of the answers.

There is no cluster here, so a program named kubectl answers, with objects of the shape of the Kubernetes API and the
error texts of the real kubectl. That shows the asking and the parsing; what a real cluster says is not shown.
"""

import copy
import json
import sys
from datetime import UTC, datetime

import pytest
from click.testing import CliRunner

from tests.deploy.kubernetes.conftest import OWN_ETCD, render
from understudy.deploy.cli.main import cli
from understudy.deploy.kubernetes.preflight.cluster import KubectlAnswers, judge_cluster, resource_of
from understudy.deploy.kubernetes.preflight.findings import Level
from understudy.deploy.kubernetes.preflight.load_manifests import load

NOW = datetime(2026, 11, 21, tzinfo=UTC)
KUBECTL = """#!{python} -IS
import json, sys
answers = json.load(open({answers!r}))
words = [word for word in sys.argv[1:] if word not in ("--output", "json")]
if words[:1] == ["--context"]:
    words = words[2:]
assert words[:1] == ["--request-timeout"], words
words = " ".join(words[2:])
if words.startswith("auth can-i create"):
    allowed = words.split()[3] not in answers["denied"]
    print("yes" if allowed else "no")
    sys.exit(0 if allowed else 1)
for start, answer in answers["told"].items():
    if words.startswith(start):
        if isinstance(answer, str):
            sys.exit(answer)
        print(json.dumps(answer))
        break
else:
    print(json.dumps({{"apiVersion": "v1", "kind": "List", "items": []}}))
"""
ZONE = {"topology.kubernetes.io/zone": "east-1"}


def node(name, labels=None, taints=()):
    return {"metadata": {"name": name, "labels": ZONE if labels is None else labels}, "spec": {"taints": list(taints)}}


def items(*objects):
    return {"kind": "List", "items": list(objects)}


def named(name, **labels):
    return {"metadata": {"name": name, "labels": labels}}


TOLD = {
    "version": {"clientVersion": {"gitVersion": "v1.32.4"}, "serverVersion": {"gitVersion": "v1.35.2+k3s1"}},
    "get nodes": items(
        *(node(f"node-{number}") for number in range(3)),
        node("control-plane", taints=[{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]),
    ),
    "get namespaces": items(named("kube-system", **{"kubernetes.io/metadata.name": "kube-system"})),
    "get customresourcedefinitions": items(
        *(named(f"{kind}.monitoring.coreos.com") for kind in ("servicemonitors", "podmonitors", "prometheusrules"))
    ),
    "get daemonsets": items(named("cilium")),
}


@pytest.fixture
def kubectl(tmp_path, monkeypatch):
    """Put a kubectl on the PATH; call with what it tells and what it denies."""

    def install(told, denied=()):
        (tmp_path / "answers.json").write_text(json.dumps({"told": told, "denied": list(denied)}))
        program = tmp_path / "bin" / "kubectl"
        program.parent.mkdir(exist_ok=True)
        program.write_text(KUBECTL.format(python=sys.executable, answers=str(tmp_path / "answers.json")))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent))

    return install


@pytest.fixture(scope="module")
def production(tmp_path_factory):
    result, out = render(tmp_path_factory.mktemp("cluster"), *OWN_ETCD, "--etcd-tls-secret", "etcd-client")
    assert result.exit_code == 0, result.output
    return out / "overlays" / "production"


def preflight(*arguments):
    result = CliRunner(env={"UNDERSTUDY_ETCD": None}).invoke(cli, ["verify", "--preflight", "-o", "json", *arguments])
    found = [one for one in json.loads(result.output)["findings"] if one["area"] == "cluster"]
    return result.exit_code, {(one["level"], one["what"]): one["detail"] for one in found}


def test_a_cluster_that_has_everything_is_ready(kubectl, production):
    kubectl(TOLD)

    code, found = preflight("--manifests", str(production))

    assert code == 0
    assert {level for level, _ in found} == {"ok", "skipped"}
    assert found["skipped", "the webhook can be reached"] == "it is not installed yet"


def test_rights_that_lack_are_named(kubectl, production):
    kubectl(TOLD, denied=["networkpolicies.networking.k8s.io"])

    code, found = preflight("--manifests", str(production), "--context", "shop")

    assert code == 1
    assert found["fail", "you may create all objects of the manifests"] == (
        "you may not create networkpolicies.networking.k8s.io"
    )


def test_what_kubectl_may_not_see_is_said_and_not_judged(kubectl, production):
    denial = "Error from server (Forbidden): nodes is forbidden: User cannot list resource"
    kubectl({**TOLD, "get nodes": denial, "get customresourcedefinitions": denial})

    code, found = preflight("--manifests", str(production))

    assert code == 0
    assert "Forbidden" in found["warn", "kubectl may read everything"]


@pytest.mark.parametrize(
    "told", [{}, {"version": "The connection to the server localhost:8080 was refused"}], ids=["no server", "refused"]
)
def test_without_a_cluster_it_goes_on_without_one(kubectl, told):
    kubectl(told)

    code, found = preflight()

    assert code == 0
    assert "reaches no cluster" in found["skipped", "cluster"]


def test_without_kubectl_too(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    code, found = preflight()

    assert (code, found) == (0, {("skipped", "cluster"): "kubectl is not on the PATH"})


def cluster(**changes):
    good = {
        "version": "v1.35.2",
        "nodes": TOLD["get nodes"]["items"],
        "namespaces": TOLD["get namespaces"]["items"],
        "daemon_sets": TOLD["get daemonsets"]["items"],
    }
    return KubectlAnswers(**{**good, **changes})


def told(found, level):
    return {one.what: one.detail for one in judge_cluster(found, [], NOW) if one.level is level}


def test_old_clusters_are_told_what_they_lack():
    assert "it is v1.24.17" in told(cluster(version="v1.24.17"), Level.FAIL).values()
    assert set(told(cluster(version="v1.28.1"), Level.WARN)) == {
        "sidecars can be native (1.29)",
        "pods can read their zone (1.35)",
    }


def test_nodes_without_zones_and_too_few_of_them_are_told(production):
    bare = cluster(nodes=[node("a", labels={}), node("b", labels={})])

    findings = judge_cluster(bare, load(production), NOW)

    details = [one.detail for one in findings if one.level in (Level.FAIL, Level.WARN)]
    assert "Deployment understudy/control-cart needs 3 nodes, but only 2 accept pods" in details
    assert any(detail.startswith("2 node(s) have no label") for detail in details)


def test_a_namespace_of_the_cluster_that_does_not_take_part_is_told(production):
    objects = [one for one in load(production) if (one["kind"], one["metadata"]["name"]) != ("Namespace", "cart")]
    silent, open_to_it = named("cart"), named("cart", **{"understudy.io/injection": "enabled"})

    def details(*namespaces):
        return [
            one.detail for one in judge_cluster(cluster(namespaces=namespaces), objects, NOW) if one.level is Level.FAIL
        ]

    assert any("neither in the cluster nor" in detail for detail in details())
    assert any("has no label understudy.io/injection" in detail for detail in details(silent))
    assert not any("namespace cart" in detail for detail in details(open_to_it))


def test_a_network_that_may_not_enforce_policies_is_told():
    assert "unencrypted ports" in told(cluster(daemon_sets=[named("kube-flannel-ds")]), Level.WARN).popitem()[1]


def test_a_driver_that_would_mount_the_certificates_is_missed(tmp_path):
    result, out = render(tmp_path, "--certificates", "csi:understudy:ClusterIssuer")
    assert result.exit_code == 0, result.output
    objects = load(out / "overlays" / "trial")

    def missed(drivers):
        found = judge_cluster(cluster(drivers=drivers), objects, NOW)
        return [one.detail for one in found if one.what == "the CSI drivers are installed" and one.detail]

    assert missed(frozenset({"ebs.csi.aws.com"})) == ["CSI driver csi.cert-manager.io is not installed"]
    assert missed(frozenset({"csi.cert-manager.io"})) == []
    assert missed(None) == [], "nobody could look"


def istiod(tag):
    container = {"name": "discovery", "image": f"docker.io/istio/pilot:{tag}"}
    template = {"metadata": {"labels": {"app": "istiod"}}, "spec": {"containers": [container]}}
    return {
        "kind": "Deployment",
        "metadata": {"name": "istiod", "namespace": "istio-system"},
        "spec": {"template": template},
    }


def test_a_mesh_that_cannot_route_by_slots_is_told():
    assert "istiod is 1.24.2-distroless" in told(cluster(istiods=[istiod("1.24.2-distroless")]), Level.WARN).values()
    assert not any("Istio" in what for what in told(cluster(istiods=[istiod("1.30.0")]), Level.WARN))


WEBHOOK = {
    "kind": "MutatingWebhookConfiguration",
    "metadata": {"name": "understudy-injector"},
    "webhooks": [
        {"name": "inject.understudy.io", "clientConfig": {}, "namespaceSelector": {"matchLabels": {"x": "y"}}}
    ],
}


def test_a_webhook_that_cannot_work_is_told():
    found = told(cluster(webhooks=[WEBHOOK]), Level.FAIL)

    assert found["the webhook's certificate is trusted"] == "inject.understudy.io has no caBundle"
    assert found["the webhook can be reached"].startswith("no injector is ready")


def test_a_webhook_in_the_systems_namespaces_is_told():
    hook = copy.deepcopy(WEBHOOK)
    hook["webhooks"][0]["namespaceSelector"] = {}

    assert told(cluster(webhooks=[hook]), Level.FAIL)["the webhook ignores system namespaces"] == "kube-system"


def test_an_injector_that_is_ready_is_found():
    pieces = [{"endpoints": [{"addresses": ["10.0.0.9"], "conditions": {"ready": True}}]}]

    assert "the webhook can be reached" not in told(cluster(webhooks=[WEBHOOK], slices=pieces), Level.FAIL)


def test_kinds_are_named_as_kubectl_names_them(production):
    assert {
        "namespaces",
        "services",
        "serviceaccounts",
        "configmaps",
        "deployments.apps",
        "jobs.batch",
        "poddisruptionbudgets.policy",
        "networkpolicies.networking.k8s.io",
        "prometheusrules.monitoring.coreos.com",
    } <= {resource_of(one) for one in load(production)}
