"""A spec that begins to ask for replication: the slots that are served already take it up, and lose nothing."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.harness.waiting import until
from tests.proxy.members import SLOTS, InProcessMember, InProcessPool, in_process_pool
from understudy.proxy.ownership import replication_start
from understudy.proxy.ownership.replication_start import ReplicationStart
from understudy.statesync.etcd.client import EtcdClient, OutcomeUnknown, Unavailable
from understudy.statesync.pool.records import Owner, SyncRecord
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.replication.sync_set import Process

ALL = list(range(SLOTS))
SLOT = slot_of("k", SLOTS)
A, B = Process("a", "a1"), Process("b", "b1")


@pytest_asyncio.fixture
async def pool(client: EtcdClient, pool_name: str) -> AsyncIterator[InProcessPool]:
    """A pool of one member that owns all slots, and saves what it writes in etcd."""
    async with in_process_pool(client, pool_name, "a") as pool:
        await pool.give("a")
        await pool.run(pool["a"].active.run())
        assert (await pool["a"].call("PUT", "k", "old")).status == 201
        yield pool


async def asked(pool: InProcessPool) -> ReplicationStart:
    """The spec asks for replication from now on."""
    await pool.apply(pool.spec.model_copy(update={"durability": "replicas"}))
    a = pool["a"]
    await until(lambda: a.pool.spec is not None and a.pool.spec.replicates, 20, "the spec is known")
    return ReplicationStart(a.pool, pool.client, a.owned, a.active, a.updates)


def replicated(member: InProcessMember) -> list[int]:
    return [slot for slot in ALL if slot in member.active]


async def record(pool: InProcessPool, slot: int) -> SyncRecord | None:
    kv = await pool.client.get(pool.keys.sync_set(slot))
    return SyncRecord.decode(kv.value) if kv is not None else None


async def assert_serves(a: InProcessMember, body: str) -> None:
    """The session has this body, and can be written."""
    assert (await a.call("GET", "k")).body == body.encode()
    assert (await a.call("PUT", "k", "more")).status == 200
    assert (await a.call("GET", "k")).body == b"more"


async def test_slots_that_are_served_are_replicated_when_the_spec_asks_for_it(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replication_start, "POLL_INTERVAL", 0.01)
    a = pool["a"]
    start = ReplicationStart(a.pool, pool.client, a.owned, a.active, a.updates)
    await pool.run(start.run())
    assert replicated(a) == []
    await asked(pool)
    await until(lambda: replicated(a) == ALL, 20, "all are replicated")
    await until(lambda: sorted(a.owned.open_slots()) == ALL, 20, "all are served")
    assert await record(pool, SLOT) == SyncRecord(1, (A,))
    await assert_serves(a, "old")


async def test_a_pool_that_does_not_replicate_stays_as_it_is(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replication_start, "POLL_INTERVAL", 0.0)
    a = pool["a"]
    await pool.run(ReplicationStart(a.pool, pool.client, a.owned, a.active, a.updates).run())
    assert (await a.call("PUT", "k", "more")).status == 200
    assert (replicated(a), await record(pool, SLOT)) == ([], None)


async def test_a_write_that_comes_meanwhile_is_part_of_the_stream(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, start = pool["a"], await asked(pool)
    sent, go_on, real = asyncio.Event(), asyncio.Event(), replication_start.retry_txn

    async def retry_txn(*args: Any, **options: Any) -> Any:
        sent.set()
        await go_on.wait()
        return await real(*args, **options)

    monkeypatch.setattr(replication_start, "retry_txn", retry_txn)
    begin = asyncio.create_task(start._begin(ALL))
    await sent.wait()
    write = asyncio.create_task(a.call("PUT", "k", "meanwhile"))
    await a.reconciler._hold()  # opens gates that nobody keeps closed
    assert a.owned.open_slots() == []
    assert (await a.call("GET", "k")).body == b"old", "reads go on"
    assert not write.done()
    go_on.set()
    await begin

    reply = await write
    active = a.active.get(SLOT)
    assert active is not None
    assert (reply.status, active.stream.last) == (200, active.inherited + 1)
    await assert_serves(a, "meanwhile")


async def test_a_slot_with_a_call_under_way_is_replicated_later(pool: InProcessPool) -> None:
    a, start = pool["a"], await asked(pool)
    owned = a.owned.enter_now(SLOT)
    assert owned is not None
    await start._begin(ALL)
    assert replicated(a) == [slot for slot in ALL if slot != SLOT]
    assert sorted(a.owned.open_slots()) == ALL
    owned.leave()
    await start._begin([SLOT])
    assert replicated(a) == ALL


@pytest.mark.parametrize("applied", [True, False])
async def test_slots_whose_record_may_be_written_stay_closed_until_that_is_known(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch, *, applied: bool
) -> None:
    monkeypatch.setattr(replication_start, "OUTCOME_TIMEOUT", 0.0)
    a, start = pool["a"], await asked(pool)
    tried, real = 0, replication_start.retry_txn

    async def retry_txn(*args: Any, **options: Any) -> Any:
        nonlocal tried
        tried += 1
        assert a.owned.open_slots() == []
        if tried > 1:
            return await real(*args, **options)
        if applied:
            await real(*args, **options)
        raise OutcomeUnknown("PUT", "etcd", "no answer")

    monkeypatch.setattr(replication_start, "retry_txn", retry_txn)
    await start._begin(ALL)
    assert (tried, replicated(a), sorted(a.owned.open_slots())) == (2, ALL, ALL)
    await assert_serves(a, "old")


async def test_while_etcd_is_away_slots_are_served_as_before(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(replication_start, "POLL_INTERVAL", 0.01)
    a, start = pool["a"], await asked(pool)
    tried, real = 0, replication_start.retry_txn

    async def retry_txn(*args: Any, **options: Any) -> Any:
        nonlocal tried
        tried += 1
        if tried < 3:
            raise Unavailable("PUT", "etcd", "away")
        return await real(*args, **options)

    monkeypatch.setattr(replication_start, "retry_txn", retry_txn)
    with pytest.raises(Unavailable):
        await start._begin(ALL)
    assert (replicated(a), sorted(a.owned.open_slots())) == ([], ALL)
    await pool.run(start.run())
    await until(lambda: replicated(a) == ALL, 20, "all are replicated once etcd is back")
    assert any("cannot be replicated yet" in one.getMessage() for one in caplog.records)


async def test_a_slot_that_somebody_else_has_claimed_does_not_stop_the_others(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, start = pool["a"], await asked(pool)
    real = replication_start.retry_txn

    async def too_late(*args: Any, **options: Any) -> Any:
        await pool.client.put(pool.keys.owner(0), Owner("b", "b1", 2).encode())
        return await real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(replication_start, "retry_txn", too_late)
        await start._begin(ALL)
    assert (replicated(a), await record(pool, 0)) == ([], None)
    assert 0 not in a.owned
    await start._begin(a.owned.open_slots())
    assert replicated(a) == ALL[1:]


async def test_a_record_of_an_earlier_epoch_is_replaced(pool: InProcessPool) -> None:
    await pool.client.put(pool.keys.sync_set(0), SyncRecord(7, (B,), memory=True).encode())
    a, start = pool["a"], await asked(pool)
    await until(lambda: 0 in a.pool.state.sync_sets, 20, "the record is known")
    await start._begin(ALL)
    assert replicated(a) == ALL
    assert await record(pool, 0) == SyncRecord(1, (A,))
