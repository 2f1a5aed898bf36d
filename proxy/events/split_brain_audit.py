"""Proof of correctness around a change of active: writes that the fence refused, and an audit of slots taken over.

A write of this member that commits too late is refused, because it compares the owner record. Nothing is lost by that,
except an ``async`` write, which was answered before. The numbers of both are recorded as ``fenced`` in the trace of the
change that refused them, after :data:`QUIET` seconds without another.

After a takeover each slot is soon compared with etcd (``understudy.proxy.peers.anti_entropy``). A session that was
saved after the claim, and that was written under an older epoch, had a second writer, unless the new active has
inherited the write: then it may have saved it itself. The result is recorded as ``audit`` in any case.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from understudy.statesync.etcd.client import Kv
from understudy.statesync.pool.records import Owner
from understudy.statesync.replication.history import History, epoch_of
from understudy.statesync.sessions.digests import Reading
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.ids import TraceIds
from understudy.telemetry.tracing.setup import Attributes, Telemetry

logger = logging.getLogger(__name__)

QUIET = 1.0
_MOST_AUDITS = 1_000


@dataclass(slots=True)
class _Refused:
    """Writes that one change of active refused."""

    first_ns: int
    last_ns: int = 0
    fenced: int = 0
    lost: int = 0
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True, eq=False)
class _Audit:
    """Slots of one claim that are still to be checked, and what was found so far."""

    trace: TraceIds
    claimed_ns: int
    revision: int
    epochs: Mapping[int, int]
    waiting: set[int] = field(default_factory=set)
    checked: int = 0
    late: int = 0


def written_late(reading: Reading, epoch: int, revision: int, history: History) -> int:
    """How many sessions a former owner saved after the owner record of ``revision``, with which ``epoch`` began.

    ``history`` is what the owner of this epoch has had of the slot. It saves what it has inherited from earlier epochs,
    so only writes that are not in it count. Each of them proves that the fence did not hold.
    """
    inherited = max((end for end in history if epoch_of(end) < epoch), default=0)
    return sum(
        written.revision > revision and written.epoch < epoch and reading.entries[key].version > inherited
        for key, written in reading.written.items()
    )


class SplitBrainAudit:
    """The refused writes and the audits of one member."""

    def __init__(self, telemetry: Telemetry, pool: str, member: str) -> None:
        self._telemetry = telemetry
        self._pool = pool
        self._member = member
        self._refused: dict[str, _Refused] = {}
        self._audits: dict[int, _Audit] = {}
        self.breaches = 0
        """Sessions that were written by a member that no longer owned their slot."""

    def refused(self, found: Kv | None) -> None:
        """The owner record ``found`` refused a save of ours."""
        with contextlib.suppress(ValueError):
            self._note(Owner.decode(found.value) if found is not None else None, lost=False)

    def lost(self, owner: Owner | None) -> None:
        """An ``async`` write that was answered went with its slot, which has this owner by now: it may be lost."""
        self._note(owner, lost=True)

    def _note(self, owner: Owner | None, *, lost: bool) -> None:
        traceparent = owner.traceparent if owner is not None else ""
        if not traceparent:
            return
        now = self._telemetry.now_ns()
        one = self._refused.setdefault(traceparent, _Refused(now))
        one.last_ns = now
        one.fenced += not lost
        one.lost += lost
        if one.timer is not None:
            one.timer.cancel()
        one.timer = asyncio.get_running_loop().call_later(QUIET, self._tell_refused, traceparent)

    def _tell_refused(self, traceparent: str) -> None:
        one = self._refused.pop(traceparent)
        attributes: Attributes = {
            names.POOL: self._pool,
            names.MEMBER: self._member,
            names.WRITES_FENCED: one.fenced,
            names.WRITES_LOST: one.lost,
        }
        self._telemetry.failover(traceparent).phase(names.FENCED, one.first_ns, one.last_ns, attributes)

    def claimed(self, trace: TraceIds, epochs: Mapping[int, int], revision: int) -> None:
        """Slots were taken over at ``revision``, each under its epoch: they are to be audited."""
        audit = _Audit(trace, self._telemetry.now_ns(), revision, epochs, set(epochs))
        for slot in epochs:
            self.left(slot)
            if len(self._audits) < _MOST_AUDITS:
                self._audits[slot] = audit

    def left(self, slot: int) -> None:
        """A slot cannot be audited any more: it was lost again."""
        audit = self._audits.pop(slot, None)
        if audit is not None:
            self._done(audit, slot)

    def next_audit(self) -> int | None:
        """A slot that is to be audited; None if none is."""
        return min(self._audits, default=None)

    def checked(self, reading: Reading, slot: int, owner: Owner, revision: int, history: History) -> None:
        """A slot was read from etcd while ``owner``, written at ``revision``, was its newest known owner record.

        It names this process, which has had ``history`` of the slot.
        """
        audit = self._audits.pop(slot, None)
        if audit is not None and audit.epochs[slot] == owner.epoch:
            revision = audit.revision  # the same epoch may have later records, of a handover that was begun
        late = written_late(reading, owner.epoch, revision, history)
        if audit is not None:
            audit.checked += 1
            audit.late += late
            self._done(audit, slot)
        if late:
            self.breaches += late
            logger.error(
                "slot %d: %d sessions were written by a former owner after epoch %d began: the fence did not hold",
                slot,
                late,
                owner.epoch,
            )

    def _done(self, audit: _Audit, slot: int) -> None:
        audit.waiting.discard(slot)
        if audit.waiting or not audit.checked:
            return
        attributes: Attributes = {
            names.POOL: self._pool,
            names.MEMBER: self._member,
            names.SLOTS: audit.checked,
            names.WRITES_BREACHED: audit.late,
        }
        trace = self._telemetry.failover(audit.trace.traceparent)
        trace.phase(names.AUDIT, audit.claimed_ns, self._telemetry.now_ns(), attributes)
