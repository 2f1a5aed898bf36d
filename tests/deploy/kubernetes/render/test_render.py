"""What ``understudy render kubernetes`` writes, and how it refuses."""

import json
import shutil
import subprocess
from collections.abc import Mapping

import kubernetes_validate
import pytest
import yaml

from tests.deploy.kubernetes.conftest import OWN_ETCD, SPEC, documents, find, render
from tests.deploy.kubernetes.references import faults
from tests.harness.commands import ROOT
from understudy.deploy.kubernetes.preflight.load_manifests import load
from understudy.deploy.kubernetes.preflight.manifest_index import where, workloads
from understudy.deploy.local.programs import COMPACTION, ETCD_QUOTA_BYTES
from understudy.statesync.pool.spec_reader import parse_spec

needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None,
    reason="kubectl is not installed: its kustomize is what the tree is compared with",
)


def kustomized(folder):
    built = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=60, check=False)
    assert built.returncode == 0, built.stderr
    return {where(one): one for one in yaml.safe_load_all(built.stdout)}


def without_order(value):
    if isinstance(value, Mapping):
        return {key: without_order(one) for key, one in value.items()}
    if isinstance(value, list):
        return sorted((without_order(one) for one in value), key=lambda one: json.dumps(one, sort_keys=True))
    return value


@needs_kubectl
def test_kubectl_builds_each_overlay_and_finds_in_it_what_we_do(overlay):
    theirs = kustomized(overlay)

    ours = {where(one): one for one in load(overlay)}

    assert without_order(ours) == without_order(theirs)


@needs_kubectl
def test_kubectl_builds_every_folder_of_the_tree(rendered):
    folders = sorted(file.parent for file in rendered.rglob("kustomization.yaml"))
    assert len(folders) == 9

    for folder in folders:
        assert kustomized(folder) if "components" not in folder.parts else documents(folder / "kustomization.yaml")


def test_every_overlay_brings_what_a_pool_needs(objects):
    there = {where(one) for one in objects}

    assert {
        "Namespace understudy",
        "Namespace cart",
        "Deployment understudy/control-cart",
        "Service understudy/control-cart",
        "PodDisruptionBudget understudy/control-cart",
        "Deployment understudy/front-cart",
        "Service understudy/front-cart",
        "Deployment understudy/operator-cart",
        "Deployment understudy/mirror-cart",
        "ConfigMap understudy/understudy-etcd",
        "NetworkPolicy understudy/default-deny",
        "NetworkPolicy cart/members-cart",
    } <= there


def test_the_spec_goes_into_the_cluster_as_it_was_read(objects):
    job = next(one for one in objects if one["kind"] == "Job")
    volumes = {one["name"]: one for one in job["spec"]["template"]["spec"]["volumes"]}
    config = find(objects, "ConfigMap", volumes["spec"]["configMap"]["name"])

    assert parse_spec(config["data"]["pool.yaml"], where="ConfigMap") == parse_spec(SPEC, where="file")


def test_one_part_after_the_other_can_be_applied_by_its_label(objects):
    part = "app.kubernetes.io/component"
    named = {(one["kind"], one["metadata"]["name"]): one["metadata"].get("labels", {}).get(part) for one in objects}

    assert {"control", "injector", "front", "spec", "operator"} <= set(named.values())
    for workload in workloads(objects):
        if workload.namespace == "understudy":
            kind, _, place = workload.where.partition(" ")
            wanted = named[kind, place.partition("/")[2]]
            assert wanted
            configs = [volume["configMap"] for volume in workload.pod.get("volumes", ()) if "configMap" in volume]
            assert {named["ConfigMap", config["name"]] for config in configs} <= {wanted}


