"""``SCAN`` and ``DBSIZE`` of a member that has copies, and ``WAIT``, which counts them."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.harness.waiting import stays, until
from tests.proxy.members import SLOTS, InProcessMember, InProcessPool, in_process_pool
from understudy.proxy.redis.copies import CopyCount
from understudy.proxy.redis.scan import KeyScan
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.informer import InformerBatch
from understudy.statesync.pool.pool_clock import PoolClock
from understudy.statesync.pool.records import Owner, SyncRecord
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.redis.command import NOT_AN_INTEGER
from understudy.statesync.redis.reply import RedisError
from understudy.statesync.replication.history import version_of
from understudy.statesync.replication.messages import Lead, LoggedWrite, Part, Stored, Writes
from understudy.statesync.replication.sync_set import Process
from understudy.statesync.sessions.session import Session

A, B = Process("a", "a1"), Process("b", "b1")
SLOT = slot_of("k", SLOTS)
BEFORE = version_of(1, 5)


@pytest_asyncio.fixture
async def pool(client: EtcdClient, pool_name: str) -> AsyncIterator[InProcessPool]:
    async with in_process_pool(client, pool_name, "a", "b", "c") as pool:
        yield pool


# -- SCAN and DBSIZE --


@pytest_asyncio.fixture
async def copy_of_a(client: EtcdClient, pool_name: str) -> AsyncIterator[InProcessPool]:
    """The only member is b. Its copy of a slot of a's has ``k`` and ``gone``, and writes after it.

    The writes make ``new`` and remove ``gone``, and b does not know that they are acknowledged. etcd has all but these.
    """
    async with in_process_pool(client, pool_name, "b") as pool:
        b = pool["b"]
        await client.put(pool.keys.owner(SLOT), Owner("a", "a1", 1).encode())
        for key in ("k", "gone"):
            await client.put(pool.keys.session(SLOT, key), session(BEFORE))
        await sync_set(pool, A, B)
        sessions = tuple(Stored(key, BEFORE, session(BEFORE)) for key in ("k", "gone"))
        writes = (LoggedWrite("new", session(BEFORE + 1)), LoggedWrite("gone", None), LoggedWrite("", None, b""))
        b.keeper.take(
            "a",
            [
                Lead(SLOT, 1, (BEFORE,)),
                Part(SLOT, 1, BEFORE, (BEFORE,), sessions, first=True, last=True),
                Writes(SLOT, 1, BEFORE, BEFORE + 1, writes, shown=BEFORE),
            ],
            0.0,
        )
        assert b.copies.replica.session(SLOT, "new") is None
        yield pool


def session(version: int) -> bytes:
    return Session("text/plain", b"v", 2**53, 1, version=version).encode()


async def sync_set(pool: InProcessPool, *members: Process) -> None:
    """Write a sync record of epoch 1, and wait until b knows it."""
    revision = await pool.client.put(pool.keys.sync_set(SLOT), SyncRecord(1, tuple(members)).encode())
    state = pool["b"].pool.state
    await until(lambda: SLOT in state.owners and state.sync_sets[SLOT].revision == revision, what="b knows it")


def scan_of(member: InProcessMember) -> KeyScan:
    return KeyScan(member.pool, member.copies, member.keeper, member.committer._client, PoolClock())


async def keys_at(member: InProcessMember) -> set[bytes]:
    cursor, found = await scan_of(member).scan([b"0", b"COUNT", b"1000"])  # type: ignore[misc]
    assert cursor == b"0"
    assert await scan_of(member).count() == len(found)
    return set(found)


async def test_what_a_copy_has_and_does_not_know_to_be_acknowledged_counts(copy_of_a: InProcessPool) -> None:
    assert await keys_at(copy_of_a["b"]) == {b"k", b"new"}


async def test_a_slot_whose_set_does_not_count_on_this_member_is_read_from_etcd(copy_of_a: InProcessPool) -> None:
    await sync_set(copy_of_a, A)
    assert await keys_at(copy_of_a["b"]) == {b"k", b"gone"}


async def test_a_member_that_has_not_heard_that_it_left_the_set_does_not_answer_from_its_copy(
    copy_of_a: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch has brought a later change already, in another range of keys."""
    b = copy_of_a["b"]
    informer, keys = b.copies.informer, copy_of_a.keys
    hand_over = informer._hand_over

    def late(batch: InformerBatch) -> None:
        if not any(event.kv.key.startswith((keys.owners, keys.sync_sets)) for event in batch.events):
            hand_over(batch)

    monkeypatch.setattr(informer, "_hand_over", late)
    await copy_of_a.client.put(keys.sync_set(SLOT), SyncRecord(1, (A,)).encode())
    await copy_of_a.client.put(f"{keys.sync_sets}no slot", b"x")
    await copy_of_a.assign("b")
    assert await keys_at(b) == {b"k", b"gone"}


async def test_an_owner_that_has_not_heard_of_its_successor_does_not_answer_from_memory(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, c = await pool.give("a"), pool["c"]
    monkeypatch.setattr(a.copies.informer, "_hand_over", lambda _batch: None)
    monkeypatch.setattr(a.reads, "_on_changes", lambda _batch: None)
    pool.network.dead.add("a")  # c cannot tell it either
    won = await c.claimer.win(c.pool.view(), list(range(SLOTS)), c.takeovers.cause("a", "a1", "a lost"))
    await c.claimer.open(won)
    assert (await c.call("PUT", "new", "v")).status == 201
    assert len(a.owned) == SLOTS
    assert await keys_at(a) == {b"new"}


async def test_every_member_finds_every_key_whatever_it_has_of_the_pool(pool: InProcessPool) -> None:
    a = await pool.give("a", "b")
    keys = [f"key-{number}" for number in range(30)]
    for key in keys:
        assert (await a.call("PUT", key, "v")).status == 201
    for name in "abc":
        assert await keys_at(pool[name]) == {key.encode() for key in keys}


# -- WAIT --


async def test_wait_counts_the_others_that_have_what_was_written(pool: InProcessPool) -> None:
    a = await pool.give("a", "b")
    count = CopyCount(a.pool)
    assert [await count.wait([wanted, b"1"], "k") for wanted in (b"0", b"1", b"2", b"9")] == [1, 1, 1, 1]


async def test_wait_does_not_wait_for_more_copies_than_there_are_others(pool: InProcessPool) -> None:
    a = await pool.give("a", "b", "c")
    assert await asyncio.wait_for(CopyCount(a.pool).wait([b"9", b"0"], "k"), 30) == 2


async def test_wait_waits_until_as_many_have_it(pool: InProcessPool) -> None:
    a = await pool.give("a")
    waiting = asyncio.create_task(CopyCount(a.pool).wait([b"1", b"0"], "k"))
    await stays(lambda: not waiting.done(), 0.2, "it waits")
    await pool.assign("a", "b")
    assert await asyncio.wait_for(waiting, 40) == 1


async def test_who_has_written_nothing_waits_for_nobody(pool: InProcessPool) -> None:
    a = await pool.give("a")
    assert await CopyCount(a.pool).wait([b"9", b"0"], None) == 2


@pytest.mark.parametrize("args", [[b"x", b"1"], [b"1", b""], [b"1", b"-1"]])
async def test_wait_refuses_what_is_no_number_and_no_time(pool: InProcessPool, args: list[bytes]) -> None:
    answer = await CopyCount(pool["a"].pool).wait(args, "k")
    assert isinstance(answer, RedisError)
    assert (answer == NOT_AN_INTEGER) == (args[1] != b"-1")
