"""Slots that replicate between members: claimed from memory or from etcd, handed over, reclaimed, or left alone.

The members are real, on a real etcd, with real connections between them; their reconcilers run only where a test says.
"""

import logging
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from tests.harness.waiting import until
from tests.proxy.members import SLOTS, InProcessMember, InProcessPool, in_process_pool
from understudy.proxy.member.pool_view import Peer
from understudy.proxy.ownership import handover, slot_reconciler
from understudy.proxy.ownership.handover import HandoverFailed
from understudy.proxy.peers.peer_protocol import NotTaken, ProbeResult
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.records import Lost, Member, MemberState, Owner, Phase, Revival, SyncRecord
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.replication.sync_set import Process, SyncSet

ALL = list(range(SLOTS))
SLOT = slot_of("k", SLOTS)
A, B, C = (Process(name, f"{name}1") for name in "abc")
RESTORED = "Understudy-Restored"
SAME_SLOT = [key for number in range(99) if slot_of(key := f"s{number}", SLOTS) == SLOT][:3]
NEVER_SAVED = {"patience_ms": 60_000, "checkpoint_ms": 60_000}
"""A write of class ``replicas`` stays in memory for the whole of a test."""


@asynccontextmanager
async def replicating(
    client: EtcdClient, name: str, *members: str, **replication: object
) -> AsyncIterator[InProcessPool]:
    spec = {"durability": "replicas", "replication": NEVER_SAVED | replication}
    async with in_process_pool(client, name, *members, **spec) as pool:
        yield pool


@pytest_asyncio.fixture
async def pool(client: EtcdClient, pool_name: str) -> AsyncIterator[InProcessPool]:
    async with replicating(client, pool_name, "a", "b", "c") as pool:
        yield pool


async def given(pool: InProcessPool, *order: str) -> InProcessMember:
    """The first of ``order`` owns all slots, and all of them are in the sync sets."""
    owner = await pool.give(*order)
    await in_sets(pool, owner, {Process(name, f"{name}1") for name in order})
    return owner


async def b_killed_with(pool: InProcessPool, a: InProcessMember) -> None:
    """Kill b, and have a take nobody out of its sets any more: it is about to be lost, too."""
    a.changes.frozen.update(ALL)
    await pool.kill("b")


async def in_sets(pool: InProcessPool, owner: InProcessMember, members: Collection[Process]) -> None:
    """Wait until these are the sync sets, writes are acknowledged from memory, and everybody knows."""

    def agreed() -> bool:
        sets = [one.sync_set(slot) for one in pool.network.members.values() for slot in ALL]
        return all(found.members == set(members) and found.memory for found in sets)

    await until(agreed, 20, "the sync sets are whole")


async def saved(pool: InProcessPool, key: str) -> bool:
    return await pool.client.get(pool.keys.session(slot_of(key, SLOTS), key)) is not None


async def written(member: InProcessMember, key: str, body: str) -> None:
    reply = await member.call("PUT", key, body)
    assert (reply.status, reply.headers["Understudy-Durability"]) == (201, "replicas")


async def lost(pool: InProcessPool, name: str, *order: str) -> None:
    """A member dies, and the table names it lost."""
    await pool.kill(name)
    await pool.assign(*order, lost={name: Lost(f"{name}1", "killed", "", 1.0)})


# -- claims --


async def test_the_first_claim_of_a_slot_makes_its_sync_set(pool: InProcessPool) -> None:
    a = await pool.give("a")
    assert a.pool.state.sync_sets[0].record == SyncRecord(1, (A,))
    assert all(slot in a.active for slot in ALL)


async def test_an_heir_serves_from_memory_what_etcd_never_had(pool: InProcessPool) -> None:
    a, b = await given(pool, "a", "b", "c"), pool["b"]
    await written(a, "k", "kept")
    assert not await saved(pool, "k")

    await lost(pool, "a", "b", "c")
    await b.takeovers.of_lost("a", "a1", ALL)

    assert sorted(b.owned.open_slots()) == ALL
    assert (await b.call("GET", "k")).body == b"kept"
    assert b.sync_set(SLOT).members == {B, C}
    assert b.sync_set(SLOT).former == {A}
    assert b.pool.state.sync_sets[SLOT].record.losses == 0


