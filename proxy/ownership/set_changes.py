"""Carries out the changes of sync sets that :mod:`understudy.proxy.ownership.set_decisions` proposes.

A change is a transaction that compares the owner record and the sync record. It is sent until its outcome is known;
meanwhile a write needs both sets (:mod:`understudy.statesync.replication.sync_set`). The changes of many slots go
together, because the death of one member is a change in every slot that it had a copy of.
"""

import asyncio
import logging
import time
from collections.abc import Collection, Sequence

from understudy.proxy.health.loop_lag import LoopLag
from understudy.proxy.member.home_watch import HomeWatch
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.active_slots import ActiveSlots
from understudy.proxy.ownership.owned_slots import OwnedSlots
from understudy.proxy.ownership.pool_updates import PoolUpdates
from understudy.proxy.ownership.set_decisions import Change, SetDecisions
from understudy.proxy.replication.copy_connections import CopyConnections
from understudy.statesync.etcd.client import (
    Compare,
    CreateRevision,
    EtcdClient,
    EtcdError,
    Get,
    Kv,
    ModRevision,
    Operation,
    OutcomeUnknown,
    Put,
)
from understudy.statesync.etcd.txn_retry import retry_txn
from understudy.statesync.process.services import set_within
from understudy.statesync.process.ticks import Alarm
from understudy.statesync.replication.sync_set import Process

logger = logging.getLogger(__name__)

POLL_INTERVAL = 0.05
TOGETHER_MOST = 40
"""Changes in one transaction: two compares and two reads each, and their operations stay below etcd's 128."""
OUTCOME_TIMEOUT = 10.0
RETRY_INTERVAL = 0.2


