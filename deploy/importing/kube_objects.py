"""Kubernetes objects from YAML or JSON text, and their fields, read with checks. Pure."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from understudy.deploy.importing.findings import ImportFault, Place
from understudy.statesync.parsing.spec_yaml import FILE_MOST, BadYaml, read_documents
from understudy.statesync.parsing.stored import read_object

_TEXT_MOST = 60


@dataclass(frozen=True, slots=True)
class Field:
    """A field of an object: where it stands, its path, and its value; None if there is none."""

    place: Place
    path: str
    value: Any

    def at(self, *names: str) -> "Field":
        """The field of this path below. Raises :class:`ImportFault` if something on the way is no mapping."""
        found = self
        for name in names:
            inner = found._of(dict, "a mapping").get(name) if found.value is not None else None
            found = Field(self.place, f"{found.path}.{name}" if found.path else name, inner)
        return found

    def entries(self) -> list["Field"]:
        """The entries of a list; none if there is no list."""
        if self.value is None:
            return []
        items = self._of(list, "a list")
        return [Field(self.place, f"{self.path}[{number}]", item) for number, item in enumerate(items)]

    def names(self) -> list[str]:
        """The keys of a mapping."""
        return [] if self.value is None else [str(name) for name in self._of(dict, "a mapping")]

    def text(self) -> str:
        """A text; '' if there is none."""
        return "" if self.value is None else str(self._of(str, "a text"))

    def scalar(self) -> str:
        """A text, a number or a truth value, as text; '' if there is none."""
        if isinstance(self.value, dict | list):
            raise self._fault("a single value")
        if isinstance(self.value, bool):
            return str(self.value).lower()
        return "" if self.value is None else str(self.value)

    def is_true(self) -> bool:
        """Whether a truth value is given and true."""
        return self.value is not None and bool(self._of(bool, "true or false"))

    def __bool__(self) -> bool:
        """Whether there is a value."""
        return self.value is not None

    def setting(self) -> str:
        """The field as the input has it, for remarks: ``spec.host: cart``."""
        return self.path if isinstance(self.value, dict | list) else f"{self.path}: {self.scalar()}"

    def _of(self, kind: type, name: str) -> Any:  # noqa: ANN401 - a value from YAML
        if not isinstance(self.value, kind):
            raise self._fault(name)
        return self.value

    def _fault(self, wanted: str) -> ImportFault:
        return ImportFault(f"{self.place}: {self.path or 'the document'}: not {wanted}, but {_brief(self.value)}")


@dataclass(frozen=True, slots=True)
class KubeObject:
    """A Kubernetes object. ``group`` is its API group, '' for the core one."""

    place: Place
    group: str
    kind: str
    name: str
    namespace: str
    body: Field

    def annotations(self) -> Field:
        """Its annotations."""
        return self.body.at("metadata", "annotations")

    def labels(self) -> Field:
        """Its labels."""
        return self.body.at("metadata", "labels")


def read_objects(text: str, file: str) -> list[KubeObject]:
    """All objects of a text, also those in lists. Raises :class:`ImportFault`, which names the place."""
    try:
        documents = _documents(text)
    except BadYaml as error:
        hint = ". Is it a Helm template? Render it first: helm template CHART | understudy import -" * ("{{" in text)
        raise ImportFault(f"{file}: {error}{hint}") from None
    return [
        _object(item)
        for number, document in enumerate(documents, 1)
        for item in _items(Field(Place(file, document=number), "", document))
    ]


def _documents(text: str) -> list[Any]:
    """The documents of a text. JSON, as large clusters have it, is read a hundred times as fast as YAML."""
    if text.lstrip().startswith("{") and len(text) <= FILE_MOST:
        with contextlib.suppress(ValueError):  # then the other reader says what is wrong, and where
            return [read_object(text)]
    return read_documents(text)


def _items(document: Field) -> list[Field]:
    """The objects in a document: one, or those of a list."""
    kind = document.at("kind").text()
    if not kind.endswith("List"):
        return [document]
    return [Field(replace(document.place, item=item.path), "", item.value) for item in document.at("items").entries()]


def _object(document: Field) -> KubeObject:
    kind, version = document.at("kind").text(), document.at("apiVersion").text()
    if not kind or not version:
        raise ImportFault(f"{document.place}: not a Kubernetes object: it has no apiVersion or no kind")
    name = document.at("metadata", "name").text()
    namespace = document.at("metadata", "namespace").text()
    place = replace(document.place, item=f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}")
    group = version.rpartition("/")[0]
    return KubeObject(place, group, kind, name, namespace, Field(place, "", document.value))


def single(objects: Sequence[KubeObject], kind: str, namespace: str, name: str) -> KubeObject | None:
    """The object of this kind and name; None if the input does not have it."""
    return next((one for one in objects if (one.kind, one.namespace, one.name) == (kind, namespace, name)), None)


def _brief(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _TEXT_MOST else f"{shown[:_TEXT_MOST]}..."
