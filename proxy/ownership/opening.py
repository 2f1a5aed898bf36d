"""Opens slots that have become this process's: with the copy that it has in memory, or else with what etcd has."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

from understudy.proxy.member.local_copies import LocalCopies
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.active_slots import ActiveSlots
from understudy.proxy.ownership.owned_slots import OwnedSlot, OwnedSlots
from understudy.proxy.replication.copy_keeper import CopyKeeper
from understudy.statesync.etcd.client import EtcdClient, EtcdError
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.pool_clock import PoolClock
from understudy.statesync.replication.slot_copy import SlotCopy
from understudy.statesync.replication.sync_set import SyncSet
from understudy.statesync.sessions.digests import read_slot
from understudy.telemetry.timing.backoff import Backoff

logger = logging.getLogger(__name__)

READS_AT_ONCE = 8
"""Slots that are read from etcd at once. Callers wait for them."""
FIRST_RETRY, LAST_RETRY = 0.02, 0.5
"""Seconds before a failed read from etcd is repeated: the first time, and at most."""


class Gained(NamedTuple):
    """A slot that is ours under a new owner record, and the sync set beside it.

    ``copied``: if this process has a whole copy, that has everything that was acknowledged.
    """

    owned: OwnedSlot
    agreed: SyncSet
    copied: bool


class SlotOpener:
    """Begins the streams of slots, and opens their gates."""

    def __init__(
        self,
        pool: PoolView,
        copies: LocalCopies,
        etcd: EtcdClient,
        owned: OwnedSlots,
        active: ActiveSlots,
        keeper: CopyKeeper,
        clock: PoolClock,
    ) -> None:
        self._clock = clock
        self._keys = pool.identity.keys
        self._requests = prefix_range(pool.identity.keys.requests)
        self._copies = copies
        self._etcd = etcd
        self._owned = owned
        self._active = active
        self._keeper = keeper
        self._reading = asyncio.Semaphore(READS_AT_ONCE)

    async def open(self, slots: Sequence[Gained]) -> None:
        """Open the gates of ``slots``, of each as soon as it can be served; those that are lost meanwhile stay shut.

        A process that has just started compares its clock with another one first: it would stamp sessions with it.
        """
        for one in slots:
            one.owned.preparing = True
        await self._clock.compared()
        await asyncio.gather(*(self._find_removed(one.owned) for one in slots if one.copied))
        begun = {one.owned.slot for one in slots if one.copied and self._begin(one)}
        absent = [one for one in slots if one.owned.slot not in begun and self._may_read(one)]
        for one in absent:
            self._keeper.drop(one.owned.slot)  # it may have what was never acknowledged, and lack what was
        async with asyncio.TaskGroup() as group:
            for one in slots:
                if one.owned.slot in begun:
                    group.create_task(self._settle(one.owned))
            if absent:
                log = group.create_task(self._until_read(self._read_requests, "the request log"))
                for one in absent:
                    group.create_task(self._read(one, log))

    def lacks(self, slot: int, agreed: SyncSet) -> bool:
        """Whether this process could not open a slot: its copy is not whole, and etcd may lack writes."""
        return agreed.memory and not self._keeper.is_whole(slot)

    async def _find_removed(self, owned: OwnedSlot) -> None:
        """Find the sessions that were removed before etcd was set back, and that it has again."""
        copy = self._keeper.copies.get(owned.slot)
        if copy is None or not copy.set_back:
            return
        async with self._reading:
            await self._until_read(partial(self._compare, owned, copy), f"slot {owned.slot}")

    async def _compare(self, owned: OwnedSlot, copy: SlotCopy) -> None:
        if not self._ours(owned):
            return
        replica = self._copies.replica
        stored = await read_slot(self._etcd, self._keys, owned.slot, codec=replica.codec)
        here = frozenset(replica.keys(owned.slot))
        copy.removed(key for key, one in stored.entries.items() if key not in here and one.version <= copy.shown)

    def _begin(self, gained: Gained) -> bool:
        """Begin with the copy; False if there is none that is whole."""
        return self._ours(gained.owned) and self._active.begin_from_memory(gained.owned, gained.agreed)

    def _may_read(self, gained: Gained) -> bool:
        """Whether etcd has everything of a slot of which there is no copy here; else the slot is given up."""
        if gained.agreed.memory and self._ours(gained.owned):
            logger.error("slot %d is ours, but its newest writes are in other members' memory", gained.owned.slot)
            self._owned.lose(gained.owned.slot)
        return self._ours(gained.owned)

    async def _settle(self, owned: OwnedSlot) -> None:
        """Open the gate once all of the set have what this process had as a copy."""
        if await self._active.settled(owned.slot):
            self._owned.reopen(owned)

    async def _read(self, gained: Gained, log: Awaitable[None]) -> None:
        owned = gained.owned
        async with self._reading:
            await self._until_read(partial(self._load, owned), f"slot {owned.slot}")
        await log
        if self._ours(owned):
            self._active.begin(owned, gained.agreed, None)
            self._owned.reopen(owned)

    async def _load(self, owned: OwnedSlot) -> None:
        if self._ours(owned):
            await self._copies.replica.load(owned.slot, partial(self._ours, owned))

    def _ours(self, owned: OwnedSlot) -> bool:
        return self._owned.get(owned.slot) is owned

    async def _read_requests(self) -> None:
        await self._copies.read_requests(self._etcd, self._requests)

    @staticmethod
    async def _until_read(read: Callable[[], Awaitable[None]], what: str) -> None:
        """Read from etcd, again and again until it answers."""
        backoff = Backoff(FIRST_RETRY, LAST_RETRY)
        while True:
            try:
                await read()
            except EtcdError as error:
                logger.warning("%s cannot be read from etcd yet: %s", what, error)
                await asyncio.sleep(backoff.next())
            else:
                return
