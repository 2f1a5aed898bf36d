"""Whether pods are as careful as they can be: the "restricted" Pod Security Standard, and some habits beside it. Pure.

The standard's rules are those of Kubernetes' own page on it (v1.25 and later, for Linux). Habits: a read-only root,
requests for CPU and memory, a limit of memory, images that do not change under their name, no token that nobody uses.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from understudy.deploy.kubernetes.base.emit import Body
from understudy.deploy.kubernetes.preflight.manifest_index import Workload, workloads

_VOLUMES = frozenset(
    {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
)


def standard_faults(objects: Sequence[Body]) -> list[str]:
    """Where pods break the restricted standard, a line each: a namespace that enforces it refuses them."""
    return [f"{one.where}: {fault}" for one in workloads(objects) for fault in _standard(one)]


def habit_faults(objects: Sequence[Body]) -> list[str]:
    """Where pods are less careful than they could be."""
    found = []
    for one in workloads(objects):
        found += [
            f"{one.where}: container {each['name']} {fault}" for each in one.containers for fault in _habits(each)
        ]
    return found


def _standard(one: Workload) -> Iterator[str]:
    pod = one.pod
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            yield f"{name} is not allowed"
    for volume in pod.get("volumes") or ():
        kinds = set(volume) - {"name"}
        if not kinds <= _VOLUMES:
            yield f"volume {volume['name']}: {', '.join(sorted(kinds - _VOLUMES))} is not allowed"
    of_pod = pod.get("securityContext") or {}
    for container in one.containers:
        own = container.get("securityContext") or {}
        yield from (f"container {container['name']}: {fault}" for fault in _container(own, of_pod, container))


def _container(own: Mapping[str, Any], of_pod: Mapping[str, Any], container: Mapping[str, Any]) -> Iterator[str]:
    if own.get("privileged"):
        yield "privileged is not allowed"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation must be false"
    if own.get("runAsNonRoot", of_pod.get("runAsNonRoot")) is not True:
        yield "runAsNonRoot must be true"
    if own.get("runAsUser", of_pod.get("runAsUser")) == 0:
        yield "runAsUser must not be 0"
    capabilities = own.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or ()):
        yield "capabilities must drop ALL"
    if set(capabilities.get("add") or ()) - {"NET_BIND_SERVICE"}:
        yield "capabilities may add NET_BIND_SERVICE alone"
    profile = own.get("seccompProfile", of_pod.get("seccompProfile")) or {}
    if profile.get("type") not in ("RuntimeDefault", "Localhost"):
        yield "seccompProfile must be RuntimeDefault"
    if any("hostPort" in port for port in container.get("ports") or ()):
        yield "hostPort is not allowed"


def _habits(container: Mapping[str, Any]) -> Iterator[str]:
    if (container.get("securityContext") or {}).get("readOnlyRootFilesystem") is not True:
        yield "can write to its root file system"
    resources = container.get("resources") or {}
    for what in ("cpu", "memory"):
        if what not in (resources.get("requests") or {}):
            yield f"requests no {what}"
    if "memory" not in (resources.get("limits") or {}):
        yield "has no limit of memory"
    image, _, digest = str(container.get("image", "")).partition("@")
    tag = image.rpartition("/")[2].partition(":")[2]
    if not digest and tag in ("", "latest"):
        yield f"has an image that changes under its name: {image}"
