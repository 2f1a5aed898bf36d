"""A pod with its sidecar: valid for a cluster, complete, and the same when it is done again."""

import copy
import dataclasses
import itertools
import json
from typing import Any

import jsonpatch
import pytest

from tests.deploy.kubernetes.injection.harness import (
    CLASSIC_FORM,
    NEWEST,
    OLDEST,
    PLAIN,
    SECURED,
    named,
    sidecars,
    validate,
)
from tests.deploy.kubernetes.injection.shapes import (
    ISTIO,
    REWRITTEN,
    SHAPES,
    TOKEN_MOUNT,
    Shape,
    container,
    istio_init,
    istio_proxy,
    pod,
)
from understudy.deploy.kubernetes.base.injection_settings import BadSetting, PeerCertificates, form_for
from understudy.deploy.kubernetes.base.lenient_json import InjectionRefused
from understudy.deploy.kubernetes.base.names import POOL
from understudy.deploy.kubernetes.injection.pod import inject

INJECTED = {name: shape for name, shape in SHAPES.items() if shape.outcome == "injected"}
DENIED = {name: shape for name, shape in SHAPES.items() if shape.outcome == "denied"}


@pytest.mark.parametrize("shape", INJECTED.values(), ids=INJECTED)
@pytest.mark.parametrize("settings", [PLAIN, SECURED], ids=["plain", "secured"])
def test_a_pod_of_every_shape_gets_one_valid_sidecar_and_the_same_one_again(shape: Shape, settings: Any) -> None:
    before = copy.deepcopy(shape.pod)
    injected = inject(shape.pod, settings)
    assert shape.pod == before
    assert [one["restartPolicy"] for one in sidecars(injected.pod)] == ["Always"]
    assert injected.pod["spec"]["initContainers"][-1]["name"] == "understudy"
    validate(injected.pod, OLDEST["native"], NEWEST)
    assert (shape.warned in " ".join(injected.warnings)) if shape.warned else injected.warnings == ()
    again = inject(injected.pod, settings)
    assert again.pod == injected.pod
    assert jsonpatch.make_patch(injected.pod, again.pod).patch == []


@pytest.mark.parametrize("shape", INJECTED.values(), ids=INJECTED)
def test_the_classic_form_is_a_container_beside_the_application(shape: Shape) -> None:
    if shape.pod["spec"].get("restartPolicy") in ("Never", "OnFailure"):
        with pytest.raises(InjectionRefused, match="would never finish"):
            inject(shape.pod, CLASSIC_FORM)
        return
    injected = inject(shape.pod, CLASSIC_FORM).pod
    (sidecar,) = sidecars(injected)
    assert injected["spec"]["containers"][-1] is sidecar
    assert "restartPolicy" not in sidecar
    assert sidecar["lifecycle"]["preStop"]["exec"]["command"][-2:] == ["--until", "application-gone"]
    if shape.classic:
        validate(injected, OLDEST["classic"], NEWEST)
    assert inject(injected, CLASSIC_FORM).pod == injected


@pytest.mark.parametrize("shape", DENIED.values(), ids=DENIED)
def test_a_pod_that_cannot_have_one_is_refused_with_all_reasons(shape: Shape) -> None:
    with pytest.raises(InjectionRefused) as refused:
        inject(shape.pod, PLAIN)
    for words in shape.denied:
        assert words in str(refused.value)


