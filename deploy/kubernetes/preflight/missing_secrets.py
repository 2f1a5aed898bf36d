"""Which Secrets must be created before the manifests are applied. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from understudy.deploy.kubernetes.base.emit import Body
from understudy.deploy.kubernetes.preflight.manifest_index import Workload, namespace_of, workloads


def missing_secrets(objects: Sequence[Body]) -> list[str]:
    """The Secrets that workloads need and that are not among the objects, each as ``namespace/name``."""
    there = {(namespace_of(body), str(body["metadata"]["name"])) for body in objects if body["kind"] == "Secret"}
    wanted = {(one.namespace, name) for one in workloads(objects) for name in _secrets(one)}
    return sorted("/".join(secret) for secret in wanted - there)


def _secrets(one: Workload) -> Iterator[str]:
    """The names of all Secrets that a pod needs to start."""
    for volume in one.pod.get("volumes") or ():
        for source in (volume, *((volume.get("projected") or {}).get("sources") or ())):
            yield from _required(source.get("secret"))
    for container in one.containers:
        for variable in container.get("env") or ():
            yield from _required((variable.get("valueFrom") or {}).get("secretKeyRef"))
        for source in container.get("envFrom") or ():
            yield from _required(source.get("secretRef"))


def _required(reference: Mapping[str, Any] | None) -> Iterator[str]:
    if reference and not reference.get("optional"):
        yield reference.get("secretName") or reference["name"]
