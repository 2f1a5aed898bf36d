"""Pods as they come to an admission webhook, by what is special about them, and what is to become of each.

The base is what the API server sends for a pod of a Deployment: defaults filled in, the service account's token
mounted, ``generateName`` and no name.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

Body = dict[str, Any]
TOKEN = {
    "name": "kube-api-access-x7k2p",
    "projected": {
        "defaultMode": 420,
        "sources": [{"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}],
    },
}
TOKEN_MOUNT = {"name": TOKEN["name"], "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True}


def container(name: str = "app", **more: Any) -> Body:
    """A container as the API server fills it in."""
    base = {
        "name": name,
        "image": "registry.example/app:1.2",
        "imagePullPolicy": "IfNotPresent",
        "ports": [{"containerPort": 8080, "protocol": "TCP"}],
        "resources": {},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "volumeMounts": [copy.deepcopy(TOKEN_MOUNT)],
    }
    return {key: value for key, value in {**base, **more}.items() if value is not None}


def pod(annotations: dict[str, str] | None = None, labels: dict[str, str] | None = None, **spec: Any) -> Body:
    """A pod that asks for a sidecar, with other annotations, labels and parts of its spec."""
    base = {
        "containers": [container()],
        "volumes": [copy.deepcopy(TOKEN)],
        "dnsPolicy": "ClusterFirst",
        "enableServiceLinks": True,
        "restartPolicy": "Always",
        "schedulerName": "default-scheduler",
        "securityContext": {},
        "serviceAccountName": "default",
        "terminationGracePeriodSeconds": 30,
    }
    told = {f"understudy.io/{name}": value for name, value in (annotations or {}).items() if "/" not in name}
    foreign = {name: value for name, value in (annotations or {}).items() if "/" in name}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "cart-6f9c7d5b8-",
            "namespace": "shop",
            "labels": {"app": "cart", "understudy.io/inject": "true", **(labels or {})},
            "annotations": {"understudy.io/pool": "cart", **told, **foreign},
        },
        "spec": {key: value for key, value in {**base, **spec}.items() if value is not None},
    }


def istio_init() -> Body:
    """What Istio's injector puts first: the redirection of traffic."""
    arguments = ["istio-iptables", "-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", ""]
    arguments += ["-b", "*", "-d", "15090,15021,15020", "--log_output_level=default:info"]
    return container("istio-init", args=arguments, ports=None, image="docker.io/istio/proxyv2:1.27.0")


def istio_proxy(**more: Any) -> Body:
    """Istio's proxy, which has taken over the application's probes."""
    probes = '{"/app-health/app/readyz":{"httpGet":{"path":"/ready","port":8080,"scheme":"HTTP"},"timeoutSeconds":1}}'
    return container(
        "istio-proxy",
        args=["proxy", "sidecar"],
        env=[{"name": "ISTIO_KUBE_APP_PROBERS", "value": probes}],
        ports=[{"containerPort": 15090, "name": "http-envoy-prom", "protocol": "TCP"}],
        image="docker.io/istio/proxyv2:1.27.0",
        **more,
    )


REWRITTEN = {"httpGet": {"path": "/app-health/app/readyz", "port": 15020}}
ISTIO = {"sidecar.istio.io/status": '{"initContainers":["istio-init"],"containers":["istio-proxy"]}'}


@dataclass(frozen=True)
class Shape:
    """A pod and what is to become of it: ``injected``, ``ignored``, or the words that it is ``denied`` with."""

    pod: Body
    outcome: str = "injected"
    denied: tuple[str, ...] = ()
    warned: str = ""
    classic: bool = field(default=True)
    """Whether the classic form does the same."""


def denied(pod: Body, *words: str) -> Shape:
    """A pod that is refused with these words in the message."""
    return Shape(pod, "denied", words)


_PROBE = {"httpGet": {"path": "/ready", "port": "web"}, "periodSeconds": 5}
_WEB = [{"name": "web", "containerPort": 8000}]

