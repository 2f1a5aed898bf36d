"""Parts that all workloads share: metadata, security contexts, probes, variables. Pure.

Everything meets the "restricted" Pod Security Standard, which our namespaces enforce.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from understudy.deploy.kubernetes.base.emit import Body

USER = 65532
"""The user id of all containers: not root, and the usual one of distroless images."""


def meta(name: str, namespace: str, labels: Mapping[str, str]) -> Body:
    """Metadata of an object in a namespace."""
    return {"name": name, "namespace": namespace, "labels": dict(labels)}


def service_account(name: str, namespace: str, labels: Mapping[str, str]) -> Body:
    """A service account without a mounted token, for pods that do not use the Kubernetes API."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": meta(name, namespace, labels),
        "automountServiceAccountToken": False,
    }


def disruption_budget(name: str, namespace: str, labels: Mapping[str, str], match: Mapping[str, str]) -> Body:
    """A disruption budget: at most one of these pods may be evicted at a time."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": meta(name, namespace, labels),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": dict(match)}},
    }


def pod_security() -> Body:
    """The security context of a pod."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> Body:
    """The security context of a container: it can write only to its volumes, and cannot gain privileges."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def spread(match: Mapping[str, str]) -> list[Body]:
    """Spread over zones if there are any, and over nodes if there are enough."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": dict(match)},
        }
        for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    ]


def apart(match: Mapping[str, str]) -> Body:
    """Anti-affinity: no two of these on one node."""
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": dict(match)}}
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def rather_apart(match: Mapping[str, str]) -> Body:
    """Anti-affinity that is ignored if there are fewer nodes than pods."""
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": dict(match)}}
    weighted = {"weight": 100, "podAffinityTerm": term}
    return {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [weighted]}}


def pod_template(
    labels: Mapping[str, str],
    *,
    account: str,
    containers: Sequence[Body],
    volumes: Sequence[Body] = (),
    grace: int = 30,
    match: Mapping[str, str] | None = None,
    token: bool = False,
    restart: str = "",
    security: Body | None = None,
) -> Body:
    """The template of a workload's pods.

    Args:
        labels: of each pod.
        account: the name of its service account.
        containers: its containers.
        volumes: its volumes.
        grace: seconds from the order to end to the kill.
        match: labels of the pods that are to be spread; None for pods that may stand where they like.
        token: whether it asks something of the Kubernetes API.
        restart: the restart policy, where it is not the usual one.
        security: the pod's security context, where it is not :func:`pod_security`.
    """
    return {
        "metadata": {"labels": dict(labels)},
        "spec": {
            "serviceAccountName": account,
            "automountServiceAccountToken": token,
            "enableServiceLinks": False,
            **({"restartPolicy": restart} if restart else {}),
            "terminationGracePeriodSeconds": grace,
            "securityContext": security or pod_security(),
            **({"affinity": rather_apart(match), "topologySpreadConstraints": spread(match)} if match else {}),
            "containers": list(containers),
            **({"volumes": list(volumes)} if volumes else {}),
        },
    }


def http_probe(path: str, port: str | int, *, period: int, failures: int, timeout: int = 2) -> Body:
    """An HTTP probe of a port by name or number; times in seconds."""
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    }


def resources(cpu: str, memory: str, *, limit: str) -> Body:
    """Requests, and a memory limit. There is no CPU limit: a throttled process looks dead to others."""
    return {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": limit}}


def from_field(name: str, field: str) -> Body:
    """A variable from the Downward API."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": field}}}


def from_config(name: str, config: str, key: str) -> Body:
    """A variable from a ConfigMap."""
    return {"name": name, "valueFrom": {"configMapKeyRef": {"name": config, "key": key}}}


def port(name: str, number: int) -> Body:
    """A named port of a container."""
    return {"name": name, "containerPort": number, "protocol": "TCP"}


def service(
    name: str,
    namespace: str,
    labels: Mapping[str, str],
    match: Mapping[str, str],
    ports: Mapping[str, int],
    **more: Any,  # noqa: ANN401 - further fields of the spec
) -> Body:
    """A Service whose ports lead to the container ports of the same names."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta(name, namespace, labels),
        "spec": {
            **more,
            "selector": dict(match),
            "ports": [
                {"name": part, "port": number, "targetPort": part, "protocol": "TCP"} for part, number in ports.items()
            ],
        },
    }


SCRATCH = "/tmp"  # noqa: S108 - a volume of the pod's own
SCRATCH_VOLUME = "tmp"


def scratch_volume() -> Body:
    """A small volume for temporary files of libraries."""
    return {"name": SCRATCH_VOLUME, "emptyDir": {"sizeLimit": "64Mi"}}


def scratch_mount() -> Body:
    """Where a container mounts the :func:`scratch_volume`."""
    return {"name": SCRATCH_VOLUME, "mountPath": SCRATCH}
