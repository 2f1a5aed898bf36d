"""The one recorder between the ownership protocol and telemetry: it takes notes and decides nothing.

The protocol says what happens; spans, counters, audits and the reports in heartbeats are made here.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from understudy.proxy.events.cause import Cause
from understudy.proxy.events.claim_progress import Claim, ClaimProgress
from understudy.proxy.events.counters import Counters
from understudy.proxy.events.handover_latency import HandoverLatency
from understudy.proxy.events.rejoins import Rejoins
from understudy.proxy.events.split_brain_audit import SplitBrainAudit
from understudy.statesync.pool.claims import Claimed
from understudy.statesync.pool.records import FailoverRecord, Owner
from understudy.statesync.pool.slots import MAX_SLOTS
from understudy.statesync.pool.state import At
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.ids import TraceIds, TraceparentError
from understudy.telemetry.tracing.setup import Attributes, Telemetry


class Recorder:
    """What one member records of changes of active.

    Args:
        telemetry: where spans go.
        pool: the pool's name.
        member: this member's name.
        slowest: the application's slowest answer since a monotonic time, in seconds.
        on_progress: called when control servers should hear of a claim at once.
        going_down: whether this process is about to end.
        takeover_before: the trace of the takeover because of which a member gets copies, if there was one.

    Attributes:
        calls: how many calls were answered well here, as the owner, by slot.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        pool: str,
        member: str,
        *,
        slowest: Callable[[float], float],
        on_progress: Callable[[], None],
        going_down: Callable[[], bool],
        takeover_before: Callable[[str], TraceIds | None],
    ) -> None:
        self.telemetry = telemetry
        self.member = member
        self.place: Attributes = {names.POOL: pool, names.MEMBER: member}
        self.counters = Counters()
        self.claims = ClaimProgress(telemetry, pool, member, on_progress)
        self.latency = HandoverLatency(telemetry, pool, member, slowest)
        self.audit = SplitBrainAudit(telemetry, pool, member)
        self.rejoins = Rejoins(telemetry, pool, takeover_before)
        self.going_down = going_down
        self.calls = [0] * MAX_SLOTS

    # -- takeovers --

    def suspicion(self, witness: str) -> "SuspicionRecord":
        """There is a first witness against an owner: a ``request`` that it did not answer, or ``replication``."""
        return SuspicionRecord(self, witness)

    def claim(self, cause: Cause) -> "ClaimRecord":
        """A claim begins."""
        return ClaimRecord(self, cause)

    def reclaimed(self, slot: int, at: At[Owner], failovers: Iterable[FailoverRecord]) -> None:
        """A slot turned out to be ours: count it if it was taken over by a claim whose answer never came.

        Such a claim wrote a failover record that names the slot with this epoch.
        """
        for record in failovers:
            takeover = record.to == self.member and record.source not in ("", self.member) and not record.planned
            if takeover and (slot, at.record.epoch) in zip(record.slots, record.epochs, strict=True):
                self.counters.takeovers += record.slots[0] == slot
                self.counters.taken_over += 1
                with contextlib.suppress(TraceparentError):
                    trace = TraceIds.from_traceparent(at.record.traceparent)
                    self.audit.claimed(trace, {slot: at.record.epoch}, at.revision)

    # -- handovers --

    def moving(self, slots: Sequence[int], trace: TraceIds | None) -> AbstractContextManager[None]:
        """A handover of ``slots`` goes on meanwhile: how long it holds calls up is measured."""
        return self.latency.moving(slots, trace)

    def handover(self) -> "HandoverRecord":
        """This member's part of a handover begins, as its owner or as its target."""
        return HandoverRecord(self)

    def handover_failed(self, slots: int) -> None:
        """This member, as their owner, could not hand so many slots over."""
        self.counters.refused += slots

    # -- calls --

    @contextmanager
    def call_elsewhere(self, slot: int, came: float, request: str) -> Iterator[None]:
        """A call that came at ``came`` (monotonic) to a slot that takes none here is under way meanwhile."""
        with self.claims.waiting(slot), self.latency.call(slot, came, request):
            yield

    def answered(self, slot: int, came: float | None, request: str) -> None:
        """A call was answered well here that came at ``came`` (monotonic; None: just now).

        ``request`` is its traceparent, if any.
        """
        self.calls[slot] += 1
        if request or slot in self.claims.awaited:  # hardly ever
            clock = self.telemetry.clock
            self.claims.answered(slot, clock.now_ns() if came is None else clock.at_ns(came), request)

    def close(self) -> None:
        """This process ends: record what is left."""
        self.latency.close()