class SetChanges:
    """Changes the sync sets of all slots in which this process is active.

    Attributes:
        frozen: slots on their way to another active: their sets stay as they are.
    """

    def __init__(
        self,
        pool: PoolView,
        etcd: EtcdClient,
        owned: OwnedSlots,
        active: ActiveSlots,
        connections: CopyConnections,
        updates: PoolUpdates,
        loop_lag: LoopLag,
        home: HomeWatch,
    ) -> None:
        self._pool = pool
        self._keys = pool.identity.keys
        self._etcd = etcd
        self._owned = owned
        self._active = active
        self._connections = connections
        self._updates = updates
        self._wake = Alarm()
        self._decided = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._alone: set[int] = set()
        self.decisions = SetDecisions(pool, owned, active, connections, loop_lag, home)
        self.frozen = self.decisions.frozen

    def wake(self) -> None:
        """Something waits that a change may help."""
        self._wake.set()

    async def until_in(self, slots: Collection[int], process: Process, timeout: float) -> frozenset[int]:
        """Wait until a process is in the sets of ``slots``, at most ``timeout`` seconds; those in whose set it is."""
        give_up = time.monotonic() + timeout
        self.decisions.awaited.update(slots)
        try:
            while True:
                found = frozenset(slot for slot in slots if self._has(slot, process))
                left = give_up - time.monotonic()
                if len(found) == len(slots) or left <= 0:
                    return found
                self._decided.clear()
                await set_within(self._decided, min(left, POLL_INTERVAL))
        finally:
            self.decisions.awaited.subtract(slots)

    async def save_all(self, seconds: float) -> int:
        """Have etcd get everything, and acknowledge nothing from memory any more: this process is about to end.

        Transactions that may bring slots are waited for: what these have must be saved too. Returns how many slots have
        writes that etcd may lack, after so many seconds at the most.
        """
        self.decisions.ending = True
        give_up = time.monotonic() + seconds
        while left := self._in_memory_only():
            if time.monotonic() >= give_up:
                break
            self.wake()
            self._decided.clear()
            await set_within(self._decided, POLL_INTERVAL)
        return left

    def _in_memory_only(self) -> int:
        """How many slots have writes that etcd may lack, and transactions under way that may bring such slots."""
        served = sum(active.stream.agreed.memory or bool(active.saves) for active in self._active.slots)
        records = self._pool.state.sync_sets
        opening = [slot for slot in self._owned.slots if slot not in self._active and slot in records]
        return served + sum(records[slot].record.memory for slot in opening) + self._owned.taking

    def _has(self, slot: int, process: Process) -> bool:
        active = self._active.get(slot)
        return active is not None and process in active.stream.agreed.members and active.stream.change is None

    async def run(self) -> None:
        """Change sets until cancelled."""
        try:
            while True:
                await self._active.some()
                await self._wake.wait(POLL_INTERVAL)
                self._begin(self.decisions.proposals())
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, changes: Sequence[Change]) -> None:
        together: list[Change] = []
        size = 0
        for change in changes:
            change.active.stream.change = change.wanted
            change.active.removing = bool(change.saves)
            if change.slot in self._alone:
                self._alone.discard(change.slot)
                self._start([change])
                continue
            if together and (len(together) == TOGETHER_MOST or size + len(change.saves) > TOGETHER_MOST):
                self._start(together)
                together, size = [], 0
            together.append(change)
            size += len(change.saves)
        if together:
            self._start(together)

    def _start(self, changes: Sequence[Change]) -> None:
        task = asyncio.create_task(self._carry_out(list(changes)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, changes: list[Change]) -> None:
        """Send a transaction until its outcome is known, or all of its slots are lost."""
        keys = self._keys
        compares: list[Compare] = []
        success: list[Operation] = []
        failure: list[Operation] = []
        for change in changes:
            owner, sync = keys.owner(change.slot), keys.sync_set(change.slot)
            compares.append(ModRevision(owner, change.fence))
            compares.append(ModRevision(sync, change.replaces) if change.replaces else CreateRevision(sync, 0))
            if change.learner is not None:
                compares.append(ModRevision(*change.learner))
            success.append(Put(sync, change.record.encode()))
            success.extend(change.saves)
            failure.append(Get(owner))
            failure.append(Get(sync))
        unknown = False
        while any(self._active.stands(change.active) for change in changes):
            try:
                result, _ = await retry_txn(self._etcd, compares, success, failure, patience=OUTCOME_TIMEOUT)
            except OutcomeUnknown as error:
                logger.warning("whether sync sets have changed is not known yet: %s", error)
                unknown = True
                continue
            except EtcdError as error:
                logger.info("sync sets cannot be changed now: %s", error)
                await asyncio.sleep(RETRY_INTERVAL)
                if unknown:
                    continue  # this try had no effect, but an earlier one may have had it
                self._end(changes, {})
                return
            if result.succeeded:
                self._end(changes, {change.slot: result.revision for change in changes})
            else:
                self._sort_out(changes, result.answers)
            return

    def _sort_out(self, changes: Sequence[Change], answers: Sequence[Sequence[Kv]]) -> None:
        """A compare has failed: find which, and whether an earlier try was applied after all."""
        applied: dict[int, int] = {}
        for change, owners, syncs in zip(changes, answers[::2], answers[1::2], strict=True):
            self._alone.add(change.slot)
            if syncs:
                self._pool.state.read_sync_set(change.slot, syncs[0])
                if syncs[0].value == change.record.encode() and syncs[0].mod_revision > change.replaces:
                    applied[change.slot] = syncs[0].mod_revision
            if owners and owners[0].mod_revision != change.fence:
                self._updates.refused_by(change.slot, owners[0])
        self._end(changes, applied)

    def _end(self, changes: Sequence[Change], applied: dict[int, int]) -> None:
        """The outcome of each change is known: the revisions of those that took effect."""
        removed: dict[str, list[int]] = {}
        for change in changes:
            if not self._active.stands(change.active):
                continue
            stream = change.active.stream
            change.active.removing = False
            revision = applied.get(change.slot)
            if revision is None:
                stream.decided(stream.agreed)
            else:
                self._pool.state.note_sync_set(change.slot, change.record, revision)
                for gone in stream.agreed.members - change.wanted.members:
                    removed.setdefault(gone.member, []).append(change.slot)
                for joined in change.wanted.members - stream.agreed.members:
                    self._connections.joined(change.slot, joined)
                stream.decided(change.wanted)
                if change.saves:
                    self._active.all_saved(change.slot, stream.acknowledged)
            self._active.advance(change.slot)
            self._connections.send(change.slot)
        for member, slots in removed.items():
            logger.info("%s is out of the sync sets of %d slots: %s", member, len(slots), ", ".join(map(str, slots)))
        self._decided.set()
