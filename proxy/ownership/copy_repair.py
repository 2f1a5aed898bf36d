"""Makes the copy of a slot anew that was found wrong.

At a standby the active sends the slot again. The copy that is there stays until then: this process may be in the sync
set, and a set must not count a process that has nothing. So the active first takes it out of the set.

At the active the sessions are read again from etcd. All of them must be there, so the gate is closed, calls under way
end, and everything is saved. Then the slot begins anew, under an owner record of a later epoch and a sync set of this
process alone. So the copies of other members follow the new history, and nothing that was sent before counts.
"""

import asyncio
import logging
import time

from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.active_slot import ActiveSlot
from understudy.proxy.ownership.active_slots import ActiveSlots
from understudy.proxy.ownership.opening import Gained, SlotOpener
from understudy.proxy.ownership.owned_slots import OwnedSlot, OwnedSlots, still_busy
from understudy.proxy.ownership.pool_updates import PoolUpdates
from understudy.proxy.ownership.set_changes import SetChanges
from understudy.proxy.peers.anti_entropy import NotHeld, RepairRefused
from understudy.proxy.replication.copy_keeper import CopyKeeper
from understudy.statesync.etcd.client import EtcdClient, EtcdError, OutcomeUnknown
from understudy.statesync.etcd.txn_retry import retry_txn
from understudy.statesync.pool.owner_records import begin_anew, records_compared, records_read, records_written
from understudy.statesync.pool.ownership import is_valid
from understudy.statesync.pool.records import Owner, SyncRecord
from understudy.statesync.replication.history import History
from understudy.statesync.replication.sync_set import Process, SyncSet
from understudy.statesync.sessions.digests import CopyProgress
from understudy.statesync.sessions.replica import Replica

logger = logging.getLogger(__name__)

IDLE_TIMEOUT = 2.0
"""Seconds in which the calls of a slot must end."""
SAVE_TIMEOUT = 4.0
"""Seconds in which etcd must have everything of a slot."""
COPY_TIMEOUT = 8.0
"""Seconds in which the active must have sent the slot again."""
OUTCOME_TIMEOUT = 10.0
RETRY_INTERVAL = 0.5


