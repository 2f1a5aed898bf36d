"""A preflight of manifests alone: what is rendered is ready, and each thing that would go wrong later is told now."""

import base64
import copy
import json
from datetime import UTC, datetime

import pytest
import yaml
from click.testing import CliRunner

from tests.deploy.kubernetes.conftest import OWN_ETCD, find, render
from tests.harness.certificates import Authority
from understudy.deploy.cli.main import cli
from understudy.deploy.kubernetes.preflight.findings import Level
from understudy.deploy.kubernetes.preflight.load_manifests import load
from understudy.deploy.kubernetes.preflight.manifest_index import workloads
from understudy.deploy.kubernetes.preflight.manifests import judge_manifests, replicas_apart

NOW = datetime(2026, 11, 21, tzinfo=UTC)


def preflight(path, *more):
    arguments = ["verify", "--preflight", "--no-cluster", "--manifests", str(path), "-o", "json", *more]
    return CliRunner(env={"UNDERSTUDY_ETCD": None}).invoke(cli, arguments)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    directory = tmp_path_factory.mktemp("preflight")
    result, out = render(directory, *OWN_ETCD, "--etcd-tls-secret", "etcd-client")
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def trial(tree):
    return load(tree / "overlays" / "trial")


@pytest.mark.parametrize("overlay", ["trial", "production"])
def test_what_is_rendered_is_ready(tree, overlay):
    result = preflight(tree / "overlays" / overlay)

    told = json.loads(result.output)
    assert (result.exit_code, told["fine"], told["count"]["fail"]) == (0, True, 0), result.output
    skipped = {one["area"] for one in told["findings"] if one["level"] == "skipped"}
    assert skipped == {"etcd", "cluster"}
    secrets = [
        one["detail"] for one in told["findings"] if one["what"] == "required Secrets exist" and one["level"] == "warn"
    ]
    assert secrets == (["understudy/etcd-client is not among the manifests"] if overlay == "production" else [])


def container(objects, kind, name):
    return find(objects, kind, name)["spec"]["template"]["spec"]["containers"][0]


def old_etcd(objects):
    container(objects, "StatefulSet", "etcd")["image"] = "gcr.io/etcd-development/etcd:v3.5.1"


def forgetful_etcd(objects):
    arguments = container(objects, "StatefulSet", "etcd")["args"]
    arguments[:] = [one for one in arguments if "compaction" not in one]


def closed_members(objects):
    find(objects, "NetworkPolicy", "members-cart")["spec"]["ingress"].pop()


def without_policies(objects):
    objects[:] = [one for one in objects if one["kind"] != "NetworkPolicy"]


def unlabelled(objects):
    find(objects, "Namespace", "cart")["metadata"]["labels"].clear()


def broken_spec(objects):
    config = next(one for one in objects if "pool.yaml" in one.get("data", {}))
    config["data"]["pool.yaml"] = "pool: cart\nslotz: 3\n"


def too_few_members(objects):
    find(objects, "StatefulSet", "cart")["spec"]["replicas"] = 2


def old_envoy(objects):
    container(objects, "Deployment", "front-cart")["image"] = "docker.io/envoyproxy/envoy:v1.31.0"


def lonely_control(objects):
    find(objects, "Deployment", "control-cart")["spec"]["replicas"] = 1


BREAKAGES = [
    (old_etcd, Level.FAIL, "etcd 3.5.1"),
    (forgetful_etcd, Level.FAIL, "--auto-compaction-retention is not given"),
    (closed_members, Level.FAIL, "member cannot reach member at port 7601"),
    (without_policies, Level.FAIL, "any pod can reach port 18000, which is not encrypted"),
    (unlabelled, Level.FAIL, "namespace cart has no label understudy.io/injection"),
    (broken_spec, Level.FAIL, "slotz"),
    (too_few_members, Level.WARN, "needs 3 members for the copies of each slot, but has 2"),
    (old_envoy, Level.FAIL, "does not match cookies"),
    (lonely_control, Level.WARN, "has one replica"),
]


