"""Splits a large delta response, for clients with a limit on the size of messages. Pure.

Only delta responses can be split: each part is a complete delta response. In state of the world a response for clusters
or listeners is the whole set, and names that are missing from it are deleted.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from understudy.xds.server.responses import Response
from understudy.xds.server.snapshot import Resource

# The most bytes around a resource and around a removed name: tags, lengths, version, time to live.
_AROUND_RESOURCE = 64
_AROUND_NAME = 12

_Item = TypeVar("_Item")


def parts_of(response: Response, limit: int) -> tuple[Response, ...]:
    """The response in parts of about ``limit`` bytes at most; remembered, so that streams share the parts."""
    found = response.cut.get(limit)
    if found is None:
        found = response.cut[limit] = _cut(response, limit)
    return found


def _cut(response: Response, limit: int) -> tuple[Response, ...]:
    batches = batched(response.resources, limit, _size_of_resource)
    names = batched(response.removed, limit, _size_of_name)
    if len(batches) + len(names) <= 1:
        return (response,)
    if len(batches) == len(names) == 1 and _fits(response, limit):
        return (response,)
    parts = [_part(response, batch, ()) for batch in batches]
    parts += [_part(response, (), batch) for batch in names]
    return tuple(parts)


def _fits(response: Response, limit: int) -> bool:
    return sum(map(_size_of_resource, response.resources)) + sum(map(_size_of_name, response.removed)) <= limit


def _part(response: Response, resources: tuple[Resource, ...], removed: tuple[str, ...]) -> Response:
    names = frozenset(one.name for one in resources)
    return replace(
        response,
        resources=resources,
        removed=removed,
        changed=response.changed & names,
        added=response.added & names,
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
