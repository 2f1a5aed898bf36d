"""Makes slots of this process replicated that are not yet, when the spec asks for it.

That is after a change of the spec, and after an upgrade; claims do it by themselves. The gate is closed meanwhile, so
that everything acknowledged is in etcd when the stream begins.
"""

import asyncio
import logging
from collections.abc import Sequence

from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.active_slots import ActiveSlots
from understudy.proxy.ownership.owned_slots import OwnedSlot, OwnedSlots, still_busy
from understudy.proxy.ownership.pool_updates import PoolUpdates
from understudy.statesync.etcd.client import (
    Compare,
    CreateRevision,
    EtcdClient,
    EtcdError,
    Get,
    ModRevision,
    OutcomeUnknown,
    Put,
)
from understudy.statesync.etcd.txn_retry import retry_txn
from understudy.statesync.pool.records import Phase, SyncRecord
from understudy.statesync.replication.sync_set import Process, SyncSet

logger = logging.getLogger(__name__)

POLL_INTERVAL = 0.5
TOGETHER_MOST = 16
IDLE_TIMEOUT = 0.05
"""Seconds in which the calls of a slot must end; else it is tried again later."""
OUTCOME_TIMEOUT = 10.0


class ReplicationStart:
    """Begins replication in slots that are served without it."""

    def __init__(
        self, pool: PoolView, etcd: EtcdClient, owned: OwnedSlots, active: ActiveSlots, updates: PoolUpdates
    ) -> None:
        self._pool = pool
        self._keys = pool.identity.keys
        self._alone = SyncSet(frozenset({Process(pool.identity.me, pool.identity.boot)}))
        self._etcd = etcd
        self._owned = owned
        self._active = active
        self._updates = updates

    async def run(self) -> None:
        """Look for such slots until cancelled."""
        while True:
            await asyncio.sleep(POLL_INTERVAL)
            spec = self._pool.spec
            if spec is None or not spec.replicates:
                continue
            plain = [slot for slot in self._owned.open_slots() if slot not in self._active]
            for start in range(0, len(plain), TOGETHER_MOST):
                try:
                    await self._begin(plain[start : start + TOGETHER_MOST])
                except EtcdError as error:
                    logger.warning("slots cannot be replicated yet: %s", error)
                    break

    async def _begin(self, slots: Sequence[int]) -> None:
        closed = self._owned.close(slots, readable=True)
        for owned in closed:
            owned.preparing = True  # nobody else may open the gate
        try:
            busy = await still_busy(closed, IDLE_TIMEOUT)
            idle = [
                owned
                for owned in closed
                if owned not in busy and self._still_ours(owned) and owned.owner.phase is Phase.STABLE
            ]
            if idle and await self._written(idle):
                for owned in idle:
                    if self._still_ours(owned):
                        self._active.begin(owned, self._alone, None)
        finally:
            for owned in closed:
                self._owned.reopen(owned)

    def _still_ours(self, owned: OwnedSlot) -> bool:
        return self._owned.get(owned.slot) is owned

    async def _written(self, slots: Sequence[OwnedSlot]) -> bool:
        """Write the sync records of slots, all or none; whether it has taken effect."""
        keys, state = self._keys, self._pool.state
        before = {slot: at.record.losses for slot, at in state.sync_sets.items()}
        records = {
            owned.slot: SyncRecord.of_set(owned.owner.epoch, self._alone, before.get(owned.slot, 0)) for owned in slots
        }
        compares: list[Compare] = []
        for owned in slots:
            at = state.sync_sets.get(owned.slot)
            sync = keys.sync_set(owned.slot)
            compares.append(ModRevision(keys.owner(owned.slot), owned.fence))
            compares.append(ModRevision(sync, at.revision) if at is not None else CreateRevision(sync, 0))
        success = [Put(keys.sync_set(slot), record.encode()) for slot, record in records.items()]
        failure = [get for owned in slots for get in (Get(keys.owner(owned.slot)), Get(keys.sync_set(owned.slot)))]
        while True:
            try:
                result, _ = await retry_txn(self._etcd, compares, success, failure, patience=OUTCOME_TIMEOUT)
            except OutcomeUnknown as error:
                if not any(map(self._still_ours, slots)):
                    return False
                logger.warning("whether slots are replicated now is not known yet: %s", error)
                continue
            if result.succeeded:
                for slot, record in records.items():
                    state.note_sync_set(slot, record, result.revision)
                return True
            applied = True
            for owned, owners, syncs in zip(slots, result.answers[::2], result.answers[1::2], strict=True):
                if owners and owners[0].mod_revision != owned.fence:
                    self._updates.refused_by(owned.slot, owners[0])
                if syncs:
                    state.read_sync_set(owned.slot, syncs[0])
                applied = applied and bool(syncs) and syncs[0].value == records[owned.slot].encode()
            return applied