class CopyRepair:
    """The copies of this process as ``understudy.proxy.peers.anti_entropy`` sees them, and their repair."""

    def __init__(
        self,
        pool: PoolView,
        replica: Replica,
        etcd: EtcdClient,
        owned: OwnedSlots,
        active: ActiveSlots,
        keeper: CopyKeeper,
        changes: SetChanges,
        updates: PoolUpdates,
        opener: SlotOpener,
    ) -> None:
        self._pool = pool
        self._keys = pool.identity.keys
        self._alone = SyncSet(frozenset({Process(pool.identity.me, pool.identity.boot)}))
        self._replica = replica
        self._etcd = etcd
        self._owned = owned
        self._active = active
        self._keeper = keeper
        self._changes = changes
        self._updates = updates
        self._opener = opener

    # -- what there is --

    @property
    def slots(self) -> frozenset[int]:
        """The slots of which this process has everything."""
        return frozenset(slot for slot in self._replica.synced if self.progress(slot) is not None)

    def progress(self, slot: int) -> CopyProgress | None:
        """How far the copy of a slot is; None without a whole one."""
        active = self._active.get(slot)
        if active is not None:
            return CopyProgress(active.stream.visible, active.stream.saved, active.stream.last)
        copy = self._keeper.copies.get(slot)
        return CopyProgress(copy.shown, copy.saved, copy.have) if copy is not None and copy.whole else None

    def history(self, slot: int) -> History:
        """What this process, as the active, has had of the slot; empty if it is not the active."""
        active = self._active.get(slot)
        return active.stream.history if active is not None else ()

    # -- repair --

    async def make_anew(self, slot: int) -> None:
        """Replace the copy of a slot.

        Raises:
            NotHeld: this process has no copy of it.
            RepairRefused: not now; the text says why.
            EtcdError: etcd gave no answer.
        """
        if slot in self._active:
            # In a task of its own: if the caller is cancelled, the outcome of the transaction still counts.
            await asyncio.shield(asyncio.create_task(self._begin_anew(slot)))
        else:
            await self._send_again(slot)

    async def _send_again(self, slot: int) -> None:
        try:
            async with asyncio.timeout(COPY_TIMEOUT):
                made = await self._keeper.made_anew(slot)
        except TimeoutError:
            raise RepairRefused(
                f"the active of slot {slot} has not sent it again within {COPY_TIMEOUT:.0f} s: "
                "see whether it is reached from here, and try again"
            ) from None
        if not made:
            raise NotHeld(slot)

    async def _begin_anew(self, slot: int) -> None:
        """As the active, begin the slot again with what etcd has."""
        owned, active = self._owned.get(slot), self._active.get(slot)
        if owned is None or active is None or owned.preparing or not owned.open.is_set():
            raise RepairRefused(f"slot {slot} is being claimed or handed over: try again when that has ended")
        owned.preparing = True  # nobody else may open the gate
        self._owned.close([slot])
        try:
            await self._at_rest(owned, active)
            again = await self._under_new_record(owned)
        finally:
            self._changes.frozen.discard(slot)
            self._owned.reopen(owned)
        await self._opener.open([Gained(again, self._alone, copied=False)])

    async def _at_rest(self, owned: OwnedSlot, active: ActiveSlot) -> None:
        """Wait until etcd has everything, and no change of the set is under way. Raises :class:`RepairRefused`."""
        slot = owned.slot
        if await still_busy([owned], IDLE_TIMEOUT):
            raise RepairRefused(f"calls in slot {slot} did not end within {IDLE_TIMEOUT:.0f} s: try again")
        if not await self._active.until_saved(slot, active.stream.last, SAVE_TIMEOUT):
            raise RepairRefused(
                f"etcd did not get all writes of slot {slot} within {SAVE_TIMEOUT:.0f} s, or the slot was lost: "
                "see whether etcd and the slot's copies are well, and try again"
            )
        self._changes.frozen.add(slot)
        if active.stream.change is not None:
            raise RepairRefused(f"the sync set of slot {slot} is being changed: try again")

    async def _under_new_record(self, owned: OwnedSlot) -> OwnedSlot:
        """Replace both records; the slot as it is ours then, its gate closed."""
        slot, state = owned.slot, self._pool.state
        at = state.sync_sets.get(slot)
        if at is None or not is_valid(owned.owner, at):
            raise RepairRefused(f"the sync record of slot {slot} is not known here yet: try again")
        mine = begin_anew(owned.owner, now=time.time())
        sync = SyncRecord.of_set(mine.epoch, self._alone, at.record)
        revision = await self._replaced(owned, mine, sync, at.revision)
        if revision:
            state.note_sync_set(slot, sync, revision)
        if not revision or not state.note_owner(slot, mine, revision):
            raise RepairRefused(f"another change of slot {slot} came first: try again")
        self._keeper.heard_of(slot, mine.epoch)
        again = self._owned.gain(slot, mine, revision)
        again.preparing = True
        return again

    async def _replaced(self, owned: OwnedSlot, mine: Owner, sync: SyncRecord, replaces: int) -> int:
        """Write both records; the revision, 0 if somebody has changed one of them or the slot is lost."""
        slot, keys, unknown = owned.slot, self._keys, False
        while self._owned.get(slot) is owned:
            try:
                result, _ = await retry_txn(
                    self._etcd,
                    records_compared(keys, {slot: owned.fence}, {slot: replaces}),
                    records_written(keys, {slot: mine}, {slot: sync}),
                    records_read(keys, [slot]),
                    patience=OUTCOME_TIMEOUT,
                )
            except OutcomeUnknown as error:
                logger.warning("whether slot %d has begun anew is not known yet: %s", slot, error)
                unknown = True
                continue
            except EtcdError:
                if not unknown:
                    raise
                await asyncio.sleep(RETRY_INTERVAL)  # this try had no effect, but an earlier one may have had it
                continue
            if result.succeeded:
                return result.revision
            owners, syncs = result.answers
            if owners and owners[0].value == mine.encode():
                return owners[0].mod_revision  # an earlier try was applied
            for kv in syncs:
                self._pool.state.read_sync_set(slot, kv)
            for kv in owners:
                self._updates.refused_by(slot, kv)
            return 0
        return 0
