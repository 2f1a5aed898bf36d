"""The difference between two JSON documents as a JSON patch (RFC 6902). Pure.

Made for a document and its changed copy that shares with it what did not change, which is then not even looked at: 2 us
for a pod of three containers, where the library ``jsonpatch``, which must compare everything, takes 400 (the tests use
it to check this).
A list that grew at its end, or kept its length, is changed item by item; any other list is replaced.
"""

from typing import Any

Operation = dict[str, Any]
"""``op`` (``add``, ``replace``, ``remove``), ``path`` and, but for ``remove``, ``value``."""


def difference(before: object, after: object, path: str = "") -> list[Operation]:
    """The operations that make ``after`` out of ``before``; empty if they are equal."""
    if before is after:
        return []
    if isinstance(before, dict) and isinstance(after, dict):
        return _of_objects(before, after, path)
    if isinstance(before, list) and isinstance(after, list) and len(after) >= len(before):
        return _of_lists(before, after, path)
    same = before == after and isinstance(before, bool) == isinstance(after, bool)
    return [] if same else [{"op": "replace", "path": path, "value": after}]


def _of_objects(before: dict[str, Any], after: dict[str, Any], path: str) -> list[Operation]:
    found: list[Operation] = [{"op": "remove", "path": f"{path}/{_escaped(key)}"} for key in before if key not in after]
    for key, value in after.items():
        at = f"{path}/{_escaped(key)}"
        if key not in before:
            found.append({"op": "add", "path": at, "value": value})
        else:
            found += difference(before[key], value, at)
    return found


def _of_lists(before: list[Any], after: list[Any], path: str) -> list[Operation]:
    found = []
    for at, (old, new) in enumerate(zip(before, after, strict=False)):
        found += difference(old, new, f"{path}/{at}")
    return found + [{"op": "add", "path": f"{path}/-", "value": value} for value in after[len(before) :]]


def _escaped(key: str) -> str:
    """A key as part of a JSON pointer (RFC 6901, section 3)."""
    return key.replace("~", "~0").replace("/", "~1")