async def test_who_is_not_in_the_set_leaves_the_slot_to_who_is_and_says_so_once(
    pool: InProcessPool, caplog: pytest.LogCaptureFixture
) -> None:
    a, b, c = await given(pool, "a", "b"), pool["b"], pool["c"]
    await written(a, "k", "kept")

    await lost(pool, "a", "c", "b")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await c.takeovers.of_lost("a", "a1", [SLOT])

    assert len(c.owned) == 0
    (said,) = (record.getMessage() for record in caplog.records if "cannot be claimed" in record.getMessage())
    assert said.startswith(f"slot {SLOT} cannot be claimed: its newest writes may be in memory alone, at a, b,")
    await b.takeovers.of_lost("a", "a1", ALL)
    assert (await b.call("GET", "k")).body == b"kept"


async def test_a_slot_whose_writes_are_all_saved_goes_to_anybody(client: EtcdClient, pool_name: str) -> None:
    async with in_process_pool(client, pool_name, "a", "b", durability="replicas") as pool:
        a, b = await pool.give("a"), pool["b"]
        reply = await a.call("PUT", "k", "kept")
        assert (reply.status, reply.headers["Understudy-Durability"]) == (201, "sync")

        await lost(pool, "a", "b")
        await b.takeovers.of_lost("a", "a1", ALL)

        assert (await b.call("GET", "k")).body == b"kept"
        record = b.pool.state.sync_sets[SLOT].record
        assert (record.members, record.losses) == ((B,), 0)


async def test_when_the_whole_set_is_dead_another_member_restores_what_etcd_has(
    pool: InProcessPool, caplog: pytest.LogCaptureFixture
) -> None:
    a, c = await given(pool, "a", "b"), pool["c"]
    a.active.save_now(SLOT)
    assert (await a.call("PUT", "k", "saved", Understudy_Durability="sync")).status == 201
    assert (await a.call("PUT", "k", "not saved")).headers["Understudy-Durability"] == "replicas"

    await b_killed_with(pool, a)
    await lost(pool, "a", "c")
    with caplog.at_level(logging.ERROR):
        await c.takeovers.of_lost("a", "a1", ALL)

    assert (await c.call("GET", "k")).body == b"saved"
    record = c.pool.state.sync_sets[SLOT].record
    assert (record.members, record.losses) == ((C,), 1)
    assert any(f"slot {SLOT}:" in one.getMessage() for one in caplog.records)


