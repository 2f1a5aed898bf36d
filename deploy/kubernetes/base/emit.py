"""Writes YAML for people: documents in the given order, with comments at some fields. Pure.

A :class:`Manifest` is one object with its comments. Its YAML reads back as exactly the same object.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

Body = dict[str, Any]
Path = tuple[str | int, ...]
_PLAIN_LINES = re.compile(r"[!-~][ -~]*(\n+[ -~]*[!-~])*\n[ -~]*[!-~]\n?")
"""Lines that a YAML block can show unchanged: printable, without spaces at an edge that YAML would interpret."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One Kubernetes object. ``about`` is a comment above it; ``notes`` are comments above single fields.

    A note's path is written with dots, as in ``spec.template.spec.containers.0.args``.
    """

    body: Body
    about: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The object's kind."""
        return str(self.body["kind"])

    @property
    def name(self) -> str:
        """The object's name."""
        return str(self.body["metadata"]["name"])


def emit(manifests: Iterable[Manifest]) -> str:
    """The documents of one file."""
    return "---\n".join(document(one) for one in manifests)


def document(manifest: Manifest) -> str:
    """One document. Raises ``KeyError`` for a note whose field is not there."""
    notes = {_path(manifest.body, where): text for where, text in manifest.notes.items()}
    head = [f"# {line}" for line in manifest.about.splitlines()]
    return "\n".join([*head, *_lines(manifest.body, (), notes)]) + "\n"


def _path(body: Body, where: str) -> Path:
    """The parts of a path, with numbers for list entries. A dot within a key is found by the longest existing key."""
    at: Any = body
    path: list[str | int] = []
    rest = where
    while rest:
        if isinstance(at, list):
            head, _, rest = rest.partition(".")
            path.append(int(head))
            at = at[int(head)]
            continue
        key = max((key for key in at if rest == key or rest.startswith(f"{key}.")), key=len, default=None)
        if key is None:
            raise KeyError(f"no field {where!r} to comment on")
        path.append(key)
        at, rest = at[key], rest[len(key) + 1 :]
    return tuple(path)


def _lines(value: Any, path: Path, notes: Mapping[Path, str]) -> Iterator[str]:  # noqa: ANN401 - any YAML value
    entries: Sequence[tuple[str | int, Any]] = list(value.items() if isinstance(value, dict) else enumerate(value))
    for key, entry in entries:
        here = (*path, key)
        yield from (f"# {line}" for line in notes.get(here, "").splitlines())
        nested = list(_lines(entry, here, notes)) if isinstance(entry, dict | list) and entry else []
        if isinstance(key, int):
            yield from _item(entry, nested)
        else:
            yield from _pair(_scalar(key), entry, nested)


def _item(entry: Any, nested: Sequence[str]) -> Iterator[str]:  # noqa: ANN401 - any YAML value
    if not nested:
        yield from _pair("-", entry, [], mark="- ")
        return
    # Comments above the first field of an entry stand above the entry: "- # text" would hide it.
    first = next(number for number, line in enumerate(nested) if not line.startswith("#"))
    yield from nested[:first]
    yield f"- {nested[first]}"
    yield from (f"  {line}" for line in nested[first + 1 :])


def _pair(key: str, entry: Any, nested: Sequence[str], mark: str = "") -> Iterator[str]:  # noqa: ANN401 - any YAML value
    head = mark or f"{key}: "
    if nested:
        yield head.rstrip()
        yield from (f"  {line}" for line in nested)
    elif isinstance(entry, str) and _PLAIN_LINES.fullmatch(entry):
        yield f"{head}|{'' if entry.endswith(chr(10)) else '-'}"
        yield from (f"  {line}" if line else "" for line in entry.removesuffix("\n").split("\n"))
    else:
        yield f"{head}{_scalar(entry)}"


def _scalar(value: Any) -> str:  # noqa: ANN401 - any YAML scalar, or an empty list or mapping
    text: str = yaml.safe_dump(value, width=10_000, allow_unicode=True, default_flow_style=True)
    text = text.removesuffix("\n").removesuffix("\n...")
    if "\n" in text:
        text = yaml.safe_dump(value, width=1_000_000, default_style='"').removesuffix("\n")
    return text