SHAPES: dict[str, Shape] = {
    "of a Deployment, named by its controller": Shape(pod()),
    "of a StatefulSet, with a name": Shape({**pod(), "metadata": {**pod()["metadata"], "name": "cart-0"}}),
    "of a Job, which is to finish": Shape(pod(restartPolicy="Never"), classic=False),
    "of a Job that retries in place": Shape(pod(restartPolicy="OnFailure"), classic=False),
    "several containers, the application named": Shape(
        pod({"container": "web"}, containers=[container("log", ports=None), container("web")])
    ),
    "several containers, one of them kubectl's default": Shape(
        pod(
            {"kubectl.kubernetes.io/default-container": "web"},
            containers=[container("log"), container("web", ports=_WEB)],
        )
    ),
    "several containers, one with the port": Shape(
        pod({"app-port": "web"}, containers=[container("log"), container("web", ports=_WEB)])
    ),
    "several containers, none named": denied(
        pod(containers=[container("log"), container("web")]), "understudy.io/container is missing", "log, web"
    ),
    "init containers of its own": Shape(pod(initContainers=[container("migrate", ports=None, args=["up"])])),
    "a native sidecar of its own": Shape(
        pod(initContainers=[container("logs", ports=None, restartPolicy="Always")]), classic=False
    ),
    "host network": denied(pod(hostNetwork=True), "spec.hostNetwork", "every process of the node"),
    "probes, by a port's name": Shape(
        pod(containers=[container(ports=_WEB, readinessProbe=_PROBE, livenessProbe=_PROBE, startupProbe=_PROBE)])
    ),
    "probes by command and gRPC": Shape(
        pod(containers=[container(readinessProbe={"exec": {"command": ["true"]}}, livenessProbe={"grpc": {"port": 1}})])
    ),
    "volumes of its own": Shape(pod(volumes=[TOKEN, {"name": "data", "emptyDir": {}}])),
    "CSI volumes of its own, one of cert-manager's too": Shape(
        pod(
            volumes=[
                TOKEN,
                {"name": "tls", "csi": {"driver": "csi.cert-manager.io", "volumeAttributes": {"a": "b"}}},
                {"name": "more", "csi": {"driver": "secrets-store.csi.k8s.io", "nodePublishSecretRef": {"name": "s"}}},
            ],
            containers=[container(volumeMounts=[TOKEN_MOUNT, {"name": "tls", "mountPath": "/tls", "readOnly": True}])],
        )
    ),
    "one process namespace for all": Shape(pod(shareProcessNamespace=True)),
    "a volume with a name of ours": denied(
        pod(volumes=[{"name": "understudy-tls", "emptyDir": {}}]), "spec.volumes", "understudy-tls"
    ),
    "no volumes": Shape(pod(volumes=None, containers=[container(volumeMounts=None)])),
    "Istio was first": Shape(
        pod(
            ISTIO,
            initContainers=[istio_init()],
            containers=[container(readinessProbe=REWRITTEN), istio_proxy()],
        )
    ),
    "Istio was first, as a native sidecar": Shape(
        pod(
            ISTIO,
            initContainers=[istio_init(), istio_proxy(restartPolicy="Always")],
            containers=[container(readinessProbe=REWRITTEN)],
        ),
        classic=False,
    ),
    "Istio with ports left out by its owner": Shape(
        pod(
            {
                "traffic.sidecar.istio.io/excludeInboundPorts": "9999, 7602",
                "traffic.sidecar.istio.io/excludeOutboundPorts": "5432",
            }
        )
    ),
    "ephemeral containers": Shape(
        pod(ephemeralContainers=[{"name": "debug", "image": "busybox", "targetContainerName": "app"}])
    ),
    "for Windows, by its system": denied(pod(os={"name": "windows"}), "spec.os", "Linux"),
    "for Windows, by its nodes": denied(pod(nodeSelector={"kubernetes.io/os": "windows"}), "Linux"),
    "for Linux": Shape(pod(os={"name": "linux"}, nodeSelector={"kubernetes.io/os": "linux"})),
    "privileged": Shape(pod(containers=[container(securityContext={"privileged": True, "runAsUser": 0})])),
    "restricted": Shape(
        pod(
            securityContext={"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            containers=[container(securityContext={"capabilities": {"drop": ["ALL"]}})],
        )
    ),
    "no port, none told": denied(pod(containers=[container(ports=None)]), "understudy.io/app-port is missing"),
    "no port, but told": Shape(pod({"app-port": "3000"}, containers=[container(ports=None)])),
    "two ports, none told": denied(
        pod(containers=[container(ports=[{"containerPort": 1000}, {"containerPort": 2000}])]), "app-port", "2 ports"
    ),
    "a port by name": Shape(pod({"app-port": "web"}, containers=[container(ports=_WEB)])),
    "a port by a wrong name": denied(
        pod({"app-port": "wbe"}, containers=[container(ports=_WEB)]), "no port named 'wbe'", "web"
    ),
    "a UDP port beside the TCP one": Shape(
        pod(containers=[container(ports=[{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 8080}])])
    ),
    "the application at a port of ours": denied(
        pod(containers=[container(ports=[{"containerPort": 7601}])]), "7601", "set understudy.io/peer-port"
    ),
    "another container at a port of ours": denied(
        pod({"container": "app"}, containers=[container(), container("x", ports=[{"containerPort": 7602}])]),
        "container x uses port 7602",
        "set understudy.io/health-port",
    ),
    "a port of ours moved away": Shape(
        pod({"peer-port": "17601"}, containers=[container(ports=[{"containerPort": 7601}])])
    ),
    "a container with our name": denied(
        pod({"container": "app"}, containers=[container(), container("understudy", ports=None)]), "is not ours"
    ),
    "environment of its own": Shape(
        pod(containers=[container(env=[{"name": "UNDERSTUDY_URL", "value": "http://elsewhere"}])])
    ),
    "a preStop hook of its own": Shape(
        pod(containers=[container(lifecycle={"preStop": {"exec": {"command": ["sleep", "20"]}}})]), warned="preStop"
    ),
    "a postStart hook": Shape(
        pod(containers=[container(lifecycle={"postStart": {"exec": {"command": ["true"]}}})])
    ),
    "little time to end": Shape(pod(terminationGracePeriodSeconds=10), warned="terminationGracePeriodSeconds 10"),
    "no time to end": Shape(pod(terminationGracePeriodSeconds=0), warned="terminationGracePeriodSeconds 0"),
    "less time to end than was asked for": denied(
        pod({"drain-seconds": "60"}, terminationGracePeriodSeconds=30), "drain-seconds", "70 or more"
    ),
    "time to end as was asked for": Shape(pod({"drain-seconds": "60"}, terminationGracePeriodSeconds=90)),
    "no time to end given": Shape(pod(terminationGracePeriodSeconds=None)),
    "every annotation": Shape(
        pod(
            {
                "app-port": "8080", "app-health": "/alive", "container": "app", "site": "east", "weight": "20",
                "priority": "2", "checks": "[{name: db, http: 'http://127.0.0.1:8080/db'}]", "image": "mine:1",
                "log-level": "debug", "cpu-request": "50m", "cpu-limit": "1", "memory-request": "64Mi",
                "memory-limit": "1Gi", "session-port": "17600", "peer-port": "17601", "health-port": "17602",
                "metrics-port": "17603", "drain-seconds": "5", "wait-for-handover": "false",
            }
        )
    ),
    "the pool as a label": Shape(
        {**pod(labels={"understudy.io/pool": "cart"}), "metadata": {
            **pod(labels={"understudy.io/pool": "cart"})["metadata"], "annotations": None}}
    ),
    "no pool": denied(
        {**pod(), "metadata": {**pod()["metadata"], "annotations": {}}}, "understudy.io/pool is missing"
    ),
    "two pools": denied(pod(labels={"understudy.io/pool": "other"}), "label understudy.io/pool", "keep one"),
    "a wrong annotation": denied(pod({"app-prot": "8080"}), "app-prot is unknown", "mean understudy.io/app-port?"),
    "wrong values, every one named": denied(
        pod({"weight": "much", "log-level": "debgu", "memory-limit": "1 GB", "app-port": "70000", "site": "East"}),
        "weight: 'much'", "did you mean debug?", "memory-limit: '1 GB'", "app-port: '70000'", "site: 'East'",
    ),
    "a request above its limit": denied(pod({"cpu-request": "2", "cpu-limit": "500m"}), "cpu-request: 2 is above"),
    "checks that are none": denied(
        pod({"checks": "[{name: db, htp: 'http://x'}]"}), "checks", "unknown key 'checks.0.htp'"
    ),
    "a check by command": denied(pod({"checks": "[{name: a, command: [ls]}]"}), "in the sidecar's container"),
    "a limit below our request": Shape(pod({"memory-limit": "64Mi", "cpu-limit": "50m"})),
    "a long name": denied(
        {**pod(), "metadata": {**pod()["metadata"], "name": "a" * 64}}, "metadata.name", "at most 63"
    ),
    "no sidecar wanted": Shape(pod(labels={"understudy.io/inject": "false"}), "ignored"),
    "nothing said": Shape({**pod(), "metadata": {"name": "plain"}}, "ignored"),
    "of the injector's namespace": Shape(
        {**pod(), "metadata": {**pod()["metadata"], "namespace": "understudy-system"}}, "ignored"
    ),
    "a mesh proxy alone": denied(pod(containers=[istio_proxy()]), "no container of an application"),
}  # fmt: skip
