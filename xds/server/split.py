"""Cuts a large delta answer into parts that clients with a limit on the size of messages can take. Pure.

Only delta answers may be cut at will: each part is a complete delta response. In state of the world an answer for
clusters or listeners is the whole set, and what is missing from it is deleted.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from understudy.xds.server.snapshot import Resource
from understudy.xds.server.subscription import Answer

# What surrounds a resource and a removed name in a response, at most: tags, lengths, version, time to live.
_AROUND_RESOURCE = 64
_AROUND_NAME = 12

_Item = TypeVar("_Item")


def parts_of(answer: Answer, limit: int) -> tuple[Answer, ...]:
    """The answer in parts of about ``limit`` bytes at most; remembered, so that streams share the parts."""
    found = answer.cut.get(limit)
    if found is None:
        found = answer.cut[limit] = _cut(answer, limit)
    return found


def _cut(answer: Answer, limit: int) -> tuple[Answer, ...]:
    batches = batched(answer.resources, limit, _size_of_resource)
    names = batched(answer.removed, limit, _size_of_name)
    if len(batches) + len(names) <= 1:
        return (answer,)
    if len(batches) == len(names) == 1 and _fits(answer, limit):
        return (answer,)
    parts = [_part(answer, batch, ()) for batch in batches]
    parts += [_part(answer, (), batch) for batch in names]
    return tuple(parts)


def _fits(answer: Answer, limit: int) -> bool:
    return sum(map(_size_of_resource, answer.resources)) + sum(map(_size_of_name, answer.removed)) <= limit


def _part(answer: Answer, resources: tuple[Resource, ...], removed: tuple[str, ...]) -> Answer:
    names = frozenset(one.name for one in resources)
    return replace(
        answer,
        resources=resources,
        removed=removed,
        changed=answer.changed & names,
        added=answer.added & names,
        cut={},
    )


def batched(items: Iterable[_Item], limit: int, size: Callable[[_Item], int]) -> list[tuple[_Item, ...]]:
    """The items in order, in batches whose sizes add up to ``limit`` at most; a larger item is alone in its batch."""
    batches: list[list[_Item]] = []
    room = 0
    for item in items:
        needed = size(item)
        if not batches or needed > room:
            batches.append([])
            room = limit
        batches[-1].append(item)
        room -= needed
    return [tuple(batch) for batch in batches]


def _size_of_resource(resource: Resource) -> int:
    return len(resource.packed) + len(resource.name.encode()) + len(resource.version) + _AROUND_RESOURCE


def _size_of_name(name: str) -> int:
    return len(name.encode()) + _AROUND_NAME
