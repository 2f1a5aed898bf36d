"""With an issuer of cert-manager everybody has a certificate of his own name, and nothing is left in plain text."""

import shutil

import kubernetes_validate
import pytest

from tests.deploy.kubernetes.conftest import OWN_ETCD, find, render
from tests.deploy.kubernetes.hardening import standard_faults
from tests.deploy.kubernetes.references import faults
from tests.deploy.kubernetes.render.test_render import kustomized, without_order
from understudy.deploy.kubernetes.base.names import COMPONENT
from understudy.deploy.kubernetes.preflight.load_manifests import load
from understudy.deploy.kubernetes.preflight.manifest_index import workloads
from understudy.statesync.tls.identity import Trust


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    issuer = ("--certificates", "csi:understudy:ClusterIssuer")
    result, out = render(tmp_path_factory.mktemp("secured"), *OWN_ETCD, "--etcd-tls-secret", "etcd-client", *issuer)
    assert result.exit_code == 0, result.output
    return out / "overlays"


@pytest.fixture(scope="module", params=["trial", "production"])
def objects(request, tree):
    return load(tree / request.param)


def test_it_fits_together_and_is_what_kubernetes_takes(objects):
    assert faults(objects) == []
    assert standard_faults(objects) == []
    for body in objects:
        if not body["apiVersion"].startswith("monitoring.coreos.com/"):
            for version in ("1.25", kubernetes_validate.latest_version()):
                kubernetes_validate.validate(body, version, strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_patches_the_stateful_set_as_we_do(tree):
    ours = {(one["kind"], one["metadata"]["name"]): one for one in load(tree / "production")}
    theirs = {(one["kind"], one["metadata"]["name"]): one for one in kustomized(tree / "production").values()}

    assert without_order(list(ours.values())) == without_order(list(theirs.values()))
    pod = ours["StatefulSet", "control-cart"]["spec"]["template"]["spec"]
    assert "requiredDuringSchedulingIgnoredDuringExecution" in pod["affinity"]["podAntiAffinity"]


def test_each_part_has_the_name_that_others_ask_of_it(objects):
    names = {}
    for one in workloads(objects):
        for volume in one.pod.get("volumes") or ():
            told = (volume.get("csi") or {}).get("volumeAttributes")
            if told:
                names[one.labels[COMPONENT]] = told["csi.cert-manager.io/uri-sans"].replace("${POD_NAME}", "pod-1")

    assert set(names) == {"control", "front", "operator"}
    trust = Trust("cart")
    assert trust.speaks_for([names["control"]], "control", "pod-1")
    assert trust.speaks_for([names["front"]], "node", "pod-1")
    assert trust.speaks_for([names["operator"]], "operator", "pod-1")
    control = find(objects, "StatefulSet", "control-cart")["spec"]["template"]["spec"]
    advertised = control["containers"][0]["args"][control["containers"][0]["args"].index("--advertise-grpc") + 1]
    (volume,) = [one for one in control["volumes"] if "csi" in one]
    dns = volume["csi"]["volumeAttributes"]["csi.cert-manager.io/dns-names"].split(",")
    assert advertised.replace("$(POD_NAME)", "${POD_NAME}").removesuffix(":18000") in dns


def test_nothing_is_left_in_plain_text(objects):
    arguments = {
        one.labels.get(COMPONENT): each.get("args") or () for one in workloads(objects) for each in one.containers
    }

    assert not any("--insecure" in one for one in arguments.values())
    injector = list(arguments["injector"])
    assert injector[injector.index("--peer-certificates") + 1].startswith("csi:understudy:ClusterIssuer")


def test_a_secret_that_all_would_share_is_refused(tmp_path):
    refused, _ = render(tmp_path, "--certificates", "secret:everybody")

    assert refused.exit_code == 2
    assert "csi:ISSUER" in refused.output
