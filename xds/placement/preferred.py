"""Which members get the active roles while they may have slots (``prefer`` in the spec). Pure.

While one of them may have slots, the preferred members share all slots by their weights, and the others are standbys
and backups. While none may, all members share the slots as in a pool without ``prefer``.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from understudy.statesync.pool.separation import Place
from understudy.statesync.pool.spec import PoolSpec

AFTER_ALL_PREFERRED = 1_000_000
"""Added to the priority of a member that is not preferred: in the line it comes after all that are."""


class PlacedMember(Place, Protocol):
    """A member, and where it runs."""

    @property
    def member(self) -> str:
        """Its name."""


def is_preferred(spec: PoolSpec, one: PlacedMember) -> bool:
    """Whether the spec prefers a member."""
    return spec.prefer is not None and bool(spec.prefer.why(one.member, one))


def preferred(spec: PoolSpec, field: Iterable[PlacedMember]) -> frozenset[str]:
    """The members of ``field`` that the spec prefers; empty if it prefers none of them, or nobody."""
    return frozenset(one.member for one in field if is_preferred(spec, one))


def active_weights(spec: PoolSpec, field: Sequence[PlacedMember], weights: Sequence[int]) -> list[int]:
    """The weights by which the members of ``field`` share the active roles, of their own ``weights``.

    In active_standby one member has them all, so the weights stay; there :func:`priority_in_line` counts.
    """
    chosen = preferred(spec, field)
    if not chosen or spec.mode == "active_standby":
        return list(weights)
    return [weight if one.member in chosen else 0 for one, weight in zip(field, weights, strict=True)]


def priority_in_line(spec: PoolSpec, one: PlacedMember, priority: int) -> int:
    """The place of a member in the line (active_standby), of its own ``priority``; the lowest number comes first."""
    return priority if spec.prefer is None or is_preferred(spec, one) else priority + AFTER_ALL_PREFERRED