@pytest.mark.parametrize(("breakage", "level", "told"), BREAKAGES, ids=lambda one: getattr(one, "__name__", ""))
def test_what_would_go_wrong_is_told(trial, breakage, level, told):
    objects = copy.deepcopy(trial)
    breakage(objects)

    assert [one for one in judge_manifests(objects, NOW) if one.level is level and told in one.detail]


def webhook(**hook):
    service = {"name": "understudy-injector", "namespace": "understudy", "port": 443}
    told = {"name": "inject.understudy.io", "clientConfig": {"service": service}, "sideEffects": "None", **hook}
    selector = {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": EXCLUDED}]}
    base = {"timeoutSeconds": 5, "namespaceSelector": selector}
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "understudy-injector"},
        "webhooks": [{**base, **told}],
    }


EXCLUDED = ["kube-system", "understudy"]


def told_of(*objects, now=None):
    return [one.detail for one in judge_manifests(list(objects), now or NOW) if one.level is Level.FAIL]


def bundle(authority):
    return base64.b64encode(authority.ca.read_bytes()).decode()


def with_bundle(text):
    hook = webhook()
    hook["webhooks"][0]["clientConfig"]["caBundle"] = text
    return hook


def secret(identity):
    data = {"tls.crt": base64.b64encode(identity.cert.read_bytes()).decode()}
    meta = {"name": "understudy-injector-certificates", "namespace": "understudy"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data}


def test_a_webhook_that_nobody_will_trust_is_told(tmp_path):
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    good = secret(ours.issue("injector", "DNS:understudy-injector.understudy.svc"))
    now = datetime.now(UTC)

    assert any("nothing would fill it in" in one for one in told_of(webhook()))
    assert any("not base64" in one for one in told_of(with_bundle("%%%")))
    assert not any("signed" in one for one in told_of(with_bundle(bundle(ours)), good, now=now))
    assert any("not signed by a CA" in one for one in told_of(with_bundle(bundle(theirs)), good, now=now))
    later = datetime(2099, 1, 1, tzinfo=UTC)
    assert any("expired" in one for one in told_of(with_bundle(bundle(ours)), good, now=later))


def test_a_webhook_in_its_own_way_is_told():
    everywhere = told_of(webhook(namespaceSelector={}))

    assert any("pods of understudy" in one for one in everywhere)
    assert any("pods of kube-system" in one for one in everywhere)
    assert any("timeoutSeconds is 30" in one for one in told_of(webhook(timeoutSeconds=30)))
    assert any("sideEffects" in one for one in told_of(webhook(sideEffects="Some")))


def test_workloads_that_insist_on_nodes_of_their_own_are_known(tree):
    found = replicas_apart(workloads(load(tree / "overlays" / "production")))

    assert found == {"Deployment understudy/control-cart": 3}


def test_files_that_cannot_be_judged_are_named(tmp_path, tree):
    (tmp_path / "a.yaml").write_text("just: text\n")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "kustomization.yaml").write_text("resources: []\nnamePrefix: x-\n")
    (tmp_path / "c").mkdir()

    for path, complaint in (
        (tmp_path / "gone", "does not exist"),
        (tmp_path / "a.yaml", "not a Kubernetes object"),
        (tmp_path / "b", "kubectl kustomize"),
        (tmp_path / "c", "no YAML files"),
        (tree, "several kustomizations"),
    ):
        refused = preflight(path)
        assert refused.exit_code == 2
        assert complaint in refused.output


def test_a_list_in_a_file_is_what_is_in_it(tmp_path, trial):
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": trial}))

    assert preflight(file).exit_code == 0


def test_for_people_it_ends_in_a_verdict(tree):
    path = tree / "overlays" / "trial"
    shown = CliRunner(env={"COLUMNS": "200", "UNDERSTUDY_ETCD": None}).invoke(
        cli, ["verify", "--preflight", "--no-cluster", "--manifests", str(path)]
    )

    assert shown.output.splitlines()[-1].startswith("ready: 0 failed")


def test_the_options_of_a_preflight_want_a_preflight(tmp_path):
    refused = CliRunner().invoke(cli, ["verify", "--manifests", str(tmp_path)])

    assert refused.exit_code == 2
    assert "need --preflight" in refused.output
