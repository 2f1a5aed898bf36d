"""A wrong copy is made anew: at a standby by its active, at the active from etcd under a new epoch."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace

from tests.harness.waiting import until
from tests.proxy.members import InProcessMember, InProcessPool
from tests.proxy.ownership.test_replicated_slots import SLOT, A, B, given, in_sets, replicating, saved, written
from understudy.proxy.ownership import copy_repair
from understudy.proxy.ownership.copy_repair import CopyRepair
from understudy.proxy.ownership.opening import SlotOpener
from understudy.proxy.peers.anti_entropy import NotHeld, RepairRefused
from understudy.statesync.etcd.client import EtcdClient, OutcomeUnknown, Unavailable
from understudy.statesync.replication.history import epoch_of, version_of


@pytest_asyncio.fixture
async def pool(client: EtcdClient, pool_name: str) -> AsyncIterator[InProcessPool]:
    async with replicating(client, pool_name, "a", "b") as pool:
        yield pool


def repair_of(member: InProcessMember, etcd: EtcdClient) -> CopyRepair:
    copies, owned, active, keeper = member.copies, member.owned, member.active, member.keeper
    opener = SlotOpener(member.pool, copies, etcd, owned, active, keeper, member.clock)
    return CopyRepair(member.pool, copies.replica, etcd, owned, active, keeper, member.changes, member.updates, opener)


def spoil(member: InProcessMember, key: str = "k") -> None:
    sessions = member.copies.replica._slots[SLOT].sessions
    sessions[key] = replace(sessions[key], body=b"spoiled")


async def test_an_active_saves_what_etcd_lacks_and_reads_the_slot_again_under_a_new_epoch(pool: InProcessPool) -> None:
    a, b = await given(pool, "a", "b"), pool["b"]
    await written(a, "k", "kept")
    assert not await saved(pool, "k")
    a.copies.replica._slots[SLOT].sessions["l"] = a.copies.replica.session(SLOT, "k")

    await repair_of(a, pool.client).make_anew(SLOT)

    assert (await a.call("GET", "k")).body == b"kept"
    assert a.copies.replica.keys(SLOT) == ["k"]
    assert ((await pool.owner(SLOT)).epoch, (await pool.owner(SLOT)).active) == (2, "a")
    await in_sets(pool, a, {A, B})
    more = (await a.call("PUT", "k", "more")).headers
    assert (more["Understudy-Durability"], more["ETag"]) == ("replicas", '"2.1"')
    await until(lambda: b.copies.replica.session(SLOT, "k").body == b"more", what="b follows the new epoch")
    assert a.changes.frozen == set()


async def test_until_others_have_joined_again_a_write_waits_for_etcd(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await given(pool, "a", "b")
    await written(a, "k", "kept")
    monkeypatch.setattr(a.changes.decisions, "_growth", lambda *_: None)

    await repair_of(a, pool.client).make_anew(SLOT)

    assert a.sync_set(SLOT).members == {A}
    assert (await a.call("PUT", "k", "more")).headers["Understudy-Durability"] == "sync"


async def test_a_standby_keeps_its_copy_until_the_active_sends_another(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await given(pool, "a", "b"), pool["b"]
    await written(a, "k", "kept")
    await until(lambda: b.copies.replica.session(SLOT, "k"), what="b shows it")
    spoil(b)
    removal = a.changes.decisions._removal
    asked, go_on = asyncio.Event(), asyncio.Event()

    def held_up(*args: Any) -> Any:
        asked.set()
        return removal(*args) if go_on.is_set() else None

    monkeypatch.setattr(a.changes.decisions, "_removal", held_up)
    repairing = asyncio.create_task(repair_of(b, pool.client).make_anew(SLOT))
    async with asyncio.timeout(20):
        await asked.wait()
    assert (b.keeper.is_whole(SLOT), a.sync_set(SLOT).members) == (True, {A, B})
    go_on.set()
    await repairing

    assert b.copies.replica.session(SLOT, "k").body == b"kept"
    assert await saved(pool, "k")  # for a moment a had the only copy
    await in_sets(pool, a, {A, B})


async def test_a_standby_that_the_active_does_not_reach_has_its_copy_still(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await given(pool, "a", "b"), pool["b"]
    monkeypatch.setattr(copy_repair, "COPY_TIMEOUT", 0.1)
    monkeypatch.setattr(a.changes.decisions, "_removal", lambda *_: None)
    with pytest.raises(RepairRefused, match="has not sent it again within"):
        await repair_of(b, pool.client).make_anew(SLOT)
    assert b.keeper.is_whole(SLOT)


async def test_who_has_no_copy_cannot_make_it_anew(client: EtcdClient, pool_name: str) -> None:
    async with replicating(client, pool_name, "a", "b", "c") as pool:
        await given(pool, "a", "b")
        repair = repair_of(pool["c"], pool.client)
        assert (repair.slots, repair.progress(SLOT), repair.history(SLOT)) == (frozenset(), None, ())
        with pytest.raises(NotHeld):
            await repair.make_anew(SLOT)


async def test_what_is_told_of_copies(pool: InProcessPool) -> None:
    a, b = await given(pool, "a", "b"), pool["b"]
    await written(a, "k", "kept")
    first = version_of(1, 1)
    at_a, at_b = repair_of(a, pool.client), repair_of(b, pool.client)
    assert at_a.progress(SLOT) == (first, version_of(1, 0), first)
    await until(lambda: at_b.progress(SLOT) == (first, version_of(1, 0), first), what="b shows it")
    assert (at_a.history(SLOT), at_b.history(SLOT)) == ((first,), ())
    assert SLOT in at_a.slots & at_b.slots
    assert epoch_of(first) == 1


async def refused(pool: InProcessPool, why: str) -> None:
    """The active refuses, and serves the slot as before."""
    a = pool["a"]
    with pytest.raises(RepairRefused, match=why):
        await repair_of(a, pool.client).make_anew(SLOT)
    assert (await pool.owner(SLOT)).epoch == 1
    assert (a.owned.takes(SLOT), a.owned.get(SLOT).preparing, a.changes.frozen) == (True, False, set())


async def test_an_active_lets_calls_end_first(pool: InProcessPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_repair, "IDLE_TIMEOUT", 0.05)
    a = await given(pool, "a", "b")
    a.owned.enter_now(SLOT)
    await refused(pool, "did not end")


async def test_an_active_reads_nothing_again_that_etcd_lacks(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy_repair, "SAVE_TIMEOUT", 0.05)
    a = await given(pool, "a", "b")
    await written(a, "k", "kept")
    monkeypatch.setattr(a.active, "_save", lambda _: None)
    await refused(pool, "did not get all writes")
    assert (await a.call("GET", "k")).body == b"kept"


async def test_an_active_whose_sync_set_changes_waits_for_that(pool: InProcessPool) -> None:
    a = await given(pool, "a", "b")
    stream = a.active.get(SLOT).stream
    await until(lambda: stream.change is None, what="the change by which b joined is over")
    stream.change = stream.agreed
    await refused(pool, "being changed")


async def test_an_active_that_somebody_has_replaced_reads_nothing_again(pool: InProcessPool) -> None:
    a = await given(pool, "a", "b")
    sync = pool.keys.sync_set(SLOT)
    kv = await pool.client.get(sync)
    at = a.pool.state.sync_sets[SLOT]
    await pool.client.put(sync, kv.value)
    a.pool.state.sync_sets[SLOT] = at  # as if the watch had not brought it yet
    await refused(pool, "came first")


@pytest.mark.parametrize("applied", [True, False])
async def test_an_unknown_outcome_keeps_the_gate_closed_until_it_is_known(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch, *, applied: bool
) -> None:
    a = await given(pool, "a", "b")
    await written(a, "k", "kept")
    monkeypatch.setattr(copy_repair, "OUTCOME_TIMEOUT", 0.0)
    monkeypatch.setattr(copy_repair, "RETRY_INTERVAL", 0.0)
    calls: list[bool] = []
    real = pool.client.txn

    async def txn(compares: Sequence[Any], success: Sequence[Any], failure: Sequence[Any]) -> Any:
        if not any(getattr(one, "key", "") == pool.keys.owner(SLOT) for one in success):
            return await real(compares, success, failure)
        calls.append(a.owned.takes(SLOT))
        if len(calls) == 1:
            if applied:
                await real(compares, success, failure)
            raise OutcomeUnknown("PUT", "etcd", "no answer")
        if len(calls) == 2:
            raise Unavailable("PUT", "etcd", "away")
        return await real(compares, success, failure)

    monkeypatch.setattr(pool.client, "txn", txn)
    await repair_of(a, pool.client).make_anew(SLOT)

    assert calls == [False, False, False]
    assert ((await pool.owner(SLOT)).epoch, a.active.get(SLOT).stream.epoch) == (2, 2)
    assert (await a.call("GET", "k")).body == b"kept"


async def test_the_slot_is_served_only_when_it_is_read_again(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await given(pool, "a", "b")
    await written(a, "k", "kept")
    load, seen = a.copies.replica.load, []

    async def away_at_first(slot: int, wanted: Callable[[], bool]) -> None:
        seen.append(a.owned.takes(slot))
        if len(seen) < 3:
            raise Unavailable("RANGE", "etcd", "away")
        await load(slot, wanted)

    monkeypatch.setattr(a.copies.replica, "load", away_at_first)
    await repair_of(a, pool.client).make_anew(SLOT)
    assert seen == [False, False, False]
    assert (await a.call("GET", "k")).body == b"kept"


async def test_a_slot_that_is_read_again_is_not_handed_over_meanwhile(pool: InProcessPool) -> None:
    a = await given(pool, "a", "b")
    owned = a.owned.get(SLOT)
    owned.preparing = True
    a.owned.close([SLOT])

    await a.handover.give([SLOT], "b", cause="drain", trace=None)

    assert ((await pool.owner(SLOT)).active, owned.preparing, a.owned.takes(SLOT)) == ("a", True, False)
