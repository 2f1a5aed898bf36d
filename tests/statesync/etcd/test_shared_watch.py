"""Watches that share a stream keep all that the tests of single watches demand, and leave each other alone."""

import functools

import pytest

from tests.harness.waiting import until
from tests.statesync.etcd.test_watch import *  # noqa: F403 - all of its tests, with shared watches
from tests.statesync.etcd.test_watch import watching
from understudy.statesync.etcd.client import Compacted, EtcdClient
from understudy.statesync.pool.keys import PoolKeys

# What a shared watch has read ahead is not gone, so nothing can be missing in that test.
del test_a_resumed_watch_whose_changes_are_gone_says_so  # type: ignore[name-defined]  # noqa: F821


@pytest.fixture(autouse=True)
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every client shares its watches."""
    whole = functools.partialmethod(EtcdClient.__init__, share_watches=True)
    monkeypatch.setattr(EtcdClient, "__init__", whole)


@pytest.fixture
async def client(etcd, shared):
    async with etcd.client() as one:
        yield one


async def test_watches_come_and_go_on_one_stream(client: EtcdClient, pool_name: str) -> None:
    streams = []
    endpoint = client._transport.endpoints[0]
    opened = endpoint.watch
    endpoint.watch = lambda **more: streams.append(1) or opened(**more)
    one, two = PoolKeys(f"{pool_name}-1"), PoolKeys(f"{pool_name}-2")
    begin = await client.put(one.spec, b"begin")
    async with watching(client, one.everything, begin) as first:
        await until(first.seen(b"begin"))
        async with watching(client, two.everything, begin) as second:
            await client.put(two.spec, b"two")
            await until(second.seen(b"two"))
        await client.put(two.spec, b"three")
        await client.put(one.spec, b"last")
        await until(first.seen(b"last"))
        async with watching(client, two.everything, begin) as again:
            await until(again.seen(b"three"))
        assert {event.kv.key for event in first.events} == {one.spec}
    assert {event.kv.value for event in second.events} == {b"two"}
    assert streams == [1]


async def test_a_watch_that_is_too_old_ends_alone(etcd_server, shared: None) -> None:
    async with etcd_server.client() as client:
        keys = PoolKeys("cart")
        begin = await client.put(keys.spec, b"1")
        async with watching(client, keys.everything, begin) as sound:
            await until(sound.seen(b"1"))
            revision = await client.put(keys.spec, b"2")
            await until(sound.seen(b"2"))
            await client.put(keys.spec, b"3")
            await client.compact(revision)
            with pytest.raises(Compacted):
                async for _ in client.watch(keys.everything, begin):
                    pass
            await client.put(keys.spec, b"4")
            await until(sound.seen(b"4"))
        assert [event.kv.value for event in sound.events] == [b"1", b"2", b"3", b"4"]
