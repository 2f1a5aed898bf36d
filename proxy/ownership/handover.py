"""Handing slots over: both sides of a planned change of active, in which nothing is lost and nobody is refused.

Several slots go to one target together, which costs hardly more than one slot would. The steps:

1. The owner waits until the target is in the slots' sync sets, and so has their sessions. It leaves the sets as they
   are until the end.
2. The owner closes the slots' gates for new calls, and waits until the calls under way end. A slot whose calls do not
   end soon leaves the others and goes after them, alone. Reads from memory go on.
3. One transaction of the owner puts the owner records into phase ``handover``, which fences every late write.
4. The owner stops its reads, and asks the target to become active. The target commits itself as active with the next
   epochs, in one transaction.
5. The gates open, and the calls that waited at them go to the target.

If the target fails, or stays silent for :data:`CONFIRM_TIMEOUT`, the owner takes the slots back under new epochs.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence

from understudy.proxy.events.recorder import HandoverRecord, Recorder
from understudy.proxy.member.local_copies import LocalCopies
from understudy.proxy.member.pool_view import Peer, PoolView
from understudy.proxy.ownership.active_slots import ActiveSlots
from understudy.proxy.ownership.opening import Gained, SlotOpener
from understudy.proxy.ownership.owned_slots import OwnedSlot, OwnedSlots, still_busy
from understudy.proxy.ownership.set_changes import SetChanges
from understudy.proxy.peers.peer_client import PeerClient
from understudy.proxy.peers.peer_protocol import NotTaken, PeerError
from understudy.statesync.etcd.client import EtcdClient, ModRevision, Put
from understudy.statesync.etcd.txn_retry import retry_txn
from understudy.statesync.pool.owner_records import (
    FailoverLog,
    NotInSet,
    finish_handover,
    records_compared,
    records_read,
    records_written,
    start_handover,
    sync_beside,
    take_up,
    undo_handover,
)
from understudy.statesync.pool.records import Owner, Phase, SyncRecord
from understudy.statesync.pool.state import At
from understudy.statesync.replication.sync_set import Process
from understudy.statesync.testing.crash_points import CrashPoint, crash_point
from understudy.telemetry.tracing.ids import TraceIds

logger = logging.getLogger(__name__)

SLOTS_TOGETHER = 8
"""Slots in one handover. Their gates close together, so new calls in all of them wait for the last call under way."""
TOGETHER_TIMEOUT = 0.02
"""Seconds in which the calls of a slot must end, else it does not go together with the others."""
DRAIN_TIMEOUT = 0.25
COPY_TIMEOUT = 2.0
"""Seconds in which the target of a handover must get its copies; else it is tried again."""
CONFIRM_TIMEOUT = 1.0
OUTCOME_TIMEOUT = 10.0


class HandoverFailed(Exception):
    """A handover that did not happen; the slots stay with their owner."""

    def __init__(self, slots: Sequence[int], to: str, why: str) -> None:
        super().__init__(f"slot {', '.join(map(str, slots))} to {to}: {why}")
        self.slots = tuple(slots)


class Handover:
    """Carries out handovers, as their owner and as their target."""

    def __init__(
        self,
        pool: PoolView,
        copies: LocalCopies,
        etcd: EtcdClient,
        client: PeerClient,
        owned: OwnedSlots,
        active: ActiveSlots,
        opener: SlotOpener,
        changes: SetChanges,
        failovers: FailoverLog,
        recorder: Recorder,
    ) -> None:
        self._pool = pool
        self._me = pool.identity.me
        self._keys = pool.identity.keys
        self._copies = copies
        self._etcd = etcd
        self._client = client
        self._owned = owned
        self._active = active
        self._opener = opener
        self._changes = changes
        self._failovers = failovers
        self._recorder = recorder
        self._opening: set[asyncio.Task[None]] = set()

    async def give(self, slots: Sequence[int], to: str, *, cause: str, trace: TraceIds | None) -> None:
        """Hand ``slots`` over to ``to``, at most :data:`SLOTS_TOGETHER` of them.

        Raises :class:`HandoverFailed`; slots that were not given by then are ours as before, unless somebody has
        claimed them.
        """
        try:
            with self._recorder.moving(slots, trace):
                peer = await self._prepared(slots, to)
                owned = [one for slot in slots if (one := self._owned.get(slot))]
                patience = TOGETHER_TIMEOUT if len(owned) > 1 else DRAIN_TIMEOUT
                for one in await self._give(owned, peer, cause, trace, patience):
                    await self._give([one], peer, cause, trace, DRAIN_TIMEOUT)
        except HandoverFailed as error:
            self._recorder.handover_failed(len(error.slots))
            raise

    async def _prepared(self, slots: Sequence[int], to: str) -> Peer:
        """Wait until the target has copies of ``slots``; returns where it is."""
        peer = self._pool.peer(to)
        if peer is None:
            raise HandoverFailed(slots, to, "its address is unknown")
        await self._until_in_set(slots, to, COPY_TIMEOUT)
        return peer

    async def _until_in_set(self, slots: Sequence[int], to: str, timeout: float) -> None:
        """Wait until the target is in the sync sets of ``slots``. Raises :class:`HandoverFailed`."""
        at = self._pool.state.members.get(to)
        found = await self._changes.until_in(slots, Process(to, at.record.boot), timeout) if at is not None else ()
        missing = [slot for slot in slots if slot not in found]
        if missing:
            raise HandoverFailed(missing, to, "it has no whole copy of them yet")

    async def _give(
        self, slots: Sequence[OwnedSlot], peer: Peer, cause: str, trace: TraceIds | None, patience: float
    ) -> list[OwnedSlot]:
        """Close the gates and hand over what is idle in time. Returns the others; alone, a slot fails instead."""
        record = self._recorder.handover()
        free = [owned.slot for owned in slots if not owned.preparing]  # not those that are being read again from etcd
        closed = self._owned.close(free, readable=True)
        numbers = [owned.slot for owned in closed]
        self._changes.frozen.update(numbers)
        try:
            await self._until_in_set(numbers, peer.member, DRAIN_TIMEOUT)
            busy = await still_busy(closed, patience)
            for owned in busy:
                self._owned.reopen(owned)
            idle = [owned for owned in closed if owned not in busy]
            if idle:
                await self._give_closed(idle, peer, cause, trace, record)
            elif len(busy) == 1:
                raise HandoverFailed([busy[0].slot], peer.member, "calls under way did not end in time")
            return busy
        finally:
            self._changes.frozen.difference_update(numbers)
            for owned in closed:
                self._owned.reopen(owned)

    async def _give_closed(
        self, slots: Sequence[OwnedSlot], peer: Peer, cause: str, trace: TraceIds | None, record: HandoverRecord
    ) -> None:
        record.step()
        numbers = [owned.slot for owned in slots]
        now = time.time()
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
                    self._owned.drop(owned)
            raise HandoverFailed(numbers, peer.member, "somebody else has claimed a slot")
        for owned in slots:
            owned.owner, owned.fence = leaving[owned.slot], fenced
        crash_point(CrashPoint.HANDOVER_FENCED)
        record.step()
        for owned in slots:
            owned.readable = False  # from now on the target may be active, and take writes, before we hear of it
        try:
            async with asyncio.timeout(CONFIRM_TIMEOUT):
                successors, revision = await self._client.activate(peer, numbers, fenced)
        except (PeerError, TimeoutError) as error:
            for owned in slots:
                await self._take_back(owned)
            raise HandoverFailed(numbers, peer.member, str(error) or "no answer in time") from None
        crash_point(CrashPoint.HANDOVER_CONFIRMED)
        for slot, successor in successors.items():
            self._pool.state.note_owner(slot, successor, revision)
        for owned in slots:
            self._owned.drop(owned)
        record.given(numbers, peer.member, revision, trace)

    def _stands(self, owned: OwnedSlot) -> bool:
        """Whether, as far as is known here, nobody has replaced the record that makes a slot ours."""
        at = self._pool.state.owners.get(owned.slot)
        return at is not None and at.revision <= owned.fence

    async def _take_back(self, owned: OwnedSlot) -> None:
        """Undo a fence. If the compare fails, the target became active after all.

        It may have died since, and this member may have claimed the slot from it: then it keeps what it has claimed.
        """
        crash_point(CrashPoint.UNDO_DECIDED)
        mine = undo_handover(owned.owner, now=time.time())
        sync = self._sync_beside(owned.slot, owned.owner, mine)
        revision = await self._replace_records({owned.slot: owned.fence}, {owned.slot: mine}, {owned.slot: sync})
        if revision and self._note(owned.slot, mine, sync, revision):
            owned.owner, owned.fence = mine, revision
            self._active.begin_anew(owned, sync.sync_set())
        else:
            self._owned.drop(owned)

    def _sync_beside(self, slot: int, before: Owner, after: Owner) -> SyncRecord:
        """The sync record to write beside an owner record. Raises :class:`NotInSet`."""
        return sync_beside(before, self._pool.state.sync_sets.get(slot), after)

    def _note(self, slot: int, owner: Owner, sync: SyncRecord, revision: int) -> bool:
        """Take in the records that a transaction has written; whether nobody has replaced them since."""
        self._pool.state.note_sync_set(slot, sync, revision)
        return self._pool.state.note_owner(slot, owner, revision)

    async def undo_stale(self, slot: int) -> None:
        """Take back a handover that its record still shows under way, although nobody carries it out."""
        owned = self._owned.get(slot)
        at = self._pool.state.owners.get(slot)
        if owned is None or at is None or at.record.phase is not Phase.HANDOVER:
            return
        owned.owner, owned.fence = at.record, at.revision
        await self._take_back(owned)
        self._owned.reopen(owned)

    async def read_records(self, slot: int) -> bool:
        """Read both records of a slot, as of one revision; whether the owner record names this process.

        False also if etcd was taken over, and this process has not read yet that it was.
        """
        state = self._pool.state
        known = ModRevision(self._keys.take_over, state.taken_over_at)
        result = await self._etcd.txn([known], records_read(self._keys, [slot]), [])
        if not result.succeeded:
            return False
        owners, sync_sets = result.answers
        for kv in sync_sets:
            state.read_sync_set(slot, kv)
        for kv in owners:
            state.read_owner(slot, kv)
        return bool(owners) and self._pool.view().mine(slot)

    async def take_up_again(self, slot: int, at: At[Owner]) -> At[Owner] | None:
        """Own a slot again, under a new record, that was given up under ``at``; None if somebody else has it.

        While ``at`` stands, a member that was asked to take the slot may claim it without a wait for our reads.
        """
        mine = take_up(at.record, now=time.time())
        sync = self._sync_beside(slot, at.record, mine)
        revision = await self._replace_records({slot: at.revision}, {slot: mine}, {slot: sync})
        self._owned.given_up.pop(slot, None)
        if not revision or not self._note(slot, mine, sync, revision):
            return None
        return At(mine, revision)

    async def take(self, slots: Sequence[int], revision: int) -> dict[int, At[Owner]]:
        """Become active for slots that their owner fenced at ``revision``, and return the new owner records.

        Raises:
            NotTaken: a record at ``revision`` does not name us, somebody has changed one since, or this process ends.
            EtcdError: etcd gave no definite answer.
        """
        if self._owned.closed:
            raise NotTaken(f"{self._me} is about to end")
        with self._owned.transaction():
            return await self._take(slots, revision)

    async def _take(self, slots: Sequence[int], revision: int) -> dict[int, At[Owner]]:
        record = self._recorder.handover()
        await self._see(slots, revision)
        leaving = self._left_to_us(slots, revision)
        now = time.time()
        mine = {slot: finish_handover(owner, self._pool.identity.boot, now=now) for slot, owner in leaving.items()}
        first = next(iter(leaving.values()))
        trace = TraceIds.from_traceparent(first.traceparent) if first.traceparent else None
        note = []
        if trace is not None:
            taken = {slot: owner.epoch for slot, owner in mine.items()}
            note = [self._failovers.add(trace.hex, first.active, taken, cause=first.cause, planned=True, now=now)]
        try:
            sync_sets = {slot: self._sync_beside(slot, leaving[slot], mine[slot]) for slot in slots}
        except NotInSet as error:
            raise NotTaken(str(error)) from None
        lacking = [slot for slot, record in sync_sets.items() if self._opener.lacks(slot, record.sync_set())]
        if lacking:
            raise NotTaken(f"the copies of slots {lacking} are not whole")
        view = self._pool.view()
        copied = {slot for slot in slots if view.counts_on(slot)}  # of a slot of release 0.1.0 etcd has everything
        crash_point(CrashPoint.TARGET_ASKED)
        with self._recorder.moving(slots, trace):
            won = await self._replace_records(dict.fromkeys(slots, revision), mine, sync_sets, note)
        if not won:
            raise NotTaken(f"slots {list(slots)}: their owner took one of them back")
        crash_point(CrashPoint.TARGET_ACTIVE)
        gained = [
            Gained(self._owned.gain(slot, owner, won), sync_sets[slot].sync_set(), copied=slot in copied)
            for slot, owner in mine.items()
            if self._note(slot, owner, sync_sets[slot], won)
        ]
        work = asyncio.create_task(self._opener.open(gained))
        self._opening.add(work)
        work.add_done_callback(self._opening.discard)
        record.received(slots, trace)
        return {slot: At(owner, won) for slot, owner in mine.items()}

    def _left_to_us(self, slots: Sequence[int], revision: int) -> dict[int, Owner]:
        """The records by which their owner leaves ``slots`` to us. Raises ``NotTaken``."""
        leaving = {}
        for slot in slots:
            at = self._pool.state.owners.get(slot)
            if at is None or at.revision != revision or at.record.to != self._me:
                raise NotTaken(f"slot {slot}: no handover to {self._me} stands at revision {revision}")
            leaving[slot] = at.record
        return leaving

    async def _see(self, slots: Sequence[int], revision: int) -> None:
        """Know the records of the handover: by the watch, or else by reading etcd."""
        if not await self._copies.caught_up(revision, CONFIRM_TIMEOUT / 4, self._keys.owners):
            for slot in slots:
                await self.read_records(slot)

    async def _replace_records(
        self,
        fences: Mapping[int, int],
        records: Mapping[int, Owner],
        sync_sets: Mapping[int, SyncRecord] | None = None,
        extra: Sequence[Put] = (),
    ) -> int:
        """Replace owner records that were written at ``fences``, all or none, and return the new revision.

        With ``sync_sets`` the epoch rises. Then the sync records of all slots are compared with what is known of them
        here, and those of ``sync_sets`` are replaced. 0 if a record is another by now.
        """
        keys, state, beside = self._keys, self._pool.state, sync_sets or {}
        compared = records if sync_sets is not None else ()
        standing = {slot: at.revision if (at := state.sync_sets.get(slot)) else 0 for slot in compared}
        result, _ = await retry_txn(
            self._etcd,
            records_compared(keys, fences, standing),
            [*records_written(keys, records, beside), *extra],
            records_read(keys, list(records)),
            patience=OUTCOME_TIMEOUT,
        )
        if result.succeeded:
            return result.revision
        owners, others = result.answers[: len(records)], result.answers[len(records) :]
        found = {slot: kvs[0] for slot, kvs in zip(records, owners, strict=True) if kvs}
        if len(found) == len(records) and all(kv.value == records[slot].encode() for slot, kv in found.items()):
            return next(iter(found.values())).mod_revision
        for slot, kv in found.items():
            state.read_owner(slot, kv)
        for slot, kvs in zip(records, others, strict=True):
            if kvs:
                state.read_sync_set(slot, kvs[0])
        return 0
