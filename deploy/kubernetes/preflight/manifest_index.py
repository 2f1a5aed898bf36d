"""Finds the pod templates among manifests. Pure; for any manifests, not only ours."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from understudy.deploy.kubernetes.base.emit import Body
from understudy.deploy.kubernetes.preflight.lint_reach import Pod

TEMPLATED = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job")


@dataclass(frozen=True, slots=True)
class Workload:
    """An object that creates pods, with their spec and labels."""

    body: Body
    pod: Mapping[str, Any]
    labels: Mapping[str, str]

    @property
    def where(self) -> str:
        """Its name in messages."""
        return where(self.body)

    @property
    def namespace(self) -> str:
        """The namespace of its pods."""
        return namespace_of(self.body)

    @property
    def replicas(self) -> int:
        """The number of its pods."""
        return int(self.body.get("spec", {}).get("replicas", 1))

    @property
    def containers(self) -> Sequence[Mapping[str, Any]]:
        """All containers, init containers included."""
        return [*(self.pod.get("initContainers") or ()), *(self.pod.get("containers") or ())]

    @property
    def ports(self) -> dict[str, int]:
        """The named ports of all containers."""
        return {
            port["name"]: port["containerPort"]
            for container in self.containers
            for port in container.get("ports") or ()
            if "name" in port
        }

    def as_pod(self) -> Pod:
        """One of its pods, as network policies see it."""
        return Pod(self.namespace, self.labels, self.ports)


def where(body: Body) -> str:
    """Kind, namespace and name, such as ``Deployment understudy/control-cart``."""
    meta = body.get("metadata") or {}
    space = f"{meta['namespace']}/" if meta.get("namespace") else ""
    return f"{body.get('kind', '?')} {space}{meta.get('name', '?')}"


def namespace_of(body: Body) -> str:
    """The namespace of an object; "default" if it names none."""
    return str((body.get("metadata") or {}).get("namespace") or "default")


def workloads(objects: Iterable[Body]) -> Iterator[Workload]:
    """All objects that create pods, and single pods."""
    for body in objects:
        kind = body.get("kind")
        spec = body.get("spec") or {}
        if kind == "CronJob":
            spec = (spec.get("jobTemplate") or {}).get("spec") or {}
        if kind in TEMPLATED or kind == "CronJob":
            template = spec.get("template") or {}
            yield Workload(body, template.get("spec") or {}, (template.get("metadata") or {}).get("labels") or {})
        elif kind == "Pod":
            yield Workload(body, spec, (body.get("metadata") or {}).get("labels") or {})
