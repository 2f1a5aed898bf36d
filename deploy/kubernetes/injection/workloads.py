"""Adds sidecars to pods and workloads in files. Pure.

YAML is read as kubectl reads it, not as YAML 1.1: ``22:22`` and ``2026-01-01`` are texts.
"""

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from understudy.deploy.kubernetes.base.injection_settings import InjectionSettings
from understudy.deploy.kubernetes.base.lenient_json import Body, InjectionRefused, mapping, objects, texts
from understudy.deploy.kubernetes.base.names import INJECT, POOL
from understudy.deploy.kubernetes.injection.annotations import PREFIX
from understudy.deploy.kubernetes.injection.pod import inject
from understudy.statesync.parsing.spec_yaml import BadYaml, BoundedLoader, read_documents
from understudy.statesync.parsing.stored import read_json

_TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "Pod": (),
    **dict.fromkeys(("Deployment", "StatefulSet", "ReplicaSet", "ReplicationController", "Job"), ("spec", "template")),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}
"""The path to the pod in each kind. DaemonSets are left out: requests are not spread over their pods."""


_LINE_ENDS = re.compile("[\x85\u2028\u2029]")
"""Line ends in YAML 1.1 only."""
_FOREIGN = {f"tag:yaml.org,2002:{kind}" for kind in ("timestamp", "int", "float")}


class UnreadableFile(ValueError):
    """A file that is not a list of Kubernetes objects; the text says why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result for one object: ``kind/name``, whether it got a sidecar, and notes for its owner."""

    name: str
    injected: bool
    notes: tuple[str, ...] = ()


def read_objects(text: str, where: str) -> list[Body]:
    """All objects in YAML or JSON text. Raises :class:`UnreadableFile`."""
    try:
        documents = _parsed(text)
    except BadYaml as error:
        raise UnreadableFile(f"{where}: {error}") from None
    for number, document in enumerate(documents, 1):
        if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
            raise UnreadableFile(f"{where}: document {number} is not a Kubernetes object: it has no kind")
    return documents


def _parsed(text: str) -> list[Any]:
    """The documents in a text. JSON is read as JSON, since PyYAML splits escaped characters beyond 16 bits in two."""
    if text.lstrip().startswith("{"):
        with contextlib.suppress(ValueError):
            return [read_json(text)]
    return read_documents(text, _Loader)


def write_objects(documents: list[Body], output: str) -> str:
    """Objects as ``yaml`` documents or ``json``; several objects are a List in JSON."""
    if output == "json":
        whole = documents[0] if len(documents) == 1 else {"apiVersion": "v1", "kind": "List", "items": documents}
        return json.dumps(whole, indent=2) + "\n"
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**16)


def inject_objects(
    documents: list[Body], settings: InjectionSettings, *, pool: str = ""
) -> tuple[list[Body], list[Outcome]]:
    """The objects with sidecars in their pods, and a result for each object, also for those inside Lists.

    A workload gets a sidecar if it names a pool, or ``pool`` names one for all, and its label is not "false".
    Raises :class:`InjectionRefused`, each fault with the object's name.
    """
    outcomes: list[Outcome] = []
    faults: list[str] = []
    done = [_inject(document, settings, pool, outcomes, faults) for document in documents]
    if faults:
        raise InjectionRefused(*faults)
    return done, outcomes


def _inject(document: Body, settings: InjectionSettings, pool: str, outcomes: list[Outcome], faults: list[str]) -> Body:
    if document.get("kind") == "List":
        items = objects(document, "items", "List")
        return {**document, "items": [_inject(item, settings, pool, outcomes, faults) for item in items]}
    name = f"{document.get('kind')}/{mapping(document, 'metadata', 'object').get('name', '')}"
    path = _TEMPLATES.get(str(document.get("kind")))
    if path is None:
        outcomes.append(Outcome(name, injected=False))
        return document
    try:
        pod = document
        for key in path:
            pod = mapping(pod, key, name)
        wanted = _for_pool(pod, pool)
        if wanted is None:
            outcomes.append(Outcome(name, injected=False, notes=(f"names no pool, or is labelled {INJECT}: 'false'",)))
            return document
        injected = inject(wanted, settings)
    except InjectionRefused as refused:
        faults += [f"{name}: {fault}" for fault in refused.faults]
        return document
    outcomes.append(Outcome(name, injected=True, notes=injected.warnings))
    return _replaced(document, path, injected.pod)


def _for_pool(pod: Body, pool: str) -> Body | None:
    """The pod with its pool; None if it gets no sidecar. Raises :class:`InjectionRefused`."""
    metadata = mapping(pod, "metadata", "pod")
    labels, annotations = texts(metadata, "labels", "metadata"), texts(metadata, "annotations", "metadata")
    if labels.get(INJECT, "true") != "true":
        return None
    if POOL in labels or any(name.startswith(PREFIX) for name in annotations):
        return (
            pod if POOL in labels or POOL in annotations or not pool else _annotated(pod, metadata, annotations, pool)
        )
    return _annotated(pod, metadata, annotations, pool) if pool else None


def _annotated(pod: Body, metadata: Body, annotations: Mapping[str, str], pool: str) -> Body:
    return {**pod, "metadata": {**metadata, "annotations": {**annotations, POOL: pool}}}


def _replaced(document: Body, path: tuple[str, ...], pod: Body) -> Body:
    if not path:
        return pod
    return {**document, path[0]: _replaced(document[path[0]], path[1:], pod)}


class _Loader(BoundedLoader):
    """A bounded loader without the scalars that Kubernetes does not know: dates, and numbers to base 60."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as the parent has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _FOREIGN]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0[0-7]+|0x[0-9a-fA-F]+|0|[1-9][0-9]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


class _Dumper(yaml.SafeDumper):
    """A safe dumper without references: equal values are written twice."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ANN401, ARG002 - PyYAML's signature
        """Never a reference."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """A text, in quotes if kubectl would otherwise read it as a number or boolean (1e3, 089, y)."""
    doubtful = re.match(r"[-+.]?[0-9]|[yYnN]$", text)
    style = '"' if _LINE_ENDS.search(text) else "'" if doubtful else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
