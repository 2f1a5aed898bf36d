"""Follows what the other pools of a pool's group say of their sites (:mod:`understudy.xds.planning.site_group`)."""

import asyncio
import logging
from collections.abc import Callable, Mapping

from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.informer import Informer, InformerBatch
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.keys import GroupKeys
from understudy.statesync.pool.site_records import PoolInGroup
from understudy.statesync.process.services import set_within

logger = logging.getLogger(__name__)

READ_WITHIN = 10.0
"""Seconds for which a pool waits until its group was read. After that it goes on without the group."""
OnGroup = Callable[[Mapping[str, PoolInGroup] | None], None]
"""Called with what the other pools say, by their names; None while that is not known."""


class GroupWatch:
    """Follows the group of one pool.

    Args:
        client: the etcd client.
        pool: the pool's name; what it says itself is left out.
        group: :attr:`PoolSpec.full_group` of the spec in force.
        on_group: called with every change.
    """

    def __init__(self, client: EtcdClient, pool: str, group: Callable[[], str], on_group: OnGroup) -> None:
        self._client = client
        self._pool = pool
        self._group = group
        self._on_group = on_group
        self._wake = asyncio.Event()
        self._known: dict[str, PoolInGroup] = {}

    def wake(self) -> None:
        """The spec may have changed."""
        self._wake.set()

    async def run(self) -> None:
        """Follow the group until cancelled, and another one when the spec names another one."""
        while True:
            group = self._group()
            self._known = {}
            if not group:
                self._on_group({})
                await self._until_other(group)
                continue
            self._on_group(None)
            informer = self._informer(GroupKeys(group))
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(informer.run()), tasks.create_task(self._in_time(informer, group))
                await self._until_other(group)
                for task in running:
                    task.cancel()

    def _informer(self, keys: GroupKeys) -> Informer:
        return Informer(self._client, [prefix_range(keys.prefix)], lambda batch: self._take(batch, keys))

    async def _until_other(self, group: str) -> None:
        while self._group() == group:
            await self._wake.wait()
            self._wake.clear()

    async def _in_time(self, informer: Informer, group: str) -> None:
        if not await set_within(informer.synced, READ_WITHIN):
            logger.error(
                "pool %s: its group %s cannot be read (%s): the pool goes on alone until it can; "
                "this control server's role in etcd needs readwrite on %s",
                self._pool,
                group,
                informer.trouble or "etcd does not answer",
                GroupKeys(group).prefix,
            )
            self._on_group({})

    def _take(self, batch: InformerBatch, keys: GroupKeys) -> None:
        if batch.reset:
            self._known = {}
        for event in batch.events:
            pool = event.kv.key.removeprefix(keys.prefix)
            self._known.pop(pool, None)
            if event.kind == "put" and pool != self._pool:
                self._decode(pool, event.kv.value)
        self._on_group(dict(self._known))

    def _decode(self, pool: str, value: bytes) -> None:
        try:
            self._known[pool] = PoolInGroup.decode(value)
        except ValueError as error:
            logger.warning("pool %s: what pool %s says to its group cannot be read: %s", self._pool, pool, error)