def test_front_envoys_of_a_pool_with_sites_take_their_zone_for_their_site(tmp_path):
    def front(name, spec):
        directory = tmp_path / name
        directory.mkdir()
        _, out = render(directory, spec=spec)
        objects = load(out / "base")
        (deployment,) = (one for one in objects if one["kind"] == "Deployment" and "front" in one["metadata"]["name"])
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        said = next(one["value"] for one in container["env"] if one["name"] == "OTEL_RESOURCE_ATTRIBUTES")
        return container["args"], said, "understudy.member.requests" in json.dumps(objects)

    arguments, said, counts = front("sites", SPEC + "sites: {a: {weight: 1}, b: {weight: 1}}\n")
    assert arguments[arguments.index("--service-zone") + 1] == "$(UNDERSTUDY_SITE)"
    assert said.endswith("understudy.site=site:$(UNDERSTUDY_SITE)")
    assert counts
    arguments, said, counts = front("none", SPEC)
    assert ("--service-zone" in arguments, "site" in said, counts) == (False, False, False)


def test_another_spec_is_another_job_and_the_same_one_is_the_same(tmp_path):
    names = []
    for number, spec in enumerate((SPEC, SPEC, SPEC + "copies: 2\n")):
        directory = tmp_path / str(number)
        directory.mkdir()
        _, out = render(directory, spec=spec)
        names.append(next(one["metadata"]["name"] for one in load(out / "base") if one["kind"] == "Job"))

    assert names[0] == names[1] != names[2]


def test_a_job_that_is_to_be_another_one_has_another_name_since_no_job_can_be_changed(tmp_path):
    tls = (*OWN_ETCD, "--etcd-tls-secret", "etcd-client")
    ways = (tls, (*tls, "--etcd-login-secret", "login"), (*tls, "--version", "9.9.9"), (*tls, "--replicas", "5"))
    jobs = []
    for number, arguments in enumerate(ways):
        directory = tmp_path / str(number)
        directory.mkdir()
        _, out = render(directory, *arguments)
        jobs.append(next(one for one in load(out / "overlays" / "production") if one["kind"] == "Job"))

    assert len({json.dumps(job["spec"], sort_keys=True) for job in jobs}) == 3
    assert len({job["metadata"]["name"] for job in jobs}) == 3
    assert jobs[0] == jobs[3]


def test_rendering_again_leaves_nothing_behind_of_what_was_there(tmp_path):
    first, out = render(tmp_path, *OWN_ETCD, "--etcd-tls-secret", "etcd-client")
    assert first.exit_code == 0
    assert (out / "overlays" / "production").exists()

    again, _ = render(tmp_path)

    assert again.exit_code == 0, again.output
    assert not (out / "overlays" / "production" / "kustomization.yaml").exists()


def test_files_of_somebody_else_are_not_touched(tmp_path):
    (tmp_path / "manifests").mkdir()
    mine = tmp_path / "manifests" / "mine.yaml"
    mine.write_text("kind: Mine\n")

    refused, _ = render(tmp_path)

    assert refused.exit_code == 2
    assert "mine.yaml" in refused.output
    assert mine.read_text() == "kind: Mine\n"


def test_the_trials_etcd_compacts_and_has_a_quota_as_the_embedded_one(trial):
    arguments = find(trial, "StatefulSet", "etcd")["spec"]["template"]["spec"]["containers"][0]["args"]

    assert "--auto-compaction-mode=periodic" in arguments
    assert f"--auto-compaction-retention={COMPACTION}" in arguments
    assert f"--quota-backend-bytes={ETCD_QUOTA_BYTES}" in arguments