class SuspicionRecord:
    """The time between the first witness and the second; ``witness`` is the first one, for the trace."""

    def __init__(self, recorder: Recorder, witness: str) -> None:
        self._recorder = recorder
        self._witness = witness
        self._began_ns = recorder.telemetry.now_ns()

    def confirmed(self, source: str, cause: str, trace: TraceIds) -> None:
        """The second witness agrees that ``source`` is dead."""
        telemetry = self._recorder.telemetry
        attributes = {
            **self._recorder.place,
            names.FROM: source,
            names.CAUSE: cause,
            names.WITNESS: self._witness,
        }
        phases = telemetry.failover(trace.traceparent)
        phases.phase(names.DETECT, self._began_ns, telemetry.now_ns(), attributes)


class ClaimRecord:
    """One claim: from its decision to the first good answer in its slots."""

    def __init__(self, recorder: Recorder, cause: Cause) -> None:
        self._recorder = recorder
        self._cause = cause
        self._began_ns = self._won_ns = recorder.telemetry.now_ns()
        self._claim: Claim | None = None

    def won(self) -> None:
        """The transactions are over."""
        self._won_ns = self._recorder.telemetry.now_ns()

    def opening(self, slots: Sequence[int]) -> None:
        """The slots that were won are about to be caught up with."""
        cause = self._cause
        if cause.trace is not None:
            self._claim = self._recorder.claims.claimed(
                cause.trace, slots, self._began_ns, self._won_ns, by_request=cause.by_request
            )

    def opened(self, parts: Sequence[tuple[Sequence[Claimed], int]], slots: int, sessions: int) -> None:
        """All of it takes calls.

        Args:
            parts: the claims of each transaction with the revision that they got.
            slots: how many slots are ours.
            sessions: how many sessions they have.
        """
        recorder, cause = self._recorder, self._cause
        claims = [one for part, _ in parts for one in part]
        if self._claim is not None:
            attributes: Attributes = {
                **recorder.place,
                names.FROM: cause.source,
                names.SLOTS: len(claims),
                names.SESSION_COUNT: sessions,
                names.EPOCH: max(c.owner.epoch for c in claims),
                names.ETCD_REVISION: max(revision for _, revision in parts),
                names.CAUSE: cause.text,
                **({names.STOP_OR_START: True} if cause.stop_or_start else {}),
                **_lost_in(claims),
            }
            recorder.claims.opened(self._claim, attributes)
        if cause.source and cause.source != recorder.member:
            recorder.counters.takeovers += 1
            recorder.counters.taken_over += slots
            if cause.trace is not None:
                for part, revision in parts:
                    recorder.audit.claimed(cause.trace, {c.slot: c.owner.epoch for c in part}, revision)


def _lost_in(claims: Sequence[Claimed]) -> Attributes:
    """How many claims may have lost writes, and how old these can be at the most."""
    losses = [one.sync.loss_seconds for one in claims if one.loss]
    return {names.LOSSES: len(losses), **({names.LOSS_SECONDS: max(losses)} if losses else {})}


class HandoverRecord:
    """One handover: the times at which its steps ended."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._marks = [recorder.telemetry.now_ns()]

    def step(self) -> None:
        """A step ended: the slots are idle, or their records are fenced."""
        self._marks.append(self._recorder.telemetry.now_ns())

    def given(self, slots: Sequence[int], to: str, revision: int, trace: TraceIds | None) -> None:
        """``to`` is active in ``slots`` since ``revision``."""
        recorder = self._recorder
        recorder.counters.given += len(slots)
        if trace is None:
            return
        began_ns, idle_ns, fenced_ns = self._marks
        now_ns = recorder.telemetry.now_ns()
        phases = recorder.telemetry.failover(trace.traceparent)
        for slot in slots:
            attributes = {**recorder.place, names.SLOT: slot, names.TO: to, names.ETCD_REVISION: revision}
            answered = recorder.claims.last_in(slot)
            phases.phase(names.FLUSH, began_ns, idle_ns, attributes)
            phases.phase(names.FENCE, idle_ns, fenced_ns, attributes, ((answered, names.LAST_REQUEST),))
            phases.phase(names.CONFIRM, fenced_ns, now_ns, attributes)

    def received(self, slots: Sequence[int], trace: TraceIds | None) -> None:
        """This member is active in ``slots``."""
        recorder = self._recorder
        recorder.counters.received += len(slots)
        if trace is None:
            return
        now_ns, began_ns = recorder.telemetry.now_ns(), self._marks[0]
        phases = recorder.telemetry.failover(trace.traceparent)
        ending: Attributes = {names.STOP_OR_START: True} if recorder.going_down() else {}
        for slot in slots:
            phases.phase(names.CLAIM, began_ns, now_ns, {**recorder.place, names.SLOT: slot, **ending})
        recorder.claims.handed_over(trace, slots[0], began_ns)
