"""The informer on a real etcd: what a receiver is handed, and that no gap in the watch is passed over."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.harness.cable import cable_to
from tests.harness.etcd import EtcdServer
from tests.harness.waiting import until
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.informer import Informer, InformerBatch
from understudy.statesync.pool.keys import PoolKeys


@asynccontextmanager
async def running(informer: Informer) -> AsyncIterator[None]:
    task = asyncio.create_task(informer.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_gap_in_the_watch_is_made_up_for_by_a_reset(
    etcd: EtcdServer, client: EtcdClient, pool_name: str
) -> None:
    keys = PoolKeys(pool_name)
    batches: list[InformerBatch] = []
    await client.put(keys.owner(1), b"is removed in the gap")
    async with cable_to(etcd.endpoint) as cable, EtcdClient([cable.address]) as far:
        informer = Informer(far, keys.records, batches.append)
        async with running(informer):
            await asyncio.wait_for(informer.synced.wait(), 40)
            cable.reset()
            await client.delete(keys.owner(1))
            for n in range(5):
                revision = await client.put(keys.table, str(n).encode())
            await client.compact(revision)
            cable.mend()
            await asyncio.wait_for(informer.caught_up(revision), 40)

    assert [batch.reset for batch in batches] == [True, True]
    assert [(event.kv.key, event.kv.value) for event in batches[1].events] == [(keys.table, b"4")]


async def test_a_pools_records_come_without_what_changes_with_every_write(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    batches: list[InformerBatch] = []
    records = [keys.spec, keys.member("a"), keys.intent("a"), keys.owner(3), keys.sync_set(3), keys.table, keys.secret]
    records += [keys.failover("trace", "a", "b"), keys.control("c"), keys.encryption]
    others = [keys.session(3, "k"), keys.commit("a"), f"{keys.requests}a/1/1"]
    neighbour = PoolKeys(f"{pool_name}2")

    async def write_all() -> None:
        for key in (*others, neighbour.table, *records):
            await client.put(key, b"v")

    def watched() -> set[str]:
        return {event.kv.key for batch in batches[1:] for event in batch.events}

    await write_all()
    informer = Informer(client, keys.records, batches.append)
    async with running(informer):
        await asyncio.wait_for(informer.synced.wait(), 40)
        listed = {event.kv.key for event in batches[0].events}
        await write_all()
        await until(lambda: watched() >= set(records), what="all records have come")
    assert listed == watched() == set(records)


async def test_a_range_is_not_caught_up_because_another_one_is(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    informer = Informer(client, keys.records, lambda _: None)
    async with running(informer):
        await asyncio.wait_for(informer.synced.wait(), 40)
        table = await client.put(keys.table, b"v")
        await asyncio.wait_for(informer.caught_up(table, keys.table), 40)
        waiting = asyncio.create_task(informer.caught_up(table, keys.owner(3)))
        await asyncio.wait_for(informer.caught_up(table), 40)
        assert not waiting.done()
        owner = await client.put(keys.owner(3), b"v")
        await asyncio.wait_for(waiting, 40)
        assert informer.revision_of(keys.owner(3)) == owner
