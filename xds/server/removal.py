"""Decides how long a client keeps names that are gone from the content. Pure; times are monotonic ns.

A name is removed once the client has acknowledged all resources that used it, and has had time for the requests that
were under way. Every name has its own time: one removal says nothing about the next one.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from understudy.xds.server.snapshot import Resource
from understudy.xds.server.stream_config import StreamTimeouts

FOREVER = (1 << 63) - 1
SECOND = 1_000_000_000


class PendingRemoval(NamedTuple):
    """One name to remove: ``since`` when, and since when nothing at the client uses it (None: not known yet)."""

    since: int
    unused: int | None = None


class Dependents(NamedTuple):
    """How far a client is with the types that may use the names to remove.

    Attributes:
        current: it has acknowledged all their present content.
        refused: it rejects some of their content on this stream, so it keeps older content that may use the names.
        refused_beside: the same on another stream of its node id, which may belong to another client.
    """

    current: bool
    refused: bool = False
    refused_beside: bool = False


def follow(
    removals: Mapping[str, PendingRemoval], gone: Iterable[str], dependents: Dependents, now_ns: int
) -> dict[str, PendingRemoval]:
    """The names to remove now: new ones begin to wait, and names that exist again are forgotten."""
    unused_now = dependents.current and not dependents.refused and not dependents.refused_beside
    found = {}
    for name in gone:
        one = removals.get(name) or PendingRemoval(now_ns)
        found[name] = one._replace(unused=now_ns) if unused_now and one.unused is None else one
    return found


def kept(
    removals: Mapping[str, PendingRemoval], dependents: Dependents, timeouts: StreamTimeouts, now_ns: int
) -> tuple[frozenset[str], int]:
    """The names that must stay for now, and when the first of them may be removed (``FOREVER``: not known)."""
    ends = {name: _end(one, dependents, timeouts) for name, one in removals.items()}
    left = {name: end for name, end in ends.items() if end > now_ns}
    return frozenset(left), min(left.values(), default=FOREVER)


def _end(one: PendingRemoval, dependents: Dependents, timeouts: StreamTimeouts) -> int:
    linger = round(timeouts.removal_linger * SECOND)
    if one.unused is not None:
        return one.unused + linger
    if dependents.refused:
        return FOREVER
    limit = (
        max(timeouts.removal_timeout, timeouts.sibling_timeout)
        if dependents.refused_beside
        else timeouts.removal_timeout
    )
    return one.since + round(limit * SECOND) + linger


def never_named(unnamed: frozenset[str], roots: Collection[str], clusters: Mapping[str, Resource]) -> frozenset[str]:
    """The clusters that nothing uses, now that ``roots`` (clusters) and all clusters that they name are in use."""
    left = unnamed
    todo = list(roots)
    while todo and left:
        name = todo.pop()
        left -= {name}
        resource = clusters.get(name)
        if resource is not None:
            todo.extend(aim for aim in resource.points_at.clusters if aim in left)
    return left