async def test_answers_about_a_session_that_was_restored_say_so_until_it_is_written(
    client: EtcdClient, pool_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with replicating(client, pool_name, "a", "b", "c", "d") as pool:
        a, c, d = await given(pool, "a", "b"), pool["c"], pool["d"]
        for key in ("k", *SAME_SLOT, "gone"):
            assert (await a.call("PUT", key, "saved", Understudy_Durability="sync")).status == 201
        assert (await a.call("DELETE", "gone", Understudy_Durability="sync")).status == 204
        assert (await a.call("PUT", "k", "not saved")).headers["Understudy-Durability"] == "replicas"
        assert RESTORED not in (await a.call("GET", "k")).headers
        c.contact.longest_silence = lambda _now, _within: 9.5  # type: ignore[method-assign]

        await b_killed_with(pool, a)
        await lost(pool, "a", "c")
        with caplog.at_level(logging.ERROR):
            await c.takeovers.of_lost("a", "a1", ALL)

        assert any(f"slot {SLOT}:" in (said := one.getMessage()) and "last 70 s" in said for one in caplog.records)
        for member in (c, d):
            found = await member.call("GET", "k")
            assert (found.body, found.headers[RESTORED]) == (b"saved", "70")
        for asked in (
            c.call("GET", "k", If_None_Match=found.headers["ETag"]),
            c.call("GET", "gone"),
            c.call("GET", "none"),
            c.call("PUT", "k", "x", If_Match='"1.999"'),
            c.call("PUT", "k", "x", If_None_Match="*", Idempotency_Key="refused"),
        ):
            assert (await asked).headers[RESTORED] == "70"

        assert RESTORED not in (await c.call("PUT", "k", "written")).headers
        assert RESTORED not in (await c.call("GET", "k")).headers
        assert (await c.call("GET", SAME_SLOT[1])).headers[RESTORED] == "70"
        assert RESTORED not in (await c.call("DELETE", SAME_SLOT[1])).headers
        assert RESTORED not in (await c.call("GET", SAME_SLOT[1])).headers

        await pool.assign("c", "d")
        await in_sets(pool, c, {C, Process("d", "d1")})
        assert d.pool.state.sync_sets[SLOT].record.loss_seconds == 70
        copy = await d.call("GET", SAME_SLOT[2], Understudy_Consistency="stale")
        assert ("Understudy-Lag-Ms" in copy.headers, copy.headers[RESTORED]) == (True, "70")
        none = await d.call("GET", "none", Understudy_Consistency="stale")
        assert (none.status, none.headers[RESTORED]) == (404, "70")
        assert RESTORED not in (await d.call("GET", "k", Understudy_Consistency="stale")).headers


async def test_a_renewal_does_not_make_a_restored_session_new(pool: InProcessPool) -> None:
    a, c = await given(pool, "a", "b"), pool["c"]
    assert (await a.call("PUT", "k", "saved", Understudy_Durability="sync")).status == 201
    await b_killed_with(pool, a)
    await lost(pool, "a", "c")
    await c.takeovers.of_lost("a", "a1", ALL)

    await c.call("GET", "k", Understudy_Touch="true", Understudy_TTL="90000")
    assert (await c.call("GET", "k")).headers["ETag"] == '"2.1"'
    assert RESTORED in (await c.call("GET", "k")).headers


async def test_a_request_whose_write_was_lost_may_be_carried_out_again(pool: InProcessPool) -> None:
    """c has a copy with the write, and is not in the set any more: it claims from etcd, which never had the write."""
    a, c = await given(pool, "a", "b", "c"), pool["c"]
    assert (await a.call("PUT", "k", "lost", Idempotency_Key="lost")).status == 201
    assert (await a.call("DELETE", "none", Idempotency_Key="saved", Understudy_Durability="sync")).status == 404
    await until(lambda: c.copies.replica.session(SLOT, "k") is not None, what="c has the write")
    await pool.assign("a", "b")
    await in_sets(pool, a, {A, B})

    await b_killed_with(pool, a)
    await lost(pool, "a", "c")
    await c.takeovers.of_lost("a", "a1", ALL)

    assert (await c.call("GET", "k")).status == 404
    again = await c.call("PUT", "k", "lost", Idempotency_Key="lost")
    assert (again.status, again.headers.get("Understudy-Repeated")) == (201, None)
    assert (await c.call("PUT", "none", "made since")).status == 201
    assert (await c.call("DELETE", "none", Idempotency_Key="saved")).status == 404


async def test_one_of_the_set_whose_copy_is_not_whole_reads_what_etcd_has(client: EtcdClient, pool_name: str) -> None:
    async with in_process_pool(client, pool_name, "a", "b") as pool:
        a, b = await pool.give("a", "b"), pool["b"]
        assert (await a.call("PUT", "k", "saved")).headers["Understudy-Durability"] == "sync"
        await lost(pool, "a", "b")
        b.keeper.drop(SLOT)

        await b.takeovers.of_lost("a", "a1", ALL)

        assert sorted(b.owned.open_slots()) == ALL
        assert (await b.call("GET", "k")).body == b"saved"
        assert b.copies.replica.copies == 1, "the other slots are served from memory"
        assert b.pool.state.sync_sets[SLOT].record.losses == 0


async def test_an_old_copy_counts_for_nothing_in_a_claim_from_etcd(pool: InProcessPool) -> None:
    a, c = await given(pool, "a", "b", "c"), pool["c"]
    await written(a, "k", "old")
    await pool.assign("a", "b")
    await in_sets(pool, a, {A, B})
    assert (await a.call("PUT", "k", "new", Understudy_Durability="sync")).status == 200
    assert c.keeper.is_whole(SLOT)

    await b_killed_with(pool, a)
    await lost(pool, "a", "c")
    await c.takeovers.of_lost("a", "a1", ALL)

    assert (await c.call("GET", "k")).body == b"new"


async def test_silence_proves_no_death(pool: InProcessPool, monkeypatch: pytest.MonkeyPatch) -> None:
    a, c = await given(pool, "a", "b"), pool["c"]
    await written(a, "k", "kept")

    async def silent(peer: Peer, *_: object, **__: object) -> ProbeResult:
        return ProbeResult.GONE if peer.member == "a" else ProbeResult.SILENT

    monkeypatch.setattr(pool.network, "probe", silent)
    await lost(pool, "a", "c")
    await c.takeovers.of_lost("a", "a1", ALL)
    assert len(c.owned) == 0


async def test_an_operator_may_want_to_decide_about_a_total_loss(client: EtcdClient, pool_name: str) -> None:
    async with replicating(client, pool_name, "a", "b", "c", on_total_loss="wait") as pool:
        a, c = await given(pool, "a", "b"), pool["c"]
        await written(a, "k", "kept")
        await b_killed_with(pool, a)
        await lost(pool, "a", "c")
        await c.takeovers.of_lost("a", "a1", ALL)
        assert len(c.owned) == 0


@pytest.mark.parametrize("on_total_loss", ["restore", "wait"])
async def test_an_operators_word_revives_slots_of_a_silent_host(
    client: EtcdClient, pool_name: str, on_total_loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with replicating(client, pool_name, "a", "b", "c", on_total_loss=on_total_loss) as pool:
        a, c = await given(pool, "a", "b"), pool["c"]
        await written(a, "k", "lost")

        async def silent(peer: Peer, *_: object, **__: object) -> ProbeResult:
            return ProbeResult.SILENT

        monkeypatch.setattr(pool.network, "probe", silent)
        await b_killed_with(pool, a)
        await lost(pool, "a", "c")
        await c.takeovers.of_lost("a", "a1", ALL)
        assert len(c.owned) == 0

        await client.put(pool.keys.revival(SLOT), Revival(1, "ops", 1.0).encode())
        await until(lambda: SLOT in c.pool.state.revivals, what="c has the word")
        await c.takeovers.of_lost("a", "a1", ALL)
        assert c.owned.open_slots() == [SLOT]
        assert c.pool.state.sync_sets[SLOT].record.losses == 1
        assert (await c.call("GET", "k")).status == 404
        assert (await pool.owner(SLOT)).cause.endswith("; revived by ops")

        late = await a.call("PUT", "k", "late")  # it has only lost touch
        assert (late.status, late.headers["Understudy-Served-By"]) == (201, "c")


async def test_a_set_of_which_one_has_restarted_and_the_others_are_dead_is_restored_too(pool: InProcessPool) -> None:
    a, c = await given(pool, "a", "b"), pool["c"]
    await written(a, "k", "kept")
    await b_killed_with(pool, a)
    await pool.kill("a")
    await pool.write_record(Member("a", "a2", "127.0.0.1:1", "127.0.0.1:2", MemberState.UP))
    await until(lambda: "a" in c.pool.state.members, what="a is registered again")
    await pool.assign("c", "a")

    await c.reconciler._claim_free()

    assert sorted(c.owned.open_slots()) == ALL
    assert c.pool.state.sync_sets[SLOT].record.losses == 1


# -- handovers --


async def test_a_handover_takes_along_what_etcd_never_had(pool: InProcessPool) -> None:
    a, b = await given(pool, "a", "b", "c"), pool["b"]
    await written(a, "k", "kept")
    assert not await saved(pool, "k")

    await a.handover.give(ALL, "b", cause="drain", trace=None)

    await until(lambda: sorted(b.owned.open_slots()) == ALL, what="b serves")
    assert (await b.call("GET", "k")).body == b"kept"
    assert b.sync_set(SLOT).members == {A, B, C}
    assert a.changes.frozen == set()
    assert len(a.owned) == 0


async def test_a_slot_is_not_handed_over_to_who_is_not_in_its_set(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "COPY_TIMEOUT", 0.2)
    a = await given(pool, "a", "b")
    with pytest.raises(HandoverFailed, match="it has no whole copy of them yet"):
        await a.handover.give(ALL, "c", cause="drain", trace=None)
    assert sorted(a.owned.open_slots()) == ALL
    assert (await pool.owner(0)).epoch == 1


async def test_a_target_refuses_a_slot_whose_set_it_is_not_in(pool: InProcessPool) -> None:
    a, c = await given(pool, "a", "b"), pool["c"]
    owned = a.owned.get(0)
    assert owned is not None
    leaving = handover.start_handover(owned.owner, "c", cause="drain", traceparent="", now=1.0)
    revision = await pool.client.put(pool.keys.owner(0), leaving.encode()) or 0
    with pytest.raises(NotTaken, match="c is not in the sync set"):
        await c.handover.take([0], revision)
    assert (await pool.owner(0)).active == "a"


async def test_an_owner_that_takes_slots_back_has_all_their_writes(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await given(pool, "a", "b"), pool["b"]
    await written(a, "k", "kept")

    async def refusing(*_: object) -> None:
        raise NotTaken("not today")

    monkeypatch.setattr(b.handover, "take", refusing)
    with pytest.raises(HandoverFailed, match="not today"):
        await a.handover.give(ALL, "b", cause="drain", trace=None)

    assert sorted(a.owned.open_slots()) == ALL
    assert ((await pool.owner(0)).epoch, a.pool.state.sync_sets[0].record.epoch) == (2, 2)
    assert (await a.call("GET", "k")).body == b"kept"
    more = (await a.call("PUT", "k", "more")).headers
    assert (more["Understudy-Durability"], more["ETag"]) == ("replicas", '"2.1"')
    await until(lambda: b.keeper.is_whole(SLOT), what="b still has a copy")


async def test_the_set_stays_as_it_is_during_a_handover(pool: InProcessPool, monkeypatch: pytest.MonkeyPatch) -> None:
    a = await given(pool, "a", "b")
    seen, activate = [], pool.network.activate

    async def looking(peer: Peer, slots: list[int], revision: int) -> object:
        seen.append(set(a.changes.frozen))
        return await activate(peer, slots, revision)

    monkeypatch.setattr(pool.network, "activate", looking)
    await a.handover.give([0, 1], "b", cause="drain", trace=None)
    assert (seen, a.changes.frozen) == ([{0, 1}], set())


# -- slots that come back, and copies that stay --


async def test_slots_that_were_given_up_come_back_with_what_etcd_never_had(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await given(pool, "a", "b")
    await written(a, "k", "kept")

    assert sorted(a.reconciler.give_up()) == ALL
    assert a.active.slots == []
    monkeypatch.setattr(slot_reconciler, "ORPHANED_AFTER", 0.1)
    await pool.run(a.reconciler.run())

    await until(lambda: sorted(a.owned.open_slots()) == ALL, 20, "a serves them again")
    assert (await a.call("GET", "k")).body == b"kept"
    assert ((await pool.owner(SLOT)).epoch, a.pool.state.sync_sets[SLOT].record.epoch) == (2, 2)
    assert (await pool.owner(SLOT)).phase is Phase.STABLE


async def test_a_slot_that_was_claimed_from_etcd_is_reclaimed_from_there_though_an_old_copy_is_whole(
    client: EtcdClient, pool_name: str
) -> None:
    """The answer to the claim never came. The old copy lacks what was acknowledged without this process."""
    async with in_process_pool(client, pool_name, "a", "b", "c") as pool:
        a, c = await pool.give("a", "b", "c"), pool["c"]
        assert (await a.call("PUT", "k", "old")).status == 201
        await pool.assign("a", "b")
        await until(lambda: all(c.sync_set(slot).members == {A, B} for slot in ALL), 20, "c is not in the sets")
        stream = a.active.get(SLOT).stream
        await until(lambda: not stream.follows(C), 20, "c is sent nothing more")
        assert (await a.call("PUT", "k", "new")).status == 200
        assert (c.keeper.is_whole(SLOT), c.copies.replica.session(SLOT, "k").body) == (True, b"old")

        owner, record = Owner("c", "c1", 2), SyncRecord(2, (C,))
        await pool.client.put(pool.keys.sync_set(SLOT), record.encode())
        revision = await pool.client.put(pool.keys.owner(SLOT), owner.encode())
        await until(lambda: c.pool.state.owners[SLOT].revision == revision, what="c hears that it is the owner")
        await c.reconciler._reclaim([SLOT])

        assert c.owned.open_slots() == [SLOT]
        assert (await c.call("GET", "k")).body == b"new"
        assert await pool.owner(SLOT) == owner


async def test_a_slot_with_writes_in_memory_is_reclaimed_only_with_a_whole_copy(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await given(pool, "a", "b"), pool["b"]
    await written(a, "k", "kept")
    owner, record = (
        Owner("b", "b1", 2),
        SyncRecord.of_set(2, SyncSet(frozenset({B}), memory=True, former=frozenset({A}))),
    )
    await pool.client.put(pool.keys.sync_set(SLOT), record.encode())
    revision = await pool.client.put(pool.keys.owner(SLOT), owner.encode())
    await until(lambda: b.pool.state.owners[SLOT].revision == revision, what="b hears that it is the owner")

    with monkeypatch.context() as patch:
        patch.setattr(b.keeper, "is_whole", lambda _slot: False)
        await b.reconciler._reclaim([SLOT])
        assert SLOT not in b.owned
    await b.reconciler._reclaim([SLOT])
    assert (await b.call("GET", "k")).body == b"kept"
    assert b.copies.replica.copies == 0


async def test_a_member_that_a_peer_gives_slots_to_takes_them_from_its_memory(pool: InProcessPool) -> None:
    a, b = await given(pool, "a", "b"), pool["b"]
    await written(a, "k", "kept")
    fences = a.reconciler.give_up()

    taken = await b.takeovers.given("a", "a1", fences)

    assert sorted(taken.owners) == ALL
    assert (await b.call("GET", "k")).body == b"kept"


async def test_a_copy_that_the_set_counts_on_stays_when_the_table_wants_none(
    pool: InProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await given(pool, "a", "b"), pool["b"]
    await written(a, "k", "kept")
    a.changes.frozen.update(ALL)  # the active does not take b out of the set

    await pool.assign("a")
    b.reconciler._reconcile()
    assert b.keeper.is_whole(SLOT)

    a.changes.frozen.clear()
    await until(lambda: all(b.sync_set(slot).members == {A} for slot in ALL), 20, "b is not in the sets")
    b.reconciler._reconcile()
    assert b.keeper.is_whole(SLOT)  # a change that takes b in again may be under way
    monkeypatch.setattr(slot_reconciler, "KEPT_UNWANTED", 0.0)

    def dropped() -> bool:
        b.reconciler._drop_unwanted(b.pool.view())
        return b.copies.replica.held == frozenset()

    await until(dropped, 20, "b has dropped its copies")


async def test_an_active_does_not_count_on_a_copy_that_is_about_to_be_dropped(pool: InProcessPool) -> None:
    a, b = await given(pool, "a", "b"), pool["b"]
    await written(a, "k", "kept")
    stream = a.active.get(SLOT).stream
    a.changes.frozen.add(SLOT)  # the set stays as it is
    await until(lambda: b.keeper.released(SLOT), 20, "a is told that b drops the copy")
    await until(lambda: B not in stream.progress.confirmed, 20, "a does not count on it")
    assert B in stream.stuck


async def test_a_target_without_a_whole_copy_refuses_a_slot_whose_writes_etcd_may_lack(pool: InProcessPool) -> None:
    a, b = await given(pool, "a", "b"), pool["b"]
    await written(a, "k", "kept")
    b.keeper.copies[SLOT].whole = False
    with pytest.raises(HandoverFailed, match="not whole"):
        await a.handover.give([SLOT], "b", cause="rebalance", trace=None)
    assert SLOT in a.owned
    assert (await a.call("GET", "k")).body == b"kept"
