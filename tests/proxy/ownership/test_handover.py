"""The handover, both sides in one process: nothing is lost, the target wins by one transaction, failures are undone."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.harness.waiting import until
from tests.proxy.members import SLOTS, InProcessMember, InProcessPool, in_process_pool, owners
from understudy.proxy.http.problems import Reply
from understudy.proxy.member.pool_view import Peer
from understudy.proxy.ownership.handover import HandoverFailed
from understudy.proxy.ownership.owned_slots import NotMine
from understudy.proxy.peers.peer_protocol import NotTaken, PeerBroken, PeerError
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.owner_records import start_handover
from understudy.statesync.pool.records import Lost, Owner, Phase, SyncRecord
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.replication.history import version_of
from understudy.statesync.replication.slot_copy import SlotCopy
from understudy.statesync.replication.sync_set import Process
from understudy.statesync.sessions.session import Session

ALL = list(range(SLOTS))


@pytest_asyncio.fixture
async def pool(client: EtcdClient, pool_name: str) -> AsyncIterator[InProcessPool]:
    async with in_process_pool(client, pool_name, "a", "b") as pool:
        yield pool


async def give(owner: InProcessMember, *slots: int) -> None:
    await owner.handover.give(slots or ALL, "b", cause="drain", trace=None)


async def test_the_target_owns_the_slots_with_the_next_epochs_and_all_sessions(pool: InProcessPool) -> None:
    a, b = await pool.give("a", "b"), pool["b"]
    assert (await a.call("PUT", "k", "kept")).status == 201

    await give(a)

    assert len(a.owned) == 0
    await until(lambda: sorted(b.owned.open_slots()) == ALL, what="b serves all slots")
    record = await pool.owner(0)
    assert (record.active, record.boot, record.epoch, record.phase) == ("b", "b1", 2, Phase.STABLE)
    assert (await b.call("GET", "k")).body == b"kept"
    assert (a.recorder.counters.given, b.recorder.counters.received) == (SLOTS, SLOTS)


async def test_a_call_that_waits_at_the_gate_goes_to_the_target(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await pool.give("a", "b"), pool["b"]
    closed, go_on = asyncio.Event(), asyncio.Event()
    activate = pool.network.activate

    async def held(peer: Peer, slots: list[int], revision: int) -> object:
        closed.set()
        await go_on.wait()
        return await activate(peer, slots, revision)

    monkeypatch.setattr(pool.network, "activate", held)
    handover = asyncio.create_task(give(a))
    await closed.wait()
    waiting = asyncio.create_task(a.call("PUT", "k", "late"))
    await asyncio.wait({waiting}, timeout=0.05)
    assert not waiting.done()
    go_on.set()
    await handover

    reply = await waiting
    assert (reply.status, reply.headers["Understudy-Served-By"]) == (201, "b")
    assert (await b.call("GET", "k")).body == b"late"


async def test_a_write_that_waited_at_the_gate_has_one_effect_although_the_target_dies_before_it_answers(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await pool.give("a", "b")
    closed, go_on = asyncio.Event(), asyncio.Event()
    activate, forward = pool.network.activate, pool.network.forward

    async def held(peer: Peer, slots: list[int], revision: int) -> object:
        closed.set()
        await go_on.wait()
        return await activate(peer, slots, revision)

    async def carried_out_and_not_answered(peer: Peer, *call: Any, **more: Any) -> Reply:
        reply = await forward(peer, *call, **more)
        if reply.status != 201:
            return reply  # it was not carried out: the caller looks again
        pool.network.dead.add("b")
        raise PeerBroken("b", "the connection was closed")

    monkeypatch.setattr(pool.network, "activate", held)
    monkeypatch.setattr(pool.network, "forward", carried_out_and_not_answered)
    handover = asyncio.create_task(give(a))
    await closed.wait()
    waiting = asyncio.create_task(a.call("PUT", "k", "once"))
    await asyncio.wait({waiting}, timeout=0.05)
    go_on.set()
    await handover

    reply = await waiting
    assert (reply.status, reply.headers["Understudy-Served-By"]) == (201, "a")
    assert reply.headers["Understudy-Repeated"] == "true", "the target had carried it out"
    assert reply.headers["ETag"].startswith('"2.'), "in its epoch"


async def test_reads_go_on_behind_the_closed_gate_and_end_before_the_target_is_asked(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await pool.give("a", "b")
    await a.call("PUT", "k", "kept")
    slot, seen = slot_of("k", SLOTS), []

    async def looking_at_the_gate(*_: object) -> None:
        seen.append(("asked", a.owned.enter_to_read(slot)))
        raise TimeoutError

    replace_records = a.handover._replace_records

    async def looking_before_the_fence(*args: object) -> int:
        owned = a.owned.enter_to_read(slot)
        seen.append(("fencing", owned))
        if owned:
            owned.leave()
        return await replace_records(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(pool.network, "activate", looking_at_the_gate)
    monkeypatch.setattr(a.handover, "_replace_records", looking_before_the_fence)
    with pytest.raises(HandoverFailed):
        await give(a, slot)
    assert [(when, owned is not None) for when, owned in seen[:2]] == [("fencing", True), ("asked", False)]


async def test_a_target_that_refuses_gets_nothing_and_the_owner_serves_on_under_new_epochs(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await pool.give("a", "b"), pool["b"]

    async def refusing(*_: object) -> None:
        raise NotTaken("not today")

    monkeypatch.setattr(b.handover, "take", refusing)
    with pytest.raises(HandoverFailed, match="not today"):
        await give(a)

    assert sorted(a.owned.open_slots()) == ALL
    record = await pool.owner(0)
    assert (record.active, record.epoch, record.phase) == ("a", 2, Phase.STABLE)
    assert (await a.call("PUT", "k", "served")).status == 201
    assert a.recorder.counters.refused == SLOTS


async def test_an_answer_that_comes_too_late_leaves_the_slots_with_the_target(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await pool.give("a", "b"), pool["b"]
    activate = pool.network.activate

    async def answer_lost(peer: Peer, slots: list[int], revision: int) -> object:
        await activate(peer, slots, revision)
        raise TimeoutError

    monkeypatch.setattr(pool.network, "activate", answer_lost)
    with pytest.raises(HandoverFailed):
        await give(a)

    assert len(a.owned) == 0
    await until(lambda: sorted(b.owned.open_slots()) == ALL, what="b serves all slots")
    assert (await pool.owner(0)).active == "b"


async def test_an_owner_that_has_claimed_the_slots_back_from_a_dead_target_keeps_them(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, activate = await pool.give("a", "b"), pool.network.activate

    async def dying(peer: Peer, slots: list[int], revision: int) -> object:
        await activate(peer, slots, revision)
        pool.network.dead.add("b")
        await pool.assign("a", lost={"b": Lost("b1", "silent", "", 1.0)})
        await until(lambda: set(owners(a).values()) == {"b"}, what="a knows that b was active")
        await a.takeovers.of_lost("b", "b1", tuple(slots))
        raise PeerError("b", "Server disconnected")

    monkeypatch.setattr(pool.network, "activate", dying)
    with pytest.raises(HandoverFailed, match="Server disconnected"):
        await give(a)

    assert sorted(a.owned.open_slots()) == ALL
    assert (await a.call("PUT", "k", "served")).headers["Understudy-Served-By"] == "a"


async def test_a_slot_whose_call_does_not_end_stays_and_the_others_go(pool: InProcessPool) -> None:
    a = await pool.give("a", "b")
    busy = await a.owned.enter(1)
    with pytest.raises(HandoverFailed, match="slot 1 to b: calls under way did not end in time"):
        await give(a)
    busy.leave()
    assert a.owned.open_slots() == [1]
    assert [(await pool.owner(slot)).active for slot in ALL] == ["b", "a", "b", "b"]


async def test_a_slot_that_somebody_claimed_meanwhile_is_lost_and_not_handed_over(pool: InProcessPool) -> None:
    a = await pool.give("a", "b")
    record = await pool.owner(2)
    await pool.client.put(pool.keys.owner(2), record.encode())  # the same content at another revision: not our record
    await until(lambda: a.pool.state.owners[2].revision > a.owned.get(2).fence, what="the watch has brought it")  # type: ignore[union-attr]
    with pytest.raises(HandoverFailed, match="somebody else has claimed a slot"):
        await give(a)
    assert sorted(a.owned.slots) == [0, 1, 3]
    with pytest.raises(NotMine):
        await a.owned.enter(2)


async def test_the_target_takes_only_what_is_left_to_it_at_that_very_revision(pool: InProcessPool) -> None:
    a, b = await pool.give("a", "b"), pool["b"]
    fenced = start_handover(await pool.owner(0), "b", cause="drain", traceparent="", now=1.0)
    revision = (await pool.client.put(pool.keys.owner(0), fenced.encode())) or 0
    with pytest.raises(NotTaken, match=f"no handover to b stands at revision {revision - 1}"):
        await b.handover.take([0], revision - 1)
    with pytest.raises(NotTaken, match="no handover to b stands"):
        await b.handover.take([1], a.owned.get(1).fence)  # type: ignore[union-attr]
    assert len(b.owned) == 0
    taken = await b.handover.take([0], revision)
    assert taken[0].record.epoch == fenced.epoch + 1
    await until(lambda: b.owned.open_slots() == [0], what="b serves the slot")


async def test_a_process_that_ends_takes_no_slot_and_the_owner_serves_on(pool: InProcessPool) -> None:
    a, b = await pool.give("a", "b"), pool["b"]
    b.owned.closed = True
    with pytest.raises(HandoverFailed, match="b is about to end"):
        await give(a)
    assert sorted(a.owned.open_slots()) == ALL
    assert len(b.owned) == 0
    assert (await a.call("PUT", "k", "served")).status == 201


async def test_an_owner_of_release_010_hands_over_what_etcd_has(client: EtcdClient, pool_name: str) -> None:
    """It writes no sync record, and asks before: its target needs no copy."""
    async with in_process_pool(client, pool_name, "b") as pool:
        b, slot = pool["b"], slot_of("k", SLOTS)
        session = Session("text/plain", b"in etcd", 2**53, 1, version=version_of(1, 1))
        await client.put(pool.keys.session(slot, "k"), session.encode())
        leaving = start_handover(Owner("a", "a1", 1), "b", cause="drain", traceparent="", now=1.0)
        revision = await client.put(pool.keys.owner(slot), leaving.encode())
        b.keeper.give(slot, SlotCopy(slot, history=(version_of(1, 0),), whole=True))
        b.copies.replica.clear(slot)

        taken = await b.handover.take([slot], revision)

        assert (taken[slot].record.active, taken[slot].record.epoch) == ("b", 2)
        await until(lambda: b.owned.takes(slot), what="b serves the slot")
        assert (await b.call("GET", "k")).body == b"in etcd"
        record = await client.get(pool.keys.sync_set(slot))
        assert record is not None
        assert SyncRecord.decode(record.value) == SyncRecord(2, (Process("b", "b1"),))


async def test_a_handover_that_nobody_carries_out_any_more_is_undone(pool: InProcessPool) -> None:
    a = await pool.give("a", "b")
    fenced = start_handover(await pool.owner(0), "b", cause="drain", traceparent="", now=1.0)
    revision = (await pool.client.put(pool.keys.owner(0), fenced.encode())) or 0
    await until(lambda: a.pool.state.owners[0].revision == revision, what="the owner has seen it")
    await a.handover.undo_stale(0)
    record = await pool.owner(0)
    assert (record.active, record.epoch, record.phase) == ("a", fenced.epoch + 1, Phase.STABLE)
    assert 0 in a.owned.open_slots()
