"""Handing slots over: both sides of a planned change of active, in which nothing is lost and nobody is refused.

Slots go to one target a few together, which costs etcd, the target and all who watch hardly more than one slot would.
The owner's side: the target gets the slots' sessions into memory; the gates close for new calls; those under way end;
one transaction puts the owner records into phase ``handover``, which fences every late write; in another the target
commits itself as active with the next epochs; the gates open, and who waited at one goes to the target. Reads from
memory go on until the target is told: before that it cannot be active. A slot whose calls do not end soon leaves the
others and goes after them, alone. A target that fails or stays silent for :data:`CONFIRM_TIMEOUT` is given up, and the
slots are taken back under new epochs.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence

from understudy.proxy.ownership.context import MemberContext
from understudy.proxy.ownership.owned_slots import OwnedSlot, still_busy
from understudy.proxy.peers.peer_client import Peer, PeerError
from understudy.statesync.etcd.client import Get, ModRevision, Put
from understudy.statesync.etcd.txn_retry import definite_txn
from understudy.statesync.pool.ownership import finish_handover, start_handover, take_up, undo_handover
from understudy.statesync.pool.records import Owner, Phase
from understudy.statesync.pool.state import At
from understudy.statesync.testing.crash_points import CrashPoint, crash_point
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.ids import TraceIds
from understudy.telemetry.tracing.setup import Attributes

logger = logging.getLogger(__name__)

SLOTS_TOGETHER = 8
"""Slots that go in one handover. Their gates are closed together, so the calls of all wait for the last of each."""
TOGETHER_TIMEOUT = 0.02
"""Seconds in which the calls of a slot end, or it does not go together with others."""
DRAIN_TIMEOUT = 0.25
CONFIRM_TIMEOUT = 1.0
OUTCOME_TIMEOUT = 10.0


class HandoverFailed(Exception):
    """A handover that did not happen; the slots stay with their owner. ``why`` is for the log and the next try."""

    def __init__(self, slots: Sequence[int], to: str, why: str) -> None:
        super().__init__(f"slot {', '.join(map(str, slots))} to {to}: {why}")
        self.slots = tuple(slots)
        self.to = to
        self.why = why


class Handover:
    """Carries handovers out, as their owner and as their target."""

    def __init__(self, context: MemberContext) -> None:
        self._context = context

    async def give(self, slots: Sequence[int], to: str, *, cause: str, trace: TraceIds | None) -> None:
        """Hand ``slots`` over to ``to``, :data:`SLOTS_TOGETHER` of them at the most.

        Raises :class:`HandoverFailed`; what was not given by then is ours as before, unless somebody has claimed it.
        """
        try:
            with self._context.handover_latency.moving(slots, trace):
                peer = await self._prepared(slots, to)
                owned = [one for slot in slots if (one := self._context.owned.get(slot))]
                patience = TOGETHER_TIMEOUT if len(owned) > 1 else DRAIN_TIMEOUT
                for one in await self._give(owned, peer, cause, trace, patience):
                    await self._give([one], peer, cause, trace, DRAIN_TIMEOUT)
        except HandoverFailed as error:
            self._context.counters.refused += len(error.slots)
            raise

    async def _prepared(self, slots: Sequence[int], to: str) -> Peer:
        """The target, which has the sessions of ``slots`` in memory now."""
        peer = self._context.peer(to)
        if peer is None:
            raise HandoverFailed(slots, to, "its address is unknown")
        try:
            await self._context.peers.prepare(peer, slots)
        except PeerError as error:
            raise HandoverFailed(slots, to, str(error)) from None
        return peer

    async def _give(
        self, slots: Sequence[OwnedSlot], peer: Peer, cause: str, trace: TraceIds | None, patience: float
    ) -> list[OwnedSlot]:
        """Close the gates and hand over what is idle in time. Returns the others; alone, a slot fails instead."""
        holdings = self._context.owned
        started_ns = self._context.telemetry.now_ns()
        closed = holdings.close([owned.slot for owned in slots], readable=True)
        try:
            busy = await still_busy(closed, patience)
            for owned in busy:
                holdings.reopen(owned)
            idle = [owned for owned in closed if owned not in busy]
            if idle:
                await self._give_closed(idle, peer, cause, trace, started_ns)
            elif len(busy) == 1:
                raise HandoverFailed([busy[0].slot], peer.member, "calls under way did not end in time")
            return busy
        finally:
            for owned in closed:
                holdings.reopen(owned)

    async def _give_closed(
        self, slots: Sequence[OwnedSlot], peer: Peer, cause: str, trace: TraceIds | None, started_ns: int
    ) -> None:
        context = self._context
        numbers = [owned.slot for owned in slots]
        idle_ns, now = context.telemetry.now_ns(), time.time()
        traceparent = trace.traceparent if trace else ""
        leaving = {
            owned.slot: start_handover(owned.owner, peer.member, cause=cause, traceparent=traceparent, now=now)
            for owned in slots
        }
        crash_point(CrashPoint.HANDOVER_CLOSED)
        fenced = await self._replace_records({owned.slot: owned.fence for owned in slots}, leaving)
        if not fenced:
            for owned in slots:
                if not self._stands(owned):
                    context.owned.lose(owned.slot)
            raise HandoverFailed(numbers, peer.member, "somebody else has claimed a slot")
        for owned in slots:
            owned.owner, owned.fence = leaving[owned.slot], fenced
        crash_point(CrashPoint.HANDOVER_FENCED)
        fenced_ns = context.telemetry.now_ns()
        for owned in slots:
            owned.readable = False  # from now on the target may be active, and take writes, before we hear of it
        try:
            async with asyncio.timeout(CONFIRM_TIMEOUT):
                successors, revision = await context.peers.activate(peer, numbers, fenced)
        except (PeerError, TimeoutError) as error:
            for owned in slots:
                await self._take_back(owned)
            raise HandoverFailed(numbers, peer.member, str(error) or "no answer in time") from None
        crash_point(CrashPoint.HANDOVER_CONFIRMED)
        for slot, successor in successors.items():
            context.state.note_owner(slot, successor, revision)
            context.owned.lose(slot)
        context.counters.given += len(successors)
        if trace is not None:
            self._tell(trace, numbers, peer, revision, (started_ns, idle_ns, fenced_ns))

    def _stands(self, owned: OwnedSlot) -> bool:
        """Whether, as far as we know by now, nobody has replaced the record that makes a slot ours."""
        at = self._context.state.owners.get(owned.slot)
        return at is not None and at.revision <= owned.fence

    def _tell(
        self, trace: TraceIds, slots: Sequence[int], peer: Peer, revision: int, marks: tuple[int, int, int]
    ) -> None:
        """Record the phases that each slot went through."""
        context = self._context
        started_ns, idle_ns, fenced_ns = marks
        now_ns = context.telemetry.now_ns()
        phases = context.telemetry.failover(trace.traceparent)
        for slot in slots:
            attributes: Attributes = {
                names.POOL: context.keys.pool,
                names.MEMBER: context.me,
                names.SLOT: slot,
                names.TO: peer.member,
                names.ETCD_REVISION: revision,
            }
            answered = context.claim_progress.last_in(slot)
            phases.phase(names.FLUSH, started_ns, idle_ns, attributes)
            phases.phase(names.FENCE, idle_ns, fenced_ns, attributes, ((answered, names.LAST_REQUEST),))
            phases.phase(names.CONFIRM, fenced_ns, now_ns, attributes)

    async def _take_back(self, owned: OwnedSlot) -> None:
        """Undo a fence. If the compare fails, the target became active after all."""
        crash_point(CrashPoint.UNDO_DECIDED)
        mine = undo_handover(owned.owner, now=time.time())
        revision = await self._replace_records({owned.slot: owned.fence}, {owned.slot: mine})
        if revision and self._context.state.note_owner(owned.slot, mine, revision):
            owned.owner, owned.fence = mine, revision
        else:
            self._context.owned.lose(owned.slot)

    async def undo_stale(self, slot: int) -> None:
        """Take back a handover whose record still names us as its owner although nobody carries it out."""
        owned = self._context.owned.get(slot)
        at = self._context.state.owners.get(slot)
        if owned is None or at is None or at.record.phase is not Phase.HANDOVER:
            return
        owned.owner, owned.fence = at.record, at.revision
        await self._take_back(owned)
        self._context.owned.reopen(owned)

    async def take_up_again(self, slot: int, at: At[Owner]) -> At[Owner] | None:
        """Own a slot under a new record that this member has given up under ``at``; None if somebody else has it.

        Whoever was asked to take it may still claim it, without a wait for our reads, for as long as ``at`` stands.
        """
        mine = take_up(at.record, now=time.time())
        revision = await self._replace_records({slot: at.revision}, {slot: mine})
        self._context.owned.given_up.pop(slot, None)
        if not revision or not self._context.state.note_owner(slot, mine, revision):
            return None
        return At(mine, revision)

    async def take(self, slots: Sequence[int], revision: int) -> dict[int, At[Owner]]:
        """Become active for slots that their owner fenced at ``revision``, and return the new owner records.

        Raises:
            HandoverFailed: a record at ``revision`` does not name us, or somebody changed one since.
            EtcdError: etcd gave no definite answer.
        """
        context = self._context
        started_ns = context.telemetry.now_ns()
        await self._see(slots, revision)
        leaving = self._left_to_us(slots, revision)
        mine = {slot: finish_handover(owner, context.boot, now=time.time()) for slot, owner in leaving.items()}
        first = next(iter(leaving.values()))
        trace = TraceIds.from_traceparent(first.traceparent) if first.traceparent else None
        note = []
        if trace is not None:
            taken = {slot: owner.epoch for slot, owner in mine.items()}
            log = context.failovers
            note = [log.add(trace.hex, first.active, taken, cause=first.cause, planned=True, now=time.time())]
        crash_point(CrashPoint.TARGET_ASKED)
        with context.handover_latency.moving(slots, trace):
            won = await self._replace_records(dict.fromkeys(slots, revision), mine, note)
        if not won:
            raise HandoverFailed(slots, context.me, "its owner took a slot back")
        crash_point(CrashPoint.TARGET_ACTIVE)
        for slot, owner in mine.items():
            if context.state.note_owner(slot, owner, won):
                context.owned.reopen(context.owned.gain(slot, owner, won))
        context.counters.received += len(mine)
        if trace is not None:
            now_ns = context.telemetry.now_ns()
            phases = context.telemetry.failover(trace.traceparent)
            ending: Attributes = {names.STOP_OR_START: True} if context.going_down else {}
            for slot in slots:
                attributes = {names.POOL: context.keys.pool, names.MEMBER: context.me, names.SLOT: slot, **ending}
                phases.phase(names.CLAIM, started_ns, now_ns, attributes)
            context.claim_progress.handed_over(trace, slots[0], started_ns)
        return {slot: At(owner, won) for slot, owner in mine.items()}

    def _left_to_us(self, slots: Sequence[int], revision: int) -> dict[int, Owner]:
        """The records by which their owner leaves ``slots`` to us, of one failover; raises :class:`HandoverFailed`."""
        leaving = {}
        for slot in slots:
            at = self._context.state.owners.get(slot)
            if at is None or at.revision != revision or at.record.to != self._context.me:
                raise HandoverFailed([slot], self._context.me, f"no handover to it stands at revision {revision}")
            leaving[slot] = at.record
        return leaving

    async def _see(self, slots: Sequence[int], revision: int) -> None:
        """Have the handover records and every write before them here: by the watch, or else by reading etcd."""
        context = self._context
        try:
            async with asyncio.timeout(CONFIRM_TIMEOUT / 4):
                await context.mirror.caught_up(revision)
        except TimeoutError:
            for slot in slots:
                await context.replica.refresh(slot)
                kv = await context.etcd.get(context.keys.owner(slot))
                if kv is not None:
                    context.state.read_owner(slot, kv)
        for slot in slots:
            await context.replica.full_sync(slot)

    async def _replace_records(
        self, fences: Mapping[int, int], records: Mapping[int, Owner], extra: Sequence[Put] = ()
    ) -> int:
        """Replace owner records that were written at ``fences``, all or none, and return the new revision.

        0 if one of them is another by now.
        """
        keys = self._context.keys
        result, _ = await definite_txn(
            self._context.etcd,
            [ModRevision(keys.owner(slot), fence) for slot, fence in fences.items()],
            [*(Put(keys.owner(slot), record.encode()) for slot, record in records.items()), *extra],
            [Get(keys.owner(slot)) for slot in records],
            patience=OUTCOME_TIMEOUT,
        )
        if result.succeeded:
            return result.revision
        found = {slot: kvs[0] for slot, kvs in zip(records, result.answers, strict=True) if kvs}
        if len(found) == len(records) and all(kv.value == records[slot].encode() for slot, kv in found.items()):
            return next(iter(found.values())).mod_revision
        for slot, kv in found.items():
            self._context.state.read_owner(slot, kv)
        return 0
