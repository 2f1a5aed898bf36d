"""Reads manifests from a file, a folder, or a kustomization that 'render' wrote.

It supports the parts of kustomize that our tree uses: resources, components, and strategic merge patches in files. A
test compares the result with ``kubectl kustomize``. Other kustomizations are rejected with a hint.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from understudy.deploy.common.errors import DeployError
from understudy.deploy.kubernetes.base.emit import Body
from understudy.deploy.kubernetes.base.folder import KUSTOMIZATION
from understudy.statesync.parsing.spec_yaml import BadYaml, read_document_file

_KNOWN = {"apiVersion", "kind", "resources", "components", "patches"}
_MERGE_KEYS = ("name", "mountPath", "containerPort", "topologyKey", "key")
"""Fields that identify the entries of a list, in lists that Kubernetes merges entry by entry."""
_MERGED_LISTS = frozenset({"containers", "initContainers", "env", "volumes", "volumeMounts", "ports"})


def load(path: Path) -> list[Body]:
    """All objects of a YAML file or a folder. Raises :class:`DeployError`, which names the file at fault."""
    if not path.exists():
        raise DeployError(f"{path} does not exist: name a file or folder of manifests")
    if path.is_file():
        return list(_file(path))
    if (path / KUSTOMIZATION).exists():
        return _build(path, [])
    found = sorted(one for one in path.rglob("*") if one.suffix in (".yaml", ".yml") and one.is_file())
    if any(one.name == KUSTOMIZATION for one in found):
        overlays = ", ".join(sorted(str(one.parent) for one in found if one.name == KUSTOMIZATION))
        raise DeployError(f"{path} holds several kustomizations: name one of {overlays}")
    if not found:
        raise DeployError(f"{path} holds no YAML files")
    return [body for one in found for body in _file(one)]


def _file(path: Path) -> Iterator[Body]:
    for document in _documents(path):
        listed = document.get("items") if isinstance(document, dict) and document.get("kind") == "List" else [document]
        for body in listed or ():
            named = isinstance(body, dict) and isinstance(body.get("metadata"), dict) and "name" in body["metadata"]
            if not (named and isinstance(body.get("kind"), str) and isinstance(body.get("apiVersion"), str)):
                raise DeployError(f"{path}: a document is not a Kubernetes object (apiVersion, kind and metadata.name)")
            yield body


def _documents(path: Path) -> list[Any]:
    try:
        return read_document_file(path)
    except BadYaml as error:
        raise DeployError(f"{path}: {error}") from None


def _build(folder: Path, objects: list[Body]) -> list[Body]:
    """``objects`` and those of a kustomization, with its patches applied to all of them."""
    file = folder / KUSTOMIZATION
    documents = _documents(file)
    told = documents[0] if len(documents) == 1 else None
    if not isinstance(told, dict):
        raise DeployError(f"{file}: a kustomization is one mapping")
    more = sorted(set(told) - _KNOWN)
    more += [f"patches with {key}" for one in told.get("patches") or () for key in sorted(set(one) - {"path"})]
    if more:
        raise DeployError(
            f"{file} has {', '.join(more)}, which is not supported here: "
            f"'kubectl kustomize {folder} > all.yaml', and name that file"
        )
    for name in told.get("resources") or ():
        at = folder / name
        objects = [*objects, *(_build(at, []) if at.is_dir() else _file(at))]
    for name in told.get("components") or ():
        objects = _build(folder / name, objects)
    for patch in told.get("patches") or ():
        for change in _file(folder / patch["path"]):
            objects = _patched(objects, change, folder / patch["path"])
    return objects


def _patched(objects: list[Body], change: Body, file: Path) -> list[Body]:
    hit = [number for number, one in enumerate(objects) if _identity(one) == _identity(change)]
    if not hit:
        raise DeployError(f"{file}: patches {change['kind']} {change['metadata']['name']}, which does not exist")
    return [merged(one, change) if number in hit else one for number, one in enumerate(objects)]


def _identity(body: Body) -> tuple[str, str, str]:
    meta = body["metadata"]
    return str(body["kind"]), str(meta.get("namespace", "")), str(meta["name"])


def merged(old: Mapping[str, Any], change: Mapping[str, Any]) -> Body:
    """A strategic merge: mappings and known lists are merged, everything else is replaced."""
    result = dict(old)
    for key, value in change.items():
        before = result.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            result[key] = merged(before, value)
        elif key in _MERGED_LISTS and isinstance(value, list) and isinstance(before, list):
            result[key] = _merged_list(before, value)
        else:
            result[key] = value
    return result


def _merged_list(before: list[Body], change: list[Body]) -> list[Body]:
    """Entries with the same key are merged; new ones come first, as in kustomize."""
    mark = next((key for key in _MERGE_KEYS if all(key in entry for entry in [*before, *change])), None)
    if mark is None:
        return change
    old = {entry[mark]: entry for entry in before}
    new = {entry[mark]: entry for entry in change}
    fresh = [entry for name, entry in new.items() if name not in old]
    return [*fresh, *(merged(entry, new[name]) if name in new else entry for name, entry in old.items())]
