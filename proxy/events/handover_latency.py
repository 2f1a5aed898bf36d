"""How long callers waited because slots moved: the call that was held up longest, for each trace of handovers.

While slots move, a call to one of them waits at its gate, and then for its answer from the new active, until front
Envoys have the new routes. The longest of these calls is recorded as ``held_up``, :data:`AFTER` seconds after the
trace's last slot here: from the moment at which this process read it until its answer was sent, by one clock.

Its caller may have waited longer. By how much is stated as the error: the lateness of the event loop, because calls
wait unread for that long, and twice the application's slowest answer to its health check, because the application may
be as late with its question as with its answer.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.ids import TraceIds
from understudy.telemetry.tracing.setup import Attributes, Telemetry

POLL_INTERVAL = 0.002
"""Seconds between two measurements of how late the event loop is; only while slots move."""
_LONGEST = 64
"""Characters of a traceparent that is kept; version 00 has 55."""
AFTER = 0.5
"""Seconds after the last slot for which calls to it still come here: until front Envoys have the routes."""


@dataclass(frozen=True, slots=True)
class HeldCall:
    """A call that was held up: monotonic seconds, and its traceparent, '' if it carried none."""

    slot: int
    came: float
    answered: float
    request: str

    @property
    def seconds(self) -> float:
        """How long it took here."""
        return self.answered - self.came


@dataclass(slots=True, eq=False)
class _Moves:
    """What one trace moves here. Times in monotonic seconds; ``busy`` are handovers and calls under way."""

    trace: TraceIds
    began: float
    moved: float
    busy: int = 0
    calls: int = 0
    late: float = 0.0
    longest: HeldCall | None = None


class HandoverLatency:
    """The recent moves of slots, and the calls that they hold up.

    Args:
        telemetry: where spans are recorded.
        pool: the pool's name.
        member: this member's.
        slowest: the application's slowest answer since a monotonic time, in seconds.
    """

    def __init__(self, telemetry: Telemetry, pool: str, member: str, slowest: Callable[[float], float]) -> None:
        self._telemetry = telemetry
        self._pool = pool
        self._member = member
        self._slowest = slowest
        self._moves: dict[TraceIds, _Moves] = {}
        self._by_slot: dict[int, _Moves] = {}
        self._tick: asyncio.TimerHandle | None = None

    @contextmanager
    def moving(self, slots: Sequence[int], trace: TraceIds | None) -> Iterator[None]:
        """A handover of ``slots`` goes on meanwhile, as part of ``trace``; without one nothing is recorded."""
        if trace is None:
            yield
            return
        now = time.monotonic()
        moves = self._moves.setdefault(trace, _Moves(trace, now, now))
        self._by_slot.update(dict.fromkeys(slots, moves))
        if self._tick is None:
            self._watch()
        moves.busy += 1
        try:
            yield
        finally:
            moves.busy -= 1
            moves.moved = time.monotonic()

    @contextmanager
    def call(self, slot: int, came: float, request: str) -> Iterator[None]:
        """A call that came at ``came`` (monotonic) to a slot that takes none here is under way meanwhile."""
        moves = self._by_slot.get(slot)
        if moves is None:
            yield
            return
        moves.busy += 1
        try:
            yield
        finally:
            moves.busy -= 1
            moves.calls += 1
            call = HeldCall(slot, came, time.monotonic(), request if len(request) <= _LONGEST else "")
            if moves.longest is None or call.seconds > moves.longest.seconds:
                moves.longest = call

    def close(self) -> None:
        """This process ends: record what is left."""
        for moves in tuple(self._moves.values()):
            self._record(moves)
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + POLL_INTERVAL
        self._tick = loop.call_at(due, self._look, due)

    def _look(self, due: float) -> None:
        now = time.monotonic()
        for moves in tuple(self._moves.values()):
            moves.late = max(moves.late, now - due)
            if not moves.busy and now >= moves.moved + AFTER:
                self._record(moves)
        self._tick = None
        if self._moves:
            self._watch()

    def _record(self, moves: _Moves) -> None:
        del self._moves[moves.trace]
        self._by_slot = {slot: other for slot, other in self._by_slot.items() if other is not moves}
        longest, clock = moves.longest, self._telemetry.clock
        error = moves.late + 2 * self._slowest(moves.began)
        attributes: Attributes = {
            names.POOL: self._pool,
            names.MEMBER: self._member,
            names.CALLS: moves.calls,
            names.ERROR_MS: error * 1000,
            **({names.SLOT: longest.slot} if longest else {}),
        }
        began, ended = (longest.came, longest.answered) if longest else (moves.moved, moves.moved)
        links = ((longest.request if longest else "", names.HELD_REQUEST),)
        trace = self._telemetry.failover(moves.trace.traceparent)
        trace.phase(names.HELD_UP, clock.at_ns(began), clock.at_ns(ended), attributes, links)
