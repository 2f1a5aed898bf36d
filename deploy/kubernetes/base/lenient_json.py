"""Reads documents of unknown shape, and says where and what is wrong. Pure.

Kubernetes passes on what its schema allows, files may contain anything. Each field is checked when it is read; other
fields are not checked.
"""

from collections.abc import Iterable
from typing import Any

Body = dict[str, Any]
"""A JSON object."""


class InjectionRefused(Exception):
    """A pod that cannot have a sidecar. ``faults`` has a line per reason: where, what, and what to do."""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def mapping(parent: Body, key: str, where: str) -> Body:
    """``parent[key]``, an object; {} if it is missing or null. Raises :class:`InjectionRefused`."""
    value = parent.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InjectionRefused(f"{where}.{key}: must be an object, not {_kind(value)}")
    return value


def objects(parent: Body, key: str, where: str) -> list[Body]:
    """``parent[key]``, objects whose names are texts; [] if it is missing. Raises :class:`InjectionRefused`."""
    value = parent.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InjectionRefused(f"{where}.{key}: must be a list of objects, not {_kind(value)}")
    for at, item in enumerate(value):
        text(item, "name", f"{where}.{key}[{at}]")
    return value


def texts(parent: Body, key: str, where: str) -> dict[str, str]:
    """``parent[key]``, texts by name, as labels and annotations are. Raises :class:`InjectionRefused`."""
    value = mapping(parent, key, where)
    wrong = [name for name, text in value.items() if not isinstance(text, str)]
    if wrong:
        raise InjectionRefused(
            f"{where}.{key}.{wrong[0]}: must be a text, not {_kind(value[wrong[0]])}: put it in quotes"
        )
    return value


def text(parent: Body, key: str, where: str) -> str:
    """``parent[key]``, a text; '' if it is missing or null. Raises :class:`InjectionRefused`."""
    value = parent.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InjectionRefused(f"{where}.{key}: must be a text, not {_kind(value)}")
    return value


def number(value: object) -> int | None:
    """A whole number that is not a boolean; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def names_of(items: Iterable[Body]) -> list[str]:
    """The names of containers, volumes and so on; entries without a name are left out."""
    return [item["name"] for item in items if isinstance(item.get("name"), str)]


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