def test_json_for_programs(tmp_path):
    result, out = render(tmp_path, "-o", "json")

    told = json.loads(result.output)

    assert told["overlays"] == [str(out / "overlays" / "trial")]
    assert all((out / name).is_file() for name in told["files"])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--namespace", "Big_Name"), "--namespace 'Big_Name'"),
        (("--app-namespace", "understudy"), "namespace of its own"),
        (("--image", "envoy=envoyproxy/envoy:latest"), "tag other than latest"),
        (("--image", "envoy=envoyproxy/envoy:distroless-v1.40.0"), "--front-drain sleep"),
        (("--image", "proxy=a:1"), "control=, sidecar=, injector=, envoy=, etcd= or take-over="),
        (("--etcd", "https://etcd.data.svc:2379"), "--etcd-tls-secret"),
        (("--etcd", "http://etcd.data.svc:2379", "--etcd-tls-secret", "s"), "must begin with https"),
        (("--etcd-login-secret", "s"), "an etcd of your own"),
        (("--etcd", "etcd:notaport:1"), "etcd:notaport:1"),
        (("--etcd", ","), "'trial'"),
        (("--mirror-site", "east"), "go together"),
        (("--mirror-site", "east", "--mirror-peer", "east=etcd:2379"), "it is the other site"),
        (("--mirror-site", "east", "--mirror-peer", "west=https://etcd:2379"), "--mirror-peer-tls-secret"),
        (("--runbook-base", "https://docs.example/#top"), "--runbook-base"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(tmp_path, arguments, complaint):
    refused, out = render(tmp_path, *arguments)

    assert refused.exit_code == 2
    assert complaint in refused.output
    assert not out.exists()


def test_a_tcp_pool_keeps_its_clients_addresses_and_is_nowhere_called_http(tmp_path):
    spec = (ROOT / "deploy/examples/tcp.yaml").read_text()
    rendered, out = render(tmp_path, "--front-service", "LoadBalancer", spec=spec)
    assert rendered.exit_code == 0, rendered.output

    objects = load(out / "overlays" / "trial")

    pool = parse_spec(spec, where="example").pool
    config = next(one for one in objects if "pool.yaml" in one.get("data", {}))
    assert parse_spec(config["data"]["pool.yaml"], where="ConfigMap") == parse_spec(spec, where="example")
    told = find(objects, "Service", f"front-{pool}")["spec"]
    assert told["externalTrafficPolicy"] == "Local"
    assert [(port["name"], port["port"], port.get("appProtocol")) for port in told["ports"]] == [("tcp", 8080, None)]
    (member,) = find(objects, "StatefulSet", pool)["spec"]["template"]["spec"]["containers"]
    assert member["command"][-1] == "understudy.deploy.examples.notebook"
    assert "tcpSocket" in member["readinessProbe"]
    assert faults(objects) == []
    for body in objects:
        kubernetes_validate.validate(body, "1.25", strict=True)


def test_an_envoy_whose_image_has_no_shell_waits_for_the_kubelets_own_sleep(tmp_path):
    image = "docker.io/envoyproxy/envoy:distroless-v1.40.0"
    rendered, out = render(tmp_path, "--image", f"envoy={image}", "--front-drain", "sleep")
    assert rendered.exit_code == 0, rendered.output

    deployment = find(load(out / "overlays" / "trial"), "Deployment", "front-cart")

    pod = deployment["spec"]["template"]["spec"]
    (envoy,) = pod["containers"]
    assert (envoy["image"], envoy["lifecycle"]) == (image, {"preStop": {"sleep": {"seconds": 15}}})
    assert pod["terminationGracePeriodSeconds"] > 15
    kubernetes_validate.validate(deployment, "1.30", strict=True)


@pytest.mark.parametrize("name", ["shop.cart", "c" * 41])
def test_a_pool_whose_name_no_service_can_have_is_refused(tmp_path, name):
    refused, _ = render(tmp_path, spec=SPEC.replace("cart", name))

    assert refused.exit_code == 2
    assert "without dots" in refused.output


def test_the_alerts_lead_to_where_the_runbooks_are_served(tmp_path):
    rendered, out = render(tmp_path, "--runbook-base", "https://docs.example/operations/")
    assert rendered.exit_code == 0, rendered.output

    rules = find(load(out / "components" / "monitoring"), "PrometheusRule", "understudy")["spec"]
    alerts = {one["alert"]: one for group in rules["groups"] for one in group["rules"] if "alert" in one}

    assert len(alerts) > 10
    for name, alert in alerts.items():
        assert alert["annotations"]["runbook_url"] == f"https://docs.example/operations/#{name.lower()}"
