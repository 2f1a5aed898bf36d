"""The slot reconciler: what it starts for a table, for a drain and for records that nobody expected."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.harness.waiting import stays, until
from tests.proxy.members import SLOTS, InProcessPool, in_process_pool, owners
from understudy.proxy.ownership import slot_reconciler
from understudy.proxy.ownership.slot_reconciler import ORPHANED_AFTER
from understudy.statesync.etcd.client import EtcdClient, Unavailable
from understudy.statesync.pool.home import Home, Role
from understudy.statesync.pool.records import Lost

ALL = list(range(SLOTS))


@pytest_asyncio.fixture
async def pool(client: EtcdClient, pool_name: str) -> AsyncIterator[InProcessPool]:
    async with in_process_pool(client, pool_name, "a", "b") as pool:
        yield pool


async def reconcile(pool: InProcessPool, *members: str) -> None:
    for member in members:
        await pool.run(pool[member].reconciler.run())


async def test_the_table_decides_who_claims_and_who_holds_copies(pool: InProcessPool) -> None:
    await pool.assign("a", "b")
    await reconcile(pool, "a", "b")
    a, b = pool["a"], pool["b"]
    await until(lambda: sorted(a.owned.open_slots()) == ALL, what="a serves all slots")
    await until(lambda: b.copies.replica.synced == frozenset(ALL), what="b holds copies of all")
    assert len(b.owned) == 0


async def test_a_member_of_a_mirror_claims_nothing_and_does_not_start_again_at_once(pool: InProcessPool) -> None:
    a = pool["a"]
    await pool.client.put(a.keys.home, Home("west", Role.MIRROR, "east").encode())
    await until(lambda: a.home.away != "", what="a knows that the pool is not at home")
    await pool.assign("a", "b")
    before = a.updates.changed
    await a.reconciler._claim_free()
    assert len(a.owned) == 0
    assert not before.is_set(), "an attempt that claims nothing wakes the loop that made it"


async def test_a_new_table_moves_the_slots_by_handovers(pool: InProcessPool) -> None:
    a, b = await pool.give("a", "b"), pool["b"]
    await reconcile(pool, "a", "b")
    await pool.assign("b", "a")
    await until(lambda: sorted(b.owned.open_slots()) == ALL, what="b serves all slots")
    assert len(a.owned) == 0
    assert (a.recorder.counters.given, b.recorder.counters.received) == (SLOTS, SLOTS)
    assert b.recorder.counters.takeovers == 0
    assert {(await pool.owner(slot)).epoch for slot in ALL} == {2}


async def test_copies_that_the_table_no_longer_wants_are_dropped(pool: InProcessPool) -> None:
    await pool.give("a", "b")
    b = pool["b"]
    await reconcile(pool, "b")
    await until(lambda: b.copies.replica.synced == frozenset(ALL), what="b holds copies")
    await pool.assign("a")
    await until(lambda: not b.copies.replica.held, what="b has dropped them")


async def test_a_lost_member_is_taken_over_from_if_it_does_not_answer(pool: InProcessPool) -> None:
    await pool.give("a", "b")
    b = pool["b"]
    pool.network.dead.add("a")
    await reconcile(pool, "b")
    await pool.assign("b", lost={"a": Lost("a1", "silent", "", 1.0)})
    await until(lambda: sorted(b.owned.open_slots()) == ALL, what="b serves all slots")
    record = await pool.owner(0)
    assert (record.active, record.epoch, record.cause) == ("b", 2, "a lost: silent; connection refused")


async def test_a_member_that_the_table_calls_lost_and_that_answers_keeps_its_slots(pool: InProcessPool) -> None:
    await pool.give("a", "b")
    b = pool["b"]
    await reconcile(pool, "b")
    await pool.assign("b", "a", lost={"a": Lost("a1", "silent", "", 1.0)})
    await stays(lambda: set(owners(b).values()) == {"a"}, 1.0, "a owns its slots")


async def test_a_draining_member_leaves_its_slots_to_the_standby_if_no_table_comes(pool: InProcessPool) -> None:
    a, b = await pool.give("a", "b"), pool["b"]
    await reconcile(pool, "a", "b")
    a.drain.going_down = True
    a.updates.wake()
    await until(lambda: sorted(b.owned.open_slots()) == ALL, what="b serves all slots")
    assert (await pool.owner(0)).cause == "drain"


async def test_an_unfit_member_says_why_it_hands_over(pool: InProcessPool) -> None:
    a, b = await pool.give("a", "b"), pool["b"]
    a.fault = "check db: gone"
    await reconcile(pool, "a", "b")
    await pool.assign("b", "a")
    await until(lambda: sorted(b.owned.open_slots()) == ALL, what="b serves all slots")
    assert (await pool.owner(0)).cause == "unfit: check db: gone"


async def test_slots_whose_record_names_this_process_unknown_to_it_are_reclaimed(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await pool.give("a", "b")
    assert (await a.call("PUT", "k", "kept")).status == 201
    assert (await a.call("DELETE", "none", Idempotency_Key="once")).status == 404
    for slot in ALL:
        a.owned.lose(slot)  # as after a claim whose answer never came
        a.copies.requests.drop(slot)
    monkeypatch.setattr(slot_reconciler, "ORPHANED_AFTER", 0.1)
    assert ORPHANED_AFTER > 1.5
    await reconcile(pool, "a")
    await until(lambda: sorted(a.owned.open_slots()) == ALL, what="a serves them again")
    assert (await a.call("GET", "k")).body == b"kept"
    assert (await a.call("PUT", "none", "made since")).status == 201
    assert (await a.call("DELETE", "none", Idempotency_Key="once")).status == 404
    assert (await pool.owner(0)).epoch == 1


async def test_slots_that_this_process_does_not_serve_are_reclaimed_though_a_table_gives_them_away(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await pool.give("a", "b"), pool["b"]
    monkeypatch.setattr(slot_reconciler, "ORPHANED_AFTER", 0.3)
    for slot in ALL:
        a.owned.lose(slot)
    await reconcile(pool, "a", "b")
    await pool.assign("b", "a")
    await until(lambda: sorted(b.owned.open_slots()) == ALL, 20, "b serves all slots")


async def test_slots_that_were_given_up_are_served_again_only_under_new_records(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await pool.give("a", "b")
    assert sorted(a.reconciler.give_up()) == ALL
    assert len(a.owned) == 0
    monkeypatch.setattr(slot_reconciler, "ORPHANED_AFTER", 0.1)
    await reconcile(pool, "a")
    await until(lambda: sorted(a.owned.open_slots()) == ALL, what="a serves them again")
    assert {(await pool.owner(slot)).epoch for slot in ALL} == {2}


async def test_trouble_is_told_until_the_work_succeeds(pool: InProcessPool, monkeypatch: pytest.MonkeyPatch) -> None:
    a = pool["a"]

    async def without_etcd(*_: object) -> object:
        raise Unavailable("txn", "127.0.0.1:1", "no leader")

    await pool.assign("a", "b")
    with monkeypatch.context() as patch:
        patch.setattr(a.claimer, "win", without_etcd)
        await reconcile(pool, "a")
        await until(lambda: a.reconciler.trouble == "claim: etcd txn at 127.0.0.1:1: no leader", what="it is told")
    await until(lambda: sorted(a.owned.open_slots()) == ALL, what="a serves all slots")
    await until(lambda: not a.reconciler.trouble, what="the trouble is over")


async def test_it_ends_with_the_work_that_it_has_begun(pool: InProcessPool, monkeypatch: pytest.MonkeyPatch) -> None:
    a, begun = pool["a"], asyncio.Event()

    async def endless(*_: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(a.claimer, "win", endless)
    await pool.assign("a", "b")
    running = asyncio.create_task(a.reconciler.run())
    await begun.wait()
    tasks = list(a.reconciler._tasks.values())
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert tasks
    assert all(task.done() for task in tasks)
