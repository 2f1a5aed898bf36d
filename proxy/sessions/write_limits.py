"""Writes that an owner does not take because it cannot keep up: its commits lag behind, or too much waits."""

import time

from msgspec.structs import replace

from understudy.proxy.events.counters import Counters
from understudy.proxy.http.problems import Reply, problem
from understudy.proxy.member.local_copies import LocalCopies
from understudy.proxy.ownership.active_slots import ActiveSlots
from understudy.proxy.sessions.session_locks import SessionLocks
from understudy.statesync.pool.priority import Priority
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.sessions.commit import Committer
from understudy.statesync.sessions.session import Write

RETRY_AFTER = 1
"""Seconds after which a client should try again what could not be done now."""


class WriteLimits:
    """Checks a write against the queue of commits, and the pool's limits on what waits."""

    def __init__(
        self,
        committer: Committer,
        locks: SessionLocks,
        copies: LocalCopies,
        active: ActiveSlots,
        counters: Counters,
    ) -> None:
        self._committer = committer
        self._locks = locks
        self._copies = copies
        self._active = active
        self._counters = counters

    def lags(self, spec: PoolSpec, *, from_memory: bool = False, priority: Priority = "normal") -> bool:
        """Whether commits lag behind, so that a write that begins a session would be refused."""
        return bool(self._why(spec, new=True, from_memory=from_memory, priority=priority))

    def overload(self, spec: PoolSpec, *, new: bool, from_memory: bool, priority: Priority) -> Reply | None:
        """The answer to a write that is not taken in because commits lag behind (``backpressure``).

        ``from_memory``: the write is answered before it is committed, so late commits do not matter to it.
        """
        why = self._why(spec, new=new, from_memory=from_memory, priority=priority)
        if not why:
            return None
        if new:
            self._counters.refused_new += 1
        else:
            self._counters.refused_writes += 1
        return problem(503, "overloaded", why, retry_after=RETRY_AFTER)

    def _why(self, spec: PoolSpec, *, new: bool, from_memory: bool, priority: Priority) -> str:
        unsaved = self._active.exposure.bytes
        if unsaved > spec.limits.unsaved_bytes:
            return f"{unsaved} bytes of sessions wait for etcd, more than this pool's limits.unsaved_bytes"
        if from_memory:
            return ""
        now = self._committer.pressure(time.monotonic())
        waiting = replace(now, writes=now.writes + self._locks.waiting) if self._locks.waiting else now
        return waiting.refusal(new=new, bound=spec.limits.queued_writes, priority=priority)

    def too_many_requests(self, write: Write, spec: PoolSpec) -> Reply | None:
        """The answer to a write whose outcome cannot be kept: without it, a copy of the request might act again."""
        if write.request is None or len(self._copies.requests) < spec.limits.requests:
            return None
        self._counters.refused_writes += 1
        detail = (
            f"the outcomes of {spec.limits.requests} requests are kept, as many as this pool's limits.requests allows"
        )
        return problem(503, "overloaded", detail, retry_after=RETRY_AFTER)
