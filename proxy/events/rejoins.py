"""How other members get copies of this member's slots anew: a span for each process, from its first slot to its last.

The span belongs to the trace of the takeover after which the copies were missing. If there was none lately, nothing is
recorded.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from understudy.statesync.pool.records import FailoverRecord
from understudy.statesync.pool.state import PoolState
from understudy.statesync.replication.sync_set import Process
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.ids import TraceIds, TraceparentError
from understudy.telemetry.tracing.setup import Attributes, Telemetry

SETTLED_AFTER = 1.0
"""Seconds without another slot after which a process has rejoined."""
LATELY = 300.0
"""Seconds after a takeover in which a process that gets copies replaces those that were lost by it."""


def takeover_before(state: PoolState, member: str, now: float) -> TraceIds | None:
    """The trace of the takeover because of which ``member`` gets copies; None if there was none lately.

    It is the newest takeover from that member, or else from a member that is still away. Its root span is known from
    the owner records that it wrote. ``now`` is wall time in seconds.
    """
    taken = [record for at in state.failovers.values() if _is_recent_takeover(record := at.record, now)]
    of_member = [record for record in taken if record.source == member]
    for_others = [record for record in taken if record.source not in state.members]
    newest = max(of_member or for_others, key=lambda record: record.started, default=None)
    if newest is None:
        return None
    for at in state.owners.values():
        with contextlib.suppress(TraceparentError):
            ids = TraceIds.from_traceparent(at.record.traceparent)
            if ids.hex == newest.trace:
                return ids
    return None


def _is_recent_takeover(record: FailoverRecord, now: float) -> bool:
    return not record.planned and bool(record.source) and now - record.started <= LATELY


@dataclass(slots=True, eq=False)
class _Rejoin:
    """A process that gets copies; times in ns. ``under_way`` has the slots that it does not have yet, since when."""

    began: int
    trace: TraceIds | None
    under_way: dict[int, int] = field(default_factory=dict)
    slots: int = 0
    ended: int = 0
    longest: int = 0
    sessions: int = 0
    size: int = 0
    settling: asyncio.TimerHandle | None = None


class Rejoins:
    """The processes that get copies of this member's slots now.

    Args:
        telemetry: where spans go.
        pool: the pool's name.
        trace_of: the trace of the takeover because of which a member gets copies; None if there was none.
    """

    def __init__(self, telemetry: Telemetry, pool: str, trace_of: Callable[[str], TraceIds | None]) -> None:
        self._telemetry = telemetry
        self._pool = pool
        self._trace_of = trace_of
        self._rejoining: dict[Process, _Rejoin] = {}

    def begun(self, process: Process, slot: int) -> None:
        """A process that is not in the slot's sync set is sent the slot from now on."""
        now = self._telemetry.now_ns()
        rejoin = self._rejoining.get(process)
        if rejoin is None:
            rejoin = self._rejoining[process] = _Rejoin(now, self._trace_of(process.member))
        if rejoin.settling is not None:
            rejoin.settling.cancel()
            rejoin.settling = None
        rejoin.under_way.setdefault(slot, now)

    def sent(self, process: Process, slot: int, sessions: int, size: int) -> None:
        """A part of a copy was sent: so many sessions, and bytes of sessions and outcomes."""
        rejoin = self._rejoining.get(process)
        if rejoin is not None and slot in rejoin.under_way:
            rejoin.sessions += sessions
            rejoin.size += size

    def joined(self, process: Process, slot: int) -> None:
        """The process is in the slot's sync set."""
        rejoin = self._rejoining.get(process)
        began = rejoin.under_way.pop(slot, None) if rejoin is not None else None
        if rejoin is None or began is None:
            return
        rejoin.ended = self._telemetry.now_ns()
        rejoin.longest = max(rejoin.longest, rejoin.ended - began)
        rejoin.slots += 1
        # A takeover may become known only now. One that comes later is not why it was sent copies.
        rejoin.trace = rejoin.trace or self._trace_of(process.member)
        self._settle(process, rejoin)

    def left(self, process: Process, slot: int) -> None:
        """The slot is not sent to the process any more."""
        rejoin = self._rejoining.get(process)
        if rejoin is not None and rejoin.under_way.pop(slot, None) is not None:
            self._settle(process, rejoin)

    def lost(self, process: Process) -> None:
        """The connection to the process has ended."""
        rejoin = self._rejoining.get(process)
        if rejoin is not None and rejoin.under_way:
            rejoin.under_way.clear()
            self._settle(process, rejoin)

    def _settle(self, process: Process, rejoin: _Rejoin) -> None:
        if not rejoin.under_way:
            loop = asyncio.get_running_loop()
            rejoin.settling = loop.call_later(SETTLED_AFTER, self._record, process)

    def _record(self, process: Process) -> None:
        rejoin = self._rejoining.pop(process)
        if not rejoin.slots or rejoin.trace is None:
            return
        attributes: Attributes = {
            names.POOL: self._pool,
            names.MEMBER: process.member,
            names.SLOTS: rejoin.slots,
            names.COPY_SESSIONS: rejoin.sessions,
            names.COPY_BYTES: rejoin.size,
            names.COPY_LONGEST_MS: round(rejoin.longest / 1e6, 3),
        }
        trace = self._telemetry.failover(rejoin.trace.traceparent)
        trace.phase(names.REJOIN, rejoin.began, rejoin.ended, attributes)
