"""What a pool may have and do: sessions, bytes, writes a second. Each member enforces its share, by its slots.

A member that is active for a quarter of the slots has a quarter of each limit. So the members together never exceed
it, and none of them has to ask another. Bodies that are being written are not counted yet.
"""

import time

from understudy.proxy.events.counters import Counters
from understudy.proxy.http.problems import Reply, problem
from understudy.proxy.member.local_copies import LocalCopies
from understudy.proxy.ownership.owned_slots import OwnedSlots
from understudy.proxy.sessions.write_rate import WriteRate
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.sessions.session import Session, Stored, WriteRefused

RETRY_AFTER = 1
"""Seconds after which a write that came too fast should be tried again: a full second's worth is there by then."""
SESSIONS, BYTES, WRITES = "too-many-sessions", "too-many-bytes", "too-many-writes"
"""The kinds of refusals."""


class PoolQuotas:
    """Checks writes against this member's share of the pool's limits, and counts what it refuses."""

    def __init__(self, copies: LocalCopies, owned: OwnedSlots, counters: Counters) -> None:
        self._replica = copies.replica
        self._owned = owned
        self._counters = counters
        self._rate = WriteRate()

    def refusal(self, current: Session | None, outcome: Stored, spec: PoolSpec) -> WriteRefused | None:
        """The refusal of a write for what it would store, ``outcome`` in place of ``current``; None if there is room.

        A write that stores fewer bytes than before is never refused, nor is a removal.
        """
        if outcome.status == 201 and current is None and self._sessions_used_up(spec):
            return WriteRefused(507, SESSIONS, _share_text(f"{spec.limits.sessions} sessions (limits.sessions)", spec))
        limit = spec.limits.total_bytes
        if limit is None:
            return None
        grows = len(outcome.session.body) - (len(current.body) if current is not None else 0)
        if grows > 0 and self._bytes_used_up(grows, limit, spec):
            return WriteRefused(507, BYTES, _share_text(f"{limit} bytes of sessions (limits.total_bytes)", spec))
        return None

    def _sessions_used_up(self, spec: PoolSpec) -> bool:
        slots = self._owned.slots
        return used_up(self._replica.count(slots), len(slots), limit=spec.limits.sessions, of=spec.slots)

    def _bytes_used_up(self, more: int, limit: int, spec: PoolSpec) -> bool:
        slots = self._owned.slots
        return used_up(self._replica.body_bytes(slots) + more - 1, len(slots), limit=limit, of=spec.slots)

    def takes(self, spec: PoolSpec) -> bool:
        """Whether one more write is within the pool's writes a second; counts it if it is."""
        limit = spec.limits.writes_per_second
        if limit is None:
            return True
        return self._rate.take(limit * len(self._owned.slots) / spec.slots, time.monotonic())

    def too_fast(self, spec: PoolSpec) -> Reply | None:
        """The answer to a write beyond the pool's writes a second; None, and it is counted, for one within."""
        if self.takes(spec):
            return None
        self.count(WRITES)
        limit = f"{spec.limits.writes_per_second} writes a second (limits.writes_per_second)"
        return problem(429, WRITES, f"{_share_text(limit, spec)}; nothing was done", retry_after=RETRY_AFTER)

    def count(self, kind: str) -> None:
        """Count a refusal, if it is one of a quota."""
        if kind in (SESSIONS, BYTES, WRITES):
            self._counters.over_quota[kind] += 1


def used_up(used: int, owned: int, *, limit: int, of: int) -> bool:
    """Whether a member that owns ``owned`` slots ``of`` a pool's has ``used`` all of its share of ``limit``.

    A share is rounded up. A member without slots has the share of one.
    """
    return used * of >= limit * max(owned, 1)


def _share_text(limit: str, spec: PoolSpec) -> str:
    return f"this member's share of the pool's limit ({limit} for {spec.slots} slots) is used up"
