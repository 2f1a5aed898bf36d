"""The progress of this member's takeovers: from a claim to the first good answer in the slots that it won.

Each claim is recorded as the phases ``claim``, ``catch_up`` and ``first_ok`` of its takeover's trace. The next beats
report it to the control servers for :data:`TOLD_NS`, so that the leader can measure the takeover on its own clock.
This also remembers the newest call that was answered here: a takeover's trace links to it if this member dies.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from understudy.statesync.heartbeat.heartbeat import MOST_CLAIMS, ClaimReport
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.ids import TraceIds
from understudy.telemetry.tracing.setup import Attributes, Telemetry

TOLD_NS = 15 * 10**9
"""Longer than a control server waits for a takeover's end."""
_LONGEST = 64
"""Characters of a traceparent; version 00 has 55."""


@dataclass(slots=True, eq=False)
class Claim:
    """One claim; the caller only hands it back to :meth:`ClaimProgress.opened`."""

    told: ClaimReport
    trace: TraceIds
    slots: frozenset[int]
    changed: int


class ClaimProgress:
    """The recent claims. ``on_change`` is called when a control server should hear of one at once."""

    def __init__(self, telemetry: Telemetry, pool: str, member: str, on_change: Callable[[], None]) -> None:
        self._telemetry = telemetry
        self._pool = pool
        self._member = member
        self._claims: list[Claim] = []
        self.awaited: dict[int, Claim] = {}
        """The slots in which the first good answer since a claim is still to come."""
        self._waiting: Counter[int] = Counter()
        self._on_change = on_change
        self._last: dict[int, str] = {}
        self.last_request = ""
        """The traceparent of the newest call that was answered here and carried one."""

    def last_in(self, slot: int) -> str:
        """The traceparent of the newest call in ``slot`` that was answered here and carried one; '' if none did."""
        return self._last.get(slot, "")

    def claimed(
        self, trace: TraceIds, slots: Sequence[int], began_ns: int, claimed_ns: int, *, by_request: bool
    ) -> Claim:
        """A claim was won, and catching up with its slots is about to begin."""
        told = ClaimReport(trace.hex, len(slots), began_ns, claimed_ns, by_request=by_request)
        claim = Claim(told, trace, frozenset(slots), claimed_ns)
        self._claims = [*self._claims, claim][-MOST_CLAIMS:]
        for slot in slots:
            self.awaited[slot] = claim
        return claim

    def handed_over(self, trace: TraceIds, slot: int, began_ns: int) -> None:
        """A handover gave us ``slot``; the first answer counts once for each trace of handovers."""
        if all(claim.trace != trace for claim in self._claims):
            now = self._telemetry.now_ns()
            claim = self.claimed(trace, [slot], began_ns, now, by_request=False)
            claim.told = replace(claim.told, opened=now)

    def opened(self, claim: Claim, attributes: Attributes) -> None:
        """All slots of a claim take calls from now on; ``attributes`` are for its phases."""
        now = self._telemetry.now_ns()
        claim.told, claim.changed = replace(claim.told, opened=now), now
        trace = self._telemetry.failover(claim.trace.traceparent)
        trace.phase(names.CLAIM, claim.told.began, claim.told.claimed, attributes)
        trace.phase(names.CATCH_UP, claim.told.claimed, now, attributes)
        self._on_change()

    @contextmanager
    def waiting(self, slot: int) -> Iterator[None]:
        """A call waits for ``slot`` to be served meanwhile."""
        self._waiting[slot] += 1
        try:
            yield
        finally:
            self._waiting[slot] -= 1
            if not self._waiting[slot]:
                del self._waiting[slot]

    def answered(self, slot: int, came_ns: int, request: str) -> None:
        """A call in ``slot`` that came at ``came_ns`` was answered well; ``request`` is its traceparent, if any."""
        if 0 < len(request) <= _LONGEST:
            self._last[slot] = self.last_request = request
        if slot not in self.awaited:
            return
        claim, now = self.awaited[slot], self._telemetry.now_ns()
        self.awaited = {other: one for other, one in self.awaited.items() if one is not claim}
        # Some slots of a claim may take calls before the last of them does.
        open_since = claim.told.opened or claim.told.claimed
        awaited = not claim.told.opened or came_ns <= open_since
        claim.told = replace(claim.told, answered=now, awaited=awaited, request=self._last.get(slot, ""))
        claim.changed = now
        attributes: Attributes = {names.POOL: self._pool, names.MEMBER: self._member, names.SLOT: slot}
        trace = self._telemetry.failover(claim.trace.traceparent)
        # A call that came later did not wait for us: only its own time is recorded.
        links = ((claim.told.request, names.FIRST_REQUEST),)
        trace.phase(names.FIRST_OK, max(open_since, came_ns), now, attributes, links)
        self._on_change()

    def told(self) -> tuple[ClaimReport, ...]:
        """What the next beat should report; old claims are dropped."""
        if not self._claims:
            return ()
        oldest = self._telemetry.now_ns() - TOLD_NS
        self._claims = [claim for claim in self._claims if claim.changed >= oldest]
        return tuple(
            replace(claim.told, waiting=not claim.told.answered and any(slot in self._waiting for slot in claim.slots))
            for claim in self._claims
        )
