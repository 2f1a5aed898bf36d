"""What all workloads share: metadata, security contexts, probes, variables. Pure.

Everything here meets the "restricted" Pod Security Standard, which the namespaces demand.
"""

from collections.abc import Mapping
from typing import Any

from deploy.kubernetes.emit import Body

USER = 65532
"""The user of all containers: not root, and the number that distroless images use for it."""


def meta(name: str, namespace: str, labels: Mapping[str, str]) -> Body:
    """Metadata of an object in a namespace."""
    return {"name": name, "namespace": namespace, "labels": dict(labels)}


def service_account(name: str, namespace: str, labels: Mapping[str, str]) -> Body:
    """An account whose token is not mounted: what uses it asks nothing of the API server."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": meta(name, namespace, labels),
        "automountServiceAccountToken": False,
    }


def disruption_budget(name: str, namespace: str, labels: Mapping[str, str], match: Mapping[str, str]) -> Body:
    """At most one pod of these may be evicted at a time."""
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
    """The security context of a container: nothing to write to but its volumes, no way to more rights."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def spread(match: Mapping[str, str]) -> list[Body]:
    """Over zones as far as there are any, and over nodes without exception where there are enough."""
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
    """Anti-affinity that gives way when there are fewer nodes than pods."""
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": dict(match)}}
    weighted = {"weight": 100, "podAffinityTerm": term}
    return {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [weighted]}}


def http_probe(path: str, port: str, *, period: int, failures: int, timeout: int = 2) -> Body:
    """An HTTP probe of a named port; times in seconds."""
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    }


def resources(cpu: str, memory: str, *, limit: str) -> Body:
    """Requests, and a limit of memory alone: one of CPU would stop a busy process, which others take for dead."""
    return {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": limit}}


def from_field(name: str, field: str) -> Body:
    """A variable out of the Downward API."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": field}}}


def from_config(name: str, config: str, key: str) -> Body:
    """A variable out of a ConfigMap."""
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
    """A small volume for what libraries write to the temporary directory."""
    return {"name": SCRATCH_VOLUME, "emptyDir": {"sizeLimit": "64Mi"}}


def scratch_mount() -> Body:
    """Where a container has the :func:`scratch_volume`."""
    return {"name": SCRATCH_VOLUME, "mountPath": SCRATCH}
