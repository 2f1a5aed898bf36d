"""What is gone from the content and must stay with a client for now. Pure; times are monotonic ns.

A name may go once the client has acknowledged everything that used it, and has had time for the requests that were
under way. Every name has a time of its own: a removal that went through says nothing of the next one.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from understudy.xds.server.snapshot import Resource
from understudy.xds.server.stream_config import Pace

FOREVER = (1 << 63) - 1
SECOND = 1_000_000_000


class Going(NamedTuple):
    """One name that is to go: ``since`` when, and since when nothing at the client uses it (None: not known yet)."""

    since: int
    unused: int | None = None


class Users(NamedTuple):
    """How a client stands with the types that may use what is to go.

    Attributes:
        current: it has acknowledged all their content as it is now.
        refused: it refuses some of their content on this stream, so it keeps older content that may use the names.
        refused_beside: the same on another stream of its node id, which may be another client's.
    """

    current: bool
    refused: bool = False
    refused_beside: bool = False


def follow(going: Mapping[str, Going], gone: Iterable[str], users: Users, now_ns: int) -> dict[str, Going]:
    """The names that are to go now: new ones begin to wait, and names that are back are forgotten."""
    unused_now = users.current and not users.refused and not users.refused_beside
    found = {}
    for name in gone:
        one = going.get(name) or Going(now_ns)
        found[name] = one._replace(unused=now_ns) if unused_now and one.unused is None else one
    return found


def kept(going: Mapping[str, Going], users: Users, pace: Pace, now_ns: int) -> tuple[frozenset[str], int]:
    """The names that must stay for now, and when the first of them may go (``FOREVER``: no time is set)."""
    ends = {name: _end(one, users, pace) for name, one in going.items()}
    left = {name: end for name, end in ends.items() if end > now_ns}
    return frozenset(left), min(left.values(), default=FOREVER)


def _end(one: Going, users: Users, pace: Pace) -> int:
    linger = round(pace.removal_linger * SECOND)
    if one.unused is not None:
        return one.unused + linger
    if users.refused:
        return FOREVER
    limit = max(pace.removal_limit, pace.beside_limit) if users.refused_beside else pace.removal_limit
    return one.since + round(limit * SECOND) + linger


def never_named(unnamed: frozenset[str], roots: Collection[str], clusters: Mapping[str, Resource]) -> frozenset[str]:
    """Those of the clusters that nothing uses, now that ``roots`` (clusters) and all that they name are in use."""
    left = unnamed
    todo = list(roots)
    while todo and left:
        name = todo.pop()
        left -= {name}
        resource = clusters.get(name)
        if resource is not None:
            todo.extend(aim for aim in resource.points_at.clusters if aim in left)
    return left