def test_the_sidecar_is_told_who_where_and_what_it_is() -> None:
    given = pod({"site": "east", "weight": "20"})
    injected = inject(given, PLAIN).pod
    (sidecar,) = sidecars(injected)
    arguments = sidecar["args"]
    told = dict(itertools.pairwise(arguments))
    assert sidecar["command"] == ["understudy"]
    assert told["--member"] == "$(UNDERSTUDY_MEMBER)"
    assert told["--app"] == "$(UNDERSTUDY_POD_IP):8080"
    assert told["--peer"] == "$(UNDERSTUDY_POD_IP):7601"
    assert told["--weight"] == "20"
    assert "--insecure" in arguments
    env = {variable["name"]: variable for variable in sidecar["env"]}
    assert env["UNDERSTUDY_MEMBER"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    assert env["UNDERSTUDY_SITE"]["value"] == "east"
    assert injected["metadata"]["labels"][POOL] == "cart"
    app = {variable["name"]: variable for variable in named(injected, "app")["env"]}
    assert app["UNDERSTUDY_URL"]["value"] == "http://127.0.0.1:7600"
    assert app["UNDERSTUDY_REDIS_URL"]["value"] == "redis://127.0.0.1:7604/0"
    assert app["UNDERSTUDY_MEMBER"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"


def test_the_site_is_the_zone_of_the_node_where_the_cluster_tells_pods_of_it() -> None:
    def site(annotations: dict[str, str]) -> dict[str, Any]:
        (sidecar,) = sidecars(inject(pod(annotations), PLAIN).pod)
        return next(variable for variable in sidecar["env"] if variable["name"] == "UNDERSTUDY_SITE")

    label = "topology.kubernetes.io"
    assert site({})["valueFrom"]["fieldRef"]["fieldPath"] == f"metadata.labels['{label}/zone']"
    assert site({"topology": "region"})["valueFrom"]["fieldRef"]["fieldPath"] == f"metadata.labels['{label}/region']"
    assert site({"topology": "none"})["value"] == ""


def test_zone_and_host_are_those_of_the_node_whatever_the_site_is() -> None:
    (sidecar,) = sidecars(inject(pod({"topology": "none"}), PLAIN).pod)

    env = {variable["name"]: variable for variable in sidecar["env"]}
    assert (
        env["UNDERSTUDY_ZONE"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.labels['topology.kubernetes.io/zone']"
    )
    assert env["UNDERSTUDY_NODE"]["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"
    assert dict(itertools.pairwise(sidecar["args"]))["--node"] == "$(UNDERSTUDY_NODE)"


@pytest.mark.parametrize(
    ("annotations", "labels", "told"),
    [({}, {}, []), ({}, {"version": "v2"}, ["v2"]), ({"app-version": "1.4.0"}, {"version": "v2"}, ["1.4.0"])],
)
def test_the_version_of_the_application_is_the_pods_label_unless_an_annotation_names_it(
    annotations: dict[str, str], labels: dict[str, str], told: list[str]
) -> None:
    (sidecar,) = sidecars(inject(pod(annotations, labels), PLAIN).pod)
    assert [one["value"] for one in sidecar["env"] if one["name"] == "UNDERSTUDY_APP_VERSION"] == told


def test_members_show_certificates_that_name_their_pod() -> None:
    injected = inject(pod(), SECURED).pod
    volumes = {volume["name"]: volume for volume in injected["spec"]["volumes"]}
    told = volumes["understudy-tls"]["csi"]["volumeAttributes"]
    assert told["csi.cert-manager.io/uri-sans"] == "spiffe://understudy/cart/member/${POD_NAME}"
    assert told["csi.cert-manager.io/issuer-kind"] == "ClusterIssuer"
    (sidecar,) = sidecars(injected)
    assert "--insecure" not in sidecar["args"]
    assert {mount["name"] for mount in sidecar["volumeMounts"]} == {
        "understudy-tls",
        "understudy-etcd-tls",
        "understudy-session-keys",
    }
    passwords = [v["valueFrom"]["secretKeyRef"] for v in sidecar["env"] if v["name"] == "UNDERSTUDY_ETCD_PASSWORD"]
    assert passwords == [{"name": "etcd-user", "key": "password"}]


@pytest.mark.parametrize(("context", "mode"), [({"fsGroup": 2000}, 0o440), ({}, None), (None, None)])
def test_secrets_are_for_the_pods_group_where_it_has_one(context: dict[str, Any] | None, mode: int | None) -> None:
    given = pod()
    given["spec"]["securityContext"] = context
    settings = dataclasses.replace(SECURED, peer_certificates=PeerCertificates(secret="certs"))
    injected = inject(given, settings)
    modes = [volume["secret"].get("defaultMode") for volume in injected.pod["spec"]["volumes"] if "secret" in volume]
    assert modes == [mode] * 3
    assert inject(injected.pod, settings).pod == injected.pod


@pytest.mark.parametrize("told", ["none", "secret:certs", "csi:ca:Issuer:cert-manager.io"])
def test_where_certificates_come_from_reads_as_it_is_written(told: str) -> None:
    parsed = PeerCertificates.parse(told)
    assert (parsed.told() if parsed else "none") == told
    for wrong in ("", "secret", "secret:", "csi", "csi::x", "csi:a:b:c:d", "vault:x"):
        with pytest.raises(BadSetting):
            PeerCertificates.parse(wrong)


def test_the_form_goes_by_the_clusters_version() -> None:
    assert [form_for(v) for v in ("1.25", "v1.28.15", "1.29", "1.29+", "v1.37.0-gke.1", "2.0")] == [
        "classic", "classic", "native", "native", "native", "native",
    ]  # fmt: skip
    with pytest.raises(BadSetting, match="no Kubernetes version"):
        form_for("latest")


def test_an_application_serves_on_until_its_slots_are_handed_over() -> None:
    injected = inject(pod({"drain-seconds": "12", "health-port": "17602"}), PLAIN).pod
    hook = named(injected, "app")["lifecycle"]["preStop"]
    assert hook == {"httpGet": {"path": "/drained?wait=17", "port": 17602}}
    (sidecar,) = sidecars(injected)
    assert sidecar["lifecycle"]["preStop"]["exec"]["command"] == ["understudy", "leave", "--wait", "17"]
    without = inject(pod({"wait-for-handover": "false"}), PLAIN).pod
    assert "lifecycle" not in named(without, "app")


def test_hooks_and_variables_of_an_earlier_injection_follow_new_annotations() -> None:
    injected = inject(pod(), PLAIN).pod
    changed = copy.deepcopy(injected)
    changed["metadata"]["annotations"] |= {
        "understudy.io/session-port": "17600",
        "understudy.io/redis-port": "17604",
        "understudy.io/wait-for-handover": "false",
    }
    again = inject(changed, PLAIN).pod
    env = {variable["name"]: variable.get("value") for variable in named(again, "app")["env"]}
    assert env["UNDERSTUDY_URL"] == "http://127.0.0.1:17600"
    assert env["UNDERSTUDY_REDIS_URL"] == "redis://127.0.0.1:17604/0"
    assert "lifecycle" not in named(again, "app")
    assert len(sidecars(again)) == 1
    assert "--insecure" in sidecars(again)[0]["args"]


def test_an_older_versions_sidecar_is_replaced_whatever_its_form() -> None:
    old = inject(pod(), CLASSIC_FORM).pod
    mark = json.loads(old["metadata"]["annotations"]["understudy.io/injected"])
    old["metadata"]["annotations"]["understudy.io/injected"] = json.dumps({**mark, "version": "0.0.1", "digest": "x"})
    sidecars(old)[0]["image"] = "understudy-sidecar:0.0.1"
    new = inject(old, PLAIN).pod
    (sidecar,) = sidecars(new)
    assert sidecar["image"] == PLAIN.image
    assert [one["name"] for one in new["spec"]["containers"]] == ["app"]
    validate(new, OLDEST["native"], NEWEST)


def test_what_others_have_added_to_our_container_stays_when_a_review_comes_again() -> None:
    injected = copy.deepcopy(inject(pod(), PLAIN).pod)
    sidecars(injected)[0]["volumeMounts"] = [TOKEN_MOUNT]
    sidecars(injected)[0]["imagePullPolicy"] = "Always"
    injected["spec"]["initContainers"].append(container("later", ports=None))
    assert inject(injected, PLAIN).pod == injected


def test_a_container_that_came_after_the_first_review_is_told_of_the_sidecar_too() -> None:
    injected = copy.deepcopy(inject(pod({"container": "app"}), PLAIN).pod)
    injected["spec"]["containers"].append(container("late", ports=None))
    again = inject(injected, PLAIN).pod
    assert "UNDERSTUDY_URL" in {variable["name"] for variable in named(again, "late")["env"]}
    assert len(sidecars(again)) == 1


def test_a_health_path_is_the_applications_own_also_when_istio_has_taken_its_probe() -> None:
    probe = {"httpGet": {"path": "/ready", "port": 8080}}
    first = inject(pod(containers=[container(readinessProbe=probe)]), PLAIN).pod
    told = sidecars(first)[0]["args"]
    assert told[told.index("--app-health") + 1] == "/ready"

    then_gone = copy.deepcopy(first)
    del named(then_gone, "app")["readinessProbe"]
    assert sidecars(inject(then_gone, PLAIN).pod)[0] == sidecars(first)[0]

    then_istio = copy.deepcopy(first)
    then_istio["spec"]["initContainers"].insert(0, istio_init())
    named(then_istio, "app")["readinessProbe"] = REWRITTEN
    then_istio["spec"]["containers"].append(istio_proxy())
    again = inject(then_istio, PLAIN).pod
    assert sidecars(again)[0] == sidecars(first)[0]

    istio_first = inject(
        pod(ISTIO, initContainers=[istio_init()], containers=[container(readinessProbe=REWRITTEN), istio_proxy()]),
        PLAIN,
    ).pod
    told = sidecars(istio_first)[0]["args"]
    assert told[told.index("--app-health") + 1] == "/ready"


def test_an_application_that_is_probed_over_grpc_is_asked_over_grpc() -> None:
    for probe, expected in (({"port": 8080}, "grpc"), ({"port": 8080, "service": "shop.v1.Cart"}, "grpc:shop.v1.Cart")):
        told = sidecars(inject(pod(containers=[container(readinessProbe={"grpc": probe})]), PLAIN).pod)[0]["args"]
        assert told[told.index("--app-health") + 1] == expected
    elsewhere = inject(pod(containers=[container(readinessProbe={"grpc": {"port": 9}})]), PLAIN).pod
    told = sidecars(elsewhere)[0]["args"]
    assert told[told.index("--app-health") + 1] == "/healthz"


def test_istio_leaves_our_ports_alone_whoever_was_first() -> None:
    shape = SHAPES["Istio was first"]
    injected = inject(shape.pod, PLAIN).pod
    annotations = injected["metadata"]["annotations"]
    assert annotations["traffic.sidecar.istio.io/excludeInboundPorts"] == "7601,7602,7603"
    assert annotations["traffic.sidecar.istio.io/excludeOutboundPorts"] == "7601,2379,18000"
    told = named(injected, "istio-init", "initContainers")["args"]
    assert told[told.index("-d") + 1] == "15090,15021,15020,7601,7602,7603"
    assert told[told.index("-o") + 1] == "7601,2379,18000"
    assert "env" not in named(injected, "istio-init", "initContainers")
    assert named(injected, "istio-proxy") == shape.pod["spec"]["containers"][1]
    kept = inject(SHAPES["Istio with ports left out by its owner"].pod, PLAIN).pod["metadata"]["annotations"]
    assert kept["traffic.sidecar.istio.io/excludeInboundPorts"] == "9999,7602,7601,7603"
    assert kept["traffic.sidecar.istio.io/excludeOutboundPorts"] == "5432,7601,2379,18000"


def test_resources_are_what_was_asked_for_and_never_at_odds() -> None:
    def resources(**asked: str) -> Any:
        annotations = {name.replace("_", "-"): value for name, value in asked.items()}
        return sidecars(inject(pod(annotations), PLAIN).pod)[0]["resources"]

    assert resources() == {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}
    assert resources(cpu_limit="50m")["requests"]["cpu"] == "50m"
    assert resources(memory_limit="64Mi") == {
        "requests": {"cpu": "100m", "memory": "64Mi"},
        "limits": {"memory": "64Mi"},
    }
    assert resources(memory_request="2Gi")["limits"]["memory"] == "2Gi"


def test_the_sidecar_keeps_to_the_restricted_pod_security_standard() -> None:
    context = sidecars(inject(pod(), PLAIN).pod)[0]["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert context["runAsUser"] == 65532
