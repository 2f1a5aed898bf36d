"""The claimer: one winner for each slot, all sessions there before the first answer, and nothing won on a guess."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace

import pytest
import pytest_asyncio

from tests.harness.waiting import until
from tests.proxy.members import SLOTS, InProcessPool, in_process_pool
from understudy.proxy.events.cause import Cause
from understudy.proxy.member.home_watch import HomeWatch
from understudy.proxy.ownership.read_deadline import BOUND
from understudy.statesync.etcd.client import EtcdClient, OutcomeUnknown
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.home import Home, Role
from understudy.statesync.pool.records import FailoverRecord
from understudy.statesync.pool.site_records import SiteTakeOver
from understudy.statesync.replication.sync_set import Process

ALL = list(range(SLOTS))


@pytest_asyncio.fixture
async def pool(client: EtcdClient, pool_name: str) -> AsyncIterator[InProcessPool]:
    async with in_process_pool(client, pool_name, "a", "b") as pool:
        yield pool


def taking_over(pool: InProcessPool, me: str, member: str) -> Cause:
    trace = pool[me].pool.takeover_of(member, f"{member}1")
    return Cause(f"{member} lost: connection refused", trace, source=member)


def watched(send: Callable[..., Awaitable[int]], sent: list[int]) -> Callable[..., Awaitable[int]]:
    """``send``, which notes the size of each claim."""

    async def noting(claims: Sequence[object], extra: object) -> int:
        sent.append(len(claims))
        return await send(claims, extra)

    return noting


async def test_a_claimed_slot_takes_no_call_before_it_is_opened(pool: InProcessPool) -> None:
    a = pool["a"]
    won = await a.claimer.win(a.pool.view(), ALL, Cause("first owner"))

    assert a.owned.preparing == frozenset(ALL)
    assert a.owned.open_slots() == []
    assert await a.claimer.open(won) == ALL
    assert a.owned.open_slots() == ALL
    assert a.copies.replica.synced == frozenset(ALL)
    assert (await pool.owner(0)).epoch == 1


@pytest.mark.parametrize("heard", [True, False])
async def test_nothing_is_claimed_on_a_side_that_was_fenced_whether_or_not_the_watch_has_brought_it(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch, *, heard: bool
) -> None:
    a, sent = pool["a"], []
    if not heard:
        monkeypatch.setattr(HomeWatch, "revision", 0)
        monkeypatch.setattr(HomeWatch, "away", "")
    monkeypatch.setattr(a.claimer, "_send", watched(a.claimer._send, sent))
    await pool.client.put(pool.keys.home, Home("east", Role.FENCED, "west").encode())
    await until(lambda: a.pool.state.home, what="the watch has brought it")

    won = await a.claimer.win(a.pool.view(), ALL, Cause("first owner"))

    assert (won.claims, bool(sent)) == ([], not heard)
    assert await pool.owner(0) is None


@pytest.mark.parametrize("heard", [True, False])
async def test_who_has_not_heard_that_etcd_was_taken_over_neither_claims_nor_takes_a_slot_back(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch, *, heard: bool
) -> None:
    """It counts as saved what this etcd may lack."""
    a = pool["a"]
    await a.claimer.open(await a.claimer.win(a.pool.view(), [0], Cause("first owner")))
    await pool.client.put(pool.keys.take_over, SiteTakeOver(1, "west").encode())
    await until(lambda: a.pool.state.generation == 1, what="the watch has brought it")
    if not heard:
        monkeypatch.setattr(a.pool.state, "take_over", None)

    assert await a.handover.read_records(0) is heard
    won = await a.claimer.win(a.pool.view(), [1], Cause("first owner"))
    assert [one.slot for one in won.claims] == ([1] if heard else [])


async def test_a_process_that_ends_claims_nothing(pool: InProcessPool) -> None:
    a = pool["a"]
    a.owned.closed = True
    won = await a.claimer.win(a.pool.view(), ALL, Cause("first owner"))
    assert (won.claims, len(a.owned), await pool.owner(0)) == ([], 0, None)


async def test_of_two_claimants_with_the_same_view_one_wins_and_the_other_learns_who(pool: InProcessPool) -> None:
    a, b = pool["a"], pool["b"]
    view = b.pool.view()
    stale = replace(view, owners=dict(view.owners))
    won = await a.claimer.win(a.pool.view(), ALL, Cause("first owner"))
    lost = await b.claimer.win(stale, ALL, Cause("first owner"))

    assert lost.claims == []
    assert await b.claimer.open(lost) == []
    assert len(b.owned) == 0
    assert {at.record.active for at in b.pool.state.owners.values()} == {"a"}
    assert await a.claimer.open(won) == ALL


async def test_what_the_dead_owner_wrote_last_is_answered_by_who_had_a_copy_and_by_who_had_none(
    client: EtcdClient, pool_name: str
) -> None:
    async with in_process_pool(client, pool_name, "a", "b", "c") as pool:
        a = await pool.give("a", "b")
        assert (await a.call("PUT", "k", "last")).status == 201
        pool.network.dead.add("a")
        b = pool["b"]
        assert await b.claimer.open(await b.claimer.win(b.pool.view(), ALL, taking_over(pool, "b", "a"))) == ALL
        assert (await b.call("GET", "k")).body == b"last"
        assert (b.copies.replica.copies, (await pool.owner(0)).epoch) == (0, 2)
        assert (b.recorder.counters.takeovers, b.recorder.counters.taken_over) == (1, SLOTS)

        assert (await b.call("PUT", "k", "later")).status == 200
        c = pool["c"]
        await until(lambda: {at.record.active for at in c.pool.state.owners.values()} == {"b"}, what="c knows b")
        await until(lambda: all(c.sync_set(slot).members == {Process("b", "b1")} for slot in ALL), 20, "b is alone")
        assert await c.claimer.open(await c.claimer.win(c.pool.view(), ALL, taking_over(pool, "c", "b"))) == ALL
        assert (await c.call("GET", "k")).body == b"later"
        assert (c.copies.replica.copies, (await pool.owner(0)).epoch) == (SLOTS, 3)


async def test_a_claim_whose_answer_was_lost_is_found_to_have_won(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, sent = pool["a"], []
    txn = a.claimer._etcd.txn

    async def losing_the_first_answer(*args: object, **options: object) -> object:
        result = await txn(*args, **options)  # type: ignore[arg-type]
        sent.append(result)
        if len(sent) == 1:
            raise OutcomeUnknown("txn", "127.0.0.1:1", "the connection broke")
        return result

    monkeypatch.setattr(a.claimer._etcd, "txn", losing_the_first_answer)
    won = await a.claimer.win(a.pool.view(), ALL, Cause("first owner"))

    assert [c.slot for c in won.claims] == ALL
    assert [result.succeeded for result in sent] == [True, False]  # type: ignore[attr-defined]
    assert (await pool.owner(0)).epoch == 1


async def test_the_failover_record_names_the_slots_that_were_won(pool: InProcessPool) -> None:
    await pool.give("a", "b")
    b = pool["b"]
    await b.claimer.open(await b.claimer.win(b.pool.view(), [0, 2], taking_over(pool, "b", "a")))

    (record,) = [
        FailoverRecord.decode(kv.value) for kv in (await pool.client.range(prefix_range(pool.keys.failovers))).kvs
    ]
    assert (record.source, record.to, record.planned) == ("a", "b", False)
    assert (record.slots, record.epochs) == ((0, 2), (2, 2))


@pytest.mark.parametrize(("takeover", "given", "waits"), [("lease", False, 1), ("lease", True, 0), ("fast", False, 0)])
async def test_only_a_lease_takeover_waits_for_the_old_owners_reads(
    client: EtcdClient, pool_name: str, monkeypatch: pytest.MonkeyPatch, takeover: str, given: bool, waits: int
) -> None:
    waited, rest = [], asyncio.sleep

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        await rest(0 if seconds == BOUND * 1.1 else seconds)

    async with in_process_pool(client, pool_name, "a", "b", takeover=takeover) as pool:
        await pool.give("a", "b")
        b = pool["b"]
        won = await b.claimer.win(b.pool.view(), ALL, taking_over(pool, "b", "a"))
        with monkeypatch.context() as patch:
            patch.setattr("understudy.proxy.ownership.claims.asyncio.sleep", sleep)
            await b.claimer.open(won, given=given)
    assert waited.count(BOUND * 1.1) == waits
