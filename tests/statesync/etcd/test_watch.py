"""Watches against a real etcd: everything once and in order, whatever happens to etcd meanwhile."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Self

import pytest

from tests.harness.cable import cable_to
from tests.harness.etcd import EtcdServer
from tests.harness.waiting import until
from understudy.statesync.etcd import transport as etcd_transport
from understudy.statesync.etcd import watch as etcd_watch
from understudy.statesync.etcd.client import (
    Compacted,
    Delete,
    EtcdClient,
    EtcdError,
    Event,
    Put,
    Unavailable,
    WatchBatch,
)
from understudy.statesync.etcd.key_range import KeyRange
from understudy.statesync.pool.keys import PoolKeys


@pytest.fixture
def keys(pool_name: str) -> PoolKeys:
    return PoolKeys(pool_name)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_watch, "QUIET_FOR", 0.1)
    monkeypatch.setattr(etcd_watch, "SILENT_FOR", 0.4)


class Watcher:
    """Collects what a watch delivers."""

    def __init__(self) -> None:
        self.batches: list[WatchBatch] = []

    @property
    def events(self) -> list[Event]:
        return [event for batch in self.batches for event in batch.events]

    @property
    def progress(self) -> int:
        return sum(not batch.events for batch in self.batches)

    def seen(self, value: bytes) -> Callable[[], bool]:
        return lambda: any(event.kv.value == value for event in self.events)


@contextlib.asynccontextmanager
async def watching(client: EtcdClient, where: KeyRange | list[KeyRange], start: int) -> AsyncIterator[Watcher]:
    watcher = Watcher()

    async def collect() -> None:
        async for batch in client.watch(where, start):
            watcher.batches.append(batch)

    task = asyncio.create_task(collect())
    try:
        yield watcher
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def history(client: EtcdClient, where: KeyRange, start: int, last: bytes) -> list[Event]:
    async with watching(client, where, start) as watcher:
        await until(watcher.seen(last), what="the history is read")
        return watcher.events


async def test_a_transaction_comes_as_one_batch_with_its_revision(client: EtcdClient, keys: PoolKeys) -> None:
    begin = await client.put(keys.spec, b"spec")
    async with watching(client, keys.everything, begin) as watcher:
        await until(watcher.seen(b"spec"), what="the first event")
        done = await client.txn([], [Put(keys.table, b"table"), Put(keys.owner(3), b"me"), Delete(keys.spec)])
        await until(lambda: len(watcher.events) == 4, what="all events")

    first, second = (batch for batch in watcher.batches if batch.events)
    assert [(event.kind, event.kv.key) for event in first.events] == [("put", keys.spec)]
    assert {(event.kind, event.kv.key) for event in second.events} == {
        ("put", keys.table),
        ("put", keys.owner(3)),
        ("delete", keys.spec),
    }
    assert (first.revision, second.revision) == (begin, done.revision)


async def test_several_ranges_share_one_watch_and_nothing_else_comes(client: EtcdClient, keys: PoolKeys) -> None:
    begin = await client.put(keys.spec, b"before")
    async with watching(client, list(keys.records), begin + 1) as watcher:
        await client.put(keys.member("a"), b"a member")
        await client.put(keys.session(1, "x"), b"a session")
        await client.put(keys.table, b"a table")
        await client.put(keys.spec, b"last")
        await until(watcher.seen(b"last"), what="the last event")
        await until(watcher.seen(b"a table"), what="the table")

    assert {event.kv.value for event in watcher.events} == {b"a member", b"a table", b"last"}


class Writers:
    """Four tasks that write one transaction after the other, whatever happens to etcd, while ``going`` is set."""

    def __init__(self, client: EtcdClient, prefix: str) -> None:
        self.acknowledged: set[tuple[int, bytes]] = set()
        self.going = asyncio.Event()
        self._client = client
        self._prefix = prefix
        self._under_way = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self.going.set()
        self._tasks = [asyncio.create_task(self._write(writer)) for writer in range(4)]
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def pause(self) -> None:
        self.going.clear()
        await until(lambda: not self._under_way, what="the last write has ended")

    async def _write(self, writer: int) -> None:
        n = 0
        while True:
            await self.going.wait()
            n += 1
            value = b"%d-%d" % (writer, n)
            puts = [Put(f"{self._prefix}{writer}", value), Put(f"{self._prefix}shared-{n % 7}", value)]
            self._under_way += 1
            try:
                done = await self._client.txn([], puts)
                self.acknowledged.add((done.revision, value))
            except EtcdError:
                await asyncio.sleep(0.01)
            finally:
                self._under_way -= 1


async def assert_complete(watcher: Watcher, writers: Writers, client: EtcdClient, where: KeyRange, start: int) -> None:
    await until(lambda: client.put(where.start, b"end"), what="the last write")
    await until(watcher.seen(b"end"), what="the watch has caught up")
    assert watcher.events == await history(client, where, start, b"end")
    assert writers.acknowledged <= {(event.kv.mod_revision, event.kv.value) for event in watcher.events}
    revisions = [{event.kv.mod_revision for event in batch.events} for batch in watcher.batches]
    assert sum(map(len, revisions)) == len(set().union(*revisions))


async def test_everything_comes_once_and_in_order_over_a_link_that_breaks(
    etcd: EtcdServer, client: EtcdClient, keys: PoolKeys
) -> None:
    begin = await client.put(keys.spec, b"begin")
    async with (
        cable_to(etcd.endpoint) as cable,
        EtcdClient([cable.address], timeout=0.3) as remote,
        watching(remote, keys.everything, begin) as watcher,
        Writers(client, keys.members) as writers,
    ):
        for _ in range(8):
            enough = len(watcher.events) + 100
            await until(lambda enough=enough: len(watcher.events) > enough, what="events before the next cut")
            cable.reset()
            cable.mend()
        await writers.pause()
        await assert_complete(watcher, writers, client, keys.everything, begin)


async def test_everything_comes_once_and_in_order_across_kills_of_etcd(etcd_server: EtcdServer) -> None:
    where = KeyRange("k", "l")
    async with (
        etcd_server.client(timeout=0.3) as client,
        watching(client, where, 1) as watcher,
        Writers(client, "k") as writers,
    ):
        for _ in range(3):
            enough = len(watcher.events) + 200
            await until(lambda enough=enough: len(watcher.events) > enough, what="events before the next kill")
            await writers.pause()
            await etcd_server.settle(client)
            etcd_server.kill()
            writers.going.set()
            await etcd_server.start()
        await writers.pause()
        await assert_complete(watcher, writers, client, where, 1)


async def test_a_long_history_of_large_transactions_is_caught_up_with_unsplit(
    client: EtcdClient, keys: PoolKeys
) -> None:
    begin = await client.put(keys.spec, b"begin")
    for n in range(60):
        await client.txn([], [Put(keys.session(slot, "x"), b"%d" % n + bytes(1000)) for slot in range(100)])
    await client.put(keys.spec, b"end")

    async with watching(client, keys.everything, begin + 1) as watcher:
        await until(watcher.seen(b"end"), what="the end")

    batch_of: dict[int, list[int]] = {}
    for number, batch in enumerate(watcher.batches):
        for event in batch.events:
            batch_of.setdefault(event.kv.mod_revision, []).append(number)
    assert len(watcher.batches) > 2
    assert [len(numbers) for numbers in batch_of.values()] == [100] * 60 + [1]
    assert all(len(set(numbers)) == 1 for numbers in batch_of.values())


async def test_changes_that_are_gone_are_reported_with_the_oldest_revision_left(etcd_server: EtcdServer) -> None:
    where = KeyRange("a", "b")
    async with etcd_server.client() as client:
        revisions = [await client.put("a", b"%d" % n) for n in range(10)]
        await client.compact(revisions[6])

        with pytest.raises(Compacted) as caught:
            await until_event(client.watch(where, revisions[3]), b"never")

        assert caught.value.revision == revisions[6]
        assert (await client.range(where, revision=caught.value.revision)).kvs
        values = [event.kv.value for event in await history(client, where, caught.value.revision, b"9")]
        assert values == [b"6", b"7", b"8", b"9"]


async def until_event(watch: AsyncIterator[WatchBatch], value: bytes) -> None:
    async with asyncio.timeout(60):
        async for batch in watch:
            if any(event.kv.value == value for event in batch.events):
                return


async def test_a_watch_notices_that_etcd_has_lost_its_history(etcd_server: EtcdServer) -> None:
    async with etcd_server.client(timeout=0.3) as client:
        for n in range(10):
            await client.put("a", b"%d" % n, timeout=20)
        watch = client.watch(KeyRange("a", "b"), 1)
        await until_event(watch, b"9")
        etcd_server.kill()
        etcd_server.wipe()
        await etcd_server.start()

        with pytest.raises(Compacted) as caught:
            await until_event(watch, b"never")
        assert caught.value.revision == 0


async def test_a_resumed_watch_whose_changes_are_gone_says_so(etcd_server: EtcdServer) -> None:
    where = KeyRange("a", "b")
    async with etcd_server.client(timeout=0.3) as client:
        await client.put("a", b"0", timeout=20)
        watch = client.watch(where, 1)
        assert (await anext(watch)).events
        revisions = [await client.put("a", b"%d" % n, timeout=20) for n in range(1, 10)]
        await etcd_server.settle(client)
        etcd_server.kill()
        await etcd_server.start()
        async with etcd_server.client() as other:
            await other.compact(revisions[8])

        with pytest.raises(Compacted):
            await until_event(watch, b"9")


@pytest.mark.usefixtures("impatient")
async def test_a_quiet_watch_gives_signs_of_life(client: EtcdClient, keys: PoolKeys) -> None:
    revision = await client.put(keys.spec, b"x")
    async with watching(client, keys.everything, revision + 1) as watcher:
        await until(lambda: watcher.progress >= 3, what="three signs of life")

    assert not watcher.events
    assert watcher.batches[-1].revision >= revision


@pytest.mark.usefixtures("impatient")
async def test_a_watch_leaves_a_silent_endpoint_for_another(
    etcd: EtcdServer, client: EtcdClient, keys: PoolKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_transport, "CHANNEL_OPTIONS", ())
    begin = await client.put(keys.spec, b"first")
    async with (
        cable_to(etcd.endpoint) as one,
        cable_to(etcd.endpoint) as other,
        EtcdClient([one.address, other.address]) as remote,
    ):
        other.reset()
        async with watching(remote, keys.everything, begin) as watcher:
            await until(watcher.seen(b"first"), what="the watch runs over the one link")
            other.mend()
            one.cut()
            await client.put(keys.spec, b"second")
            await until(watcher.seen(b"second"), what="the watch runs over the other")

        assert [event.kv.value for event in watcher.events] == [b"first", b"second"]


async def test_a_slow_consumer_does_not_make_the_stream_look_dead(
    client: EtcdClient, keys: PoolKeys, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_watch, "QUIET_FOR", 0.1)
    caplog.set_level(logging.DEBUG, "understudy.statesync.etcd.watch")
    begin = await client.put(keys.spec, b"0")
    async with contextlib.aclosing(client.watch(keys.everything, begin)) as watch:
        assert (await anext(watch)).events
        for n in range(1, 4):
            await client.put(keys.spec, b"%d" % n)
        with monkeypatch.context() as impatient:  # only now: while it reads, etcd may be slow
            impatient.setattr(etcd_watch, "SILENT_FOR", 0.4)
            await asyncio.sleep(1)
        values: list[bytes] = []
        async for batch in watch:
            values += [event.kv.value for event in batch.events]
            if b"3" in values:
                break

    assert values == [b"1", b"2", b"3"]
    assert "resumes" not in caplog.text


async def test_closing_the_client_ends_its_watches(etcd: EtcdServer, keys: PoolKeys) -> None:
    client = etcd.client()
    revision = await client.put(keys.spec, b"x")
    watch = client.watch(keys.everything, revision)
    assert (await anext(watch)).events
    waiting = asyncio.create_task(anext(watch))
    await asyncio.sleep(0)
    await client.close()

    with pytest.raises(Unavailable, match="closed"):
        await asyncio.wait_for(waiting, 30)


async def test_a_watch_must_start_at_a_revision(client: EtcdClient, keys: PoolKeys) -> None:
    with pytest.raises(ValueError, match="revision"):
        client.watch(keys.everything, 0)
