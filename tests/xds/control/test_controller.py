import asyncio
import signal
import time
from collections import Counter
from dataclasses import replace

import pytest

from tests.harness.waiting import until
from tests.xds.ads_node import connected
from tests.xds.control.control_pool import POOL, QUICK, SLOTS, SPEC, ControlPool, control_pool
from understudy.statesync.audit.entry import Actor
from understudy.statesync.etcd.client import Delete, EtcdClient, Event, Kv, Put
from understudy.statesync.etcd.informer import InformerBatch
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import NO_ETCD, ControlServer, Intent, Member, MemberState, Owner, Table
from understudy.statesync.pool.site_records import DependencyDown
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import SiteSpec, SiteSwitching
from understudy.telemetry.tracing.ids import takeover_seed, trace_seed
from understudy.telemetry.tracing.setup import start_telemetry
from understudy.xds.control.controller import Controller, Timing
from understudy.xds.control.election import Leadership
from understudy.xds.control.process_lease import ProcessLease
from understudy.xds.membership.member_health import Death, MemberChange
from understudy.xds.server import types
from understudy.xds.server.cache import ResourceCache

ACTOR = Actor("control-1", "here", "control, pid 1")


@pytest.fixture
async def pool(tmp_path):
    async with control_pool(tmp_path) as running:
        yield running


@pytest.fixture
async def trio(pool: ControlPool):
    """Three members with all slots claimed, under one control server."""
    return await three_members(pool)


@pytest.fixture
async def quick_trio(tmp_path):
    """The same in a pool that soon finds a member that was stopped."""
    async with control_pool(tmp_path, SPEC.model_copy(update={"liveness": QUICK})) as running:
        yield await three_members(running)


async def three_members(pool: ControlPool, **settings: int) -> ControlPool:
    control = await pool.control(**settings)
    await control.ready()
    members = await pool.join("cart-1", "cart-2", "cart-3")
    await control.hears(*members)
    await settle(pool)
    return pool


async def settle(pool: ControlPool) -> None:
    """Wait for a table of all members, let them claim, and wait until every control server has seen it."""
    seen = await pool.table_with(lambda table: actives(table).keys() == pool.members.keys(), "a table of all members")
    await pool.claim_all(seen)
    for control in pool.controls.values():
        await until(lambda control=control: all_served(control), 40, "every slot has its owner")


async def all_served(control) -> bool:
    slots = (await control.ask("/v1/status"))["slots"]
    return slots["served"] == SLOTS and slots["moving"] == 0


def actives(table: Table) -> Counter[str]:
    return Counter(order[0] for order in table.orders if order)


def lost(member: str):
    return lambda table: member in table.lost


async def state_of(control, name: str) -> str:
    return (await control.member(name))["state"]


async def test_members_that_start_together_share_the_slots_from_the_first_table_on(pool):
    control = await pool.control(timing={"first_table": 30.0, "first_quiet": 3.0})
    await control.ready()
    members = [pool.member(name) for name in ("cart-1", "cart-2", "cart-3")]
    await asyncio.gather(*(member.begin(MemberState.READY) for member in members))
    for member in members:
        await member.register(MemberState.READY)
    seen = await pool.table_with(lambda table: True, "a table")

    assert seen.table.generation == 1
    assert sorted(actives(seen.table).values()) == [10, 11, 11]
    assert all(len(set(order)) == 3 for order in seen.table.orders)


async def test_there_is_no_table_without_a_spec_and_none_for_members_that_only_start(pool):
    await pool.client.delete(pool.keys.spec)
    control = await pool.control()
    await until(control.leads, 40)
    await pool.member("cart-1").join()
    starting = await pool.member("cart-2").join(MemberState.INIT)

    async def refuses() -> bool:
        ready = await control.ask("/readyz")
        return (ready["status"], ready["detail"]) == (503, "the pool has no spec in etcd")

    await until(refuses, 40, "it has read the pool, and says what it lacks (it may lead before)")
    assert await pool.table() is None
    await until(lambda: f"waiting: there is no pool '{POOL}' in etcd" in control.log.read_text(), 40, "it says so")

    await pool.apply(SPEC)
    seen = await pool.table_with(lambda table: True, "a table")
    assert actives(seen.table) == {"cart-1": SLOTS}

    await starting.register(MemberState.READY)
    starting.is_now(MemberState.READY)
    await pool.table_with(lambda table: actives(table)["cart-2"] >= SLOTS // 2 - 1, "the second member has its share")


async def test_a_killed_member_is_lost_in_table_and_endpoints_and_only_its_slots_move(trio):
    control, (first, *_) = trio.controls["control-1"], trio.members.values()
    before = await trio.table()
    async with connected(control.grpc, POOL) as node:
        assert node.healthy("cart-1") is True
        told = len(node.seen)
        first.kill()
        await until(lambda: node.healthy("cart-1") is False, what="the endpoint is unhealthy")
        after = await trio.table_with(lost("cart-1"), "the table names it lost")
        await until(lambda: all("cart-1" not in order for order in node.orders()), what="routes without it")

        assert node.seen[told] == "EDS"
        assert node.healthy("cart-2") is True
    entry = after.table.lost["cart-1"]
    assert entry.boot == "boot-1"
    assert entry.traceparent == trace_seed(POOL, "takeover", "cart-1/boot-1").traceparent
    assert "refused" in entry.cause
    for old, new in zip(before.table.orders, after.table.orders, strict=True):
        if old[0] == "cart-1":
            assert new[0] == old[1], "the standby steps in"
        else:
            assert new[0] == old[0], "nobody else's slots move"


async def test_claims_that_follow_a_death_change_nothing_for_envoy(trio):
    control, (first, *_) = trio.controls["control-1"], trio.members.values()
    async with connected(control.grpc, POOL) as node:
        first.kill()
        after = await trio.table_with(lost("cart-1"), "the table names it lost")
        await until(lambda: node.orders() == list(after.table.orders), what="routes as the table has them")
        told = len(node.routes)
        await trio.claim_all(after)
        await until(lambda: all_served(control))
        marker = next(slot for slot, order in enumerate(after.table.orders) if order[0] == "cart-3")
        await trio.members["cart-2"].claim(marker)
        await until(lambda: len(node.routes) > told, what="the next change of routes")

        assert node.orders(told)[marker][0] == "cart-2", "it is the next one that Envoy must know"


async def test_envoy_is_sent_to_the_owner_whatever_the_table_wishes(trio):
    control = trio.controls["control-1"]
    seen = await trio.table()
    slot = next(slot for slot, order in enumerate(seen.table.orders) if order[0] == "cart-1")
    async with connected(control.grpc, POOL) as node:
        await trio.members["cart-2"].claim(slot)
        await until(lambda: node.orders()[slot][0] == "cart-2", what="the route follows the owner")


async def test_what_a_beat_says_acts_before_the_record_does(trio):
    control, first = trio.controls["control-1"], trio.members["cart-1"]
    async with connected(control.grpc, POOL) as node:
        first.is_now(MemberState.DOWN)
        await until(lambda: node.healthy("cart-1") is False, what="the endpoint is unhealthy")
        after = await trio.table_with(lambda table: not actives(table)["cart-1"], "its slots go to others")

        assert not after.table.lost
        assert after.table.traceparent == trace_seed(POOL, "handover", str(after.table.generation)).traceparent


async def test_a_draining_member_serves_until_it_owns_nothing(trio):
    control, first = trio.controls["control-1"], trio.members["cart-1"]
    async with connected(control.grpc, POOL) as node:
        first.is_now(MemberState.DRAINING)
        after = await trio.table_with(lambda table: not actives(table)["cart-1"], "its slots go to others")
        assert await state_of(control, "cart-1") == "DRAINING"
        assert node.healthy("cart-1") is True
        await trio.claim_all(after)
        await until(lambda: node.healthy("cart-1") is False, what="it has nothing left to serve")


async def test_the_last_members_stay_in_although_their_checks_fail(trio):
    control = trio.controls["control-1"]
    before = await trio.table()
    async with connected(control.grpc, POOL) as node:
        for member in trio.members.values():
            member.is_now(MemberState.DOWN)

        async def all_down() -> bool:
            return {await state_of(control, name) for name in trio.members} == {"DOWN"}

        await until(all_down)
        await until(lambda: all(node.healthy(name) for name in trio.members), what="all endpoints stay in")
    assert all((await trio.table()).table.orders)
    assert before is not None


async def test_a_second_control_server_steps_in_with_the_same_table_and_versions(trio):
    first = trio.controls["control-1"]
    second = await trio.control("control-2")
    await second.ready()
    assert not await second.leads()
    before = await trio.table()
    async with connected(first.grpc, POOL) as here, connected(second.grpc, POOL) as there:
        assert here.versions == there.versions
        first.kill()
        del trio.controls["control-1"]
        await until(second.leads, 40, "the second one leads")
        told = list(there.seen)
        dead = trio.members["cart-3"]
        assert await trio.table() == before

        dead.kill()
        after = await trio.table_with(lost("cart-3"), "the new leader writes tables")
        assert after.table.generation == before.table.generation + 1
        assert "EDS" in told


async def test_a_leader_that_is_told_to_stop_hands_over_at_once(pool):
    await three_members(pool, lease=600)
    first = pool.controls["control-1"]
    second = await pool.control("control-2")
    await second.ready()
    first.signal(signal.SIGTERM)

    await until(second.leads, 40, "the second one leads long before the first one's lease could expire")
    assert await first.ended() == 0

    async def alone() -> bool:
        return list((await second.ask("/v1/status"))["controls"]) == ["control-2"]

    await until(alone, 40, "the second one sees that the first one is gone")


async def test_a_control_server_that_starts_again_declares_nobody_lost(quick_trio):
    trio = quick_trio
    before = await trio.table()
    control = trio.controls["control-1"]
    control.kill()
    for member in trio.members.values():
        member.signal(signal.SIGSTOP)
    control.start()
    await until(control.leads, 40)
    await control.ready()

    async def probed() -> bool:
        return control.log.read_text().count(": silent") >= 6

    await until(probed, 40, "every member was probed twice in vain")
    assert {await state_of(control, name) for name in trio.members} == {"READY"}
    for member in trio.members.values():
        member.signal(signal.SIGCONT)
    await control.hears(*trio.members.values())
    assert await trio.table() == before


async def test_a_frozen_member_is_lost_and_counts_again_when_it_goes_on(quick_trio):
    trio = quick_trio
    control, first = trio.controls["control-1"], trio.members["cart-1"]
    first.signal(signal.SIGSTOP)
    seen = await trio.table_with(lost("cart-1"), "the table names it lost")
    assert "silent" in seen.table.lost["cart-1"].cause

    first.signal(signal.SIGCONT)
    await trio.table_with(lambda table: not table.lost and actives(table)["cart-1"], "it has slots again")
    assert await state_of(control, "cart-1") == "READY"


async def test_a_member_whose_record_vanished_stays_while_it_beats_and_is_lost_when_it_is_dead(trio):
    control, first = trio.controls["control-1"], trio.members["cart-1"]
    before = await trio.table()
    async with connected(control.grpc, POOL) as node:
        await first.vanish()

        async def unregistered() -> bool:
            return (await control.member("cart-1"))["registered"] is False

        await until(unregistered)
        assert node.healthy("cart-1") is True
        assert await trio.table() == before

        first.kill()
        await trio.table_with(lost("cart-1"), "the table names it lost")
        await until(lambda: "cart-1" not in {member for order in node.orders() for member in order})


async def test_a_member_that_died_while_nobody_looked_is_found(trio):
    control, first = trio.controls["control-1"], trio.members["cart-1"]
    control.kill()
    first.kill()
    await first.vanish()
    control.start()

    seen = await trio.table_with(lost("cart-1"), "the table names it lost")
    assert not actives(seen.table)["cart-1"]


async def missing(trio, *names: str) -> bool:
    told = (await trio.controls["control-1"].ask("/v1/status"))["missing"]
    return [one["member"] for one in told] == [*names] and all("refused" in one["cause"] for one in told)


async def test_a_restarted_member_is_no_longer_lost_and_gets_its_share_when_it_is_ready(trio):
    first = trio.members["cart-1"]
    first.kill()
    seen = await trio.table_with(lost("cart-1"), "the table names it lost")
    await until(lambda: missing(trio, "cart-1"), what="the control server says that it is missing")
    await trio.claim_all(seen)
    await first.join(MemberState.INIT)
    seen = await trio.table_with(lambda table: not table.lost, "nobody is lost")
    await until(lambda: missing(trio), what="nobody is missing")
    assert not actives(seen.table)["cart-1"]

    await first.register(MemberState.READY)
    first.is_now(MemberState.READY)
    seen = await trio.table_with(lambda table: actives(table)["cart-1"] >= 9, "it has its share")
    assert seen.table.traceparent == trace_seed(POOL, "handover", str(seen.table.generation)).traceparent


async def test_a_spec_with_other_slots_is_refused_and_a_sound_one_is_taken(trio):
    control = trio.controls["control-1"]
    before = await trio.table()
    await trio.apply(SPEC.model_copy(update={"slots": SLOTS * 2}))

    async def refused() -> str:
        return (await control.ask("/v1/status"))["spec"]["fault"]

    assert f"{SLOTS} slots" in await until(refused)
    assert await trio.table() == before

    await trio.apply(SPEC.model_copy(update={"copies": 2}))
    await trio.table_with(lambda table: {len(order) for order in table.orders} == {2}, "two copies")
    assert not await refused()


async def test_etcd_may_restart(trio):
    before = await trio.table()
    await trio.etcd.settle(trio.client)
    trio.etcd.kill()
    await trio.etcd.start()

    trio.members["cart-1"].kill()
    after = await trio.table_with(lost("cart-1"), "the table names it lost")
    assert after.table.generation == before.table.generation + 1


async def test_when_etcd_is_back_a_member_that_finds_it_late_keeps_its_slots_for_a_while(trio):
    control, late, failing = trio.controls["control-1"], trio.members["cart-1"], trio.members["cart-2"]
    before = await trio.table()

    async def nobody_leads() -> bool:
        return not await control.leads()

    async def both_are_down() -> bool:
        return {await state_of(control, member.name) for member in (late, failing)} == {"DOWN"}

    await trio.etcd.settle(trio.client)
    trio.etcd.kill()
    await until(nobody_leads, 40)
    late.is_now(MemberState.DOWN, f"{NO_ETCD}Deadline Exceeded")
    failing.is_now(MemberState.DOWN, "the application does not listen")
    await until(both_are_down, 40)
    await trio.etcd.start()
    tables = await trio.tables_until(lambda table: not actives(table)["cart-1"], after=before.revision)
    first = next(table for table in tables if not actives(table)["cart-2"])
    assert actives(first)["cart-1"], "nobody waits for a failing member, but for a while for the other"


async def test_a_death_while_etcd_is_away_reaches_envoy_at_once_and_the_table_later(trio):
    control = trio.controls["control-1"]
    async with connected(control.grpc, POOL) as node:
        await trio.etcd.settle(trio.client)
        trio.etcd.kill()
        trio.members["cart-1"].kill()
        await until(lambda: node.healthy("cart-1") is False, what="the endpoint is unhealthy")
        assert (await control.ask("/healthz"))["status"] == "ok"
        await trio.etcd.start()
        await trio.table_with(lost("cart-1"), "the table names it lost")


LAST = "00-" + "a" * 32 + "-" + "1" * 16 + "-01"
FIRST = "00-" + "c" * 32 + "-" + "2" * 16 + "-01"


async def trace_of(control, ids) -> list[dict]:
    """The spans of a trace once its root is stored."""

    async def rooted() -> list[dict]:
        spans = (await control.ask(f"/v1/traces/{ids.hex}")).get("spans", [])
        return spans if any(not span["parent_id"] for span in spans) else []

    return await until(rooted, 40, "the root span is stored")


async def test_a_takeover_is_one_trace_from_the_last_sign_of_life_to_the_last_slot_that_is_served(trio):
    control = trio.controls["control-1"]
    ids = takeover_seed(POOL, "cart-1", "boot-1")
    async with connected(control.grpc, POOL):
        await trio.members["cart-1"].has_answered(LAST)
        trio.members["cart-1"].kill()
        await trio.claim_all(await trio.table_with(lost("cart-1"), "the table names it lost"))
        spans = await trace_of(control, ids)
    path = sorted((s for s in spans if s["attributes"].get("understudy.critical")), key=lambda span: span["start_ns"])
    assert [span["name"] for span in path] == ["detect", "decide", "claim"]
    root = next(span for span in spans if not span["parent_id"])
    assert [root["start_ns"], *(span["end_ns"] for span in path)] == [*(s["start_ns"] for s in path), root["end_ns"]]
    assert {span["name"] for span in spans if span not in path} == {"failover", "push", "ack"}
    assert root["attributes"]["understudy.slots"] in (10, 11)
    assert root["attributes"]["understudy.to"] == "cart-2, cart-3"
    assert root["attributes"]["understudy.request.last"] == LAST
    assert 0 <= root["attributes"]["understudy.error_ms"] <= 20_000
    assert "understudy.unmeasured" not in root["attributes"]
    push = next(span for span in spans if span["name"] == "push")
    assert push["attributes"]["understudy.node.count"] == 1
    assert {span["parent_id"] for span in spans} == {"", root["span_id"]}


async def test_a_takeover_ends_with_the_answer_that_somebody_waited_for(trio):
    control = trio.controls["control-1"]
    ids = takeover_seed(POOL, "cart-1", "boot-1")
    told = {"trace": ids.hex, "slots": 0}
    await control.hears(trio.members["cart-2"])
    await trio.members["cart-2"].tell({**told, "waiting": True})
    await trio.members["cart-2"].has_answered(LAST)  # the beat that tells of this tells of the claim as well
    trio.members["cart-1"].kill()
    await trio.claim_all(await trio.table_with(lost("cart-1"), "the table names it lost"))
    await until(lambda: all_served(control), what="all that is missing is the answer")
    await trio.members["cart-2"].tell({**told, "answered_after": 0.001, "awaited": True, "request": FIRST})
    spans = {span["name"]: span for span in await trace_of(control, ids)}
    root, last = spans["failover"], spans["first_ok"]
    assert last["end_ns"] == root["end_ns"]
    assert last["attributes"]["understudy.critical"] is True
    assert root["attributes"]["understudy.request.first"] == FIRST


async def test_what_nobody_tells_of_and_what_nobody_ordered_is_counted_as_unmeasured(trio):
    control = trio.controls["control-1"]
    stray, untold = takeover_seed(POOL, "cart-2", "somebody"), takeover_seed(POOL, "cart-1", "boot-1")
    seen = await trio.table()
    slot = next(slot for slot, order in enumerate(seen.table.orders) if order[0] == "cart-2")
    owner = Owner("cart-3", "boot-1", 9, cause="cart-2 lost: silent", traceparent=stray.traceparent)
    await trio.client.put(trio.keys.owner(slot), owner.encode())
    trio.members["cart-1"].kill()
    seen = await trio.table_with(lost("cart-1"), "the table names it lost")
    for name in ("cart-2", "cart-3"):
        await trio.members[name].claim(*[slot for slot, order in enumerate(seen.table.orders) if order[0] == name])

    for ids, source in ((untold, "cart-1"), (stray, "cart-2")):
        root = next(span for span in await trace_of(control, ids) if not span["parent_id"])
        assert root["attributes"]["understudy.unmeasured"] is True
        assert root["attributes"]["understudy.from"] == source
    back = {span["name"]: span["attributes"] for span in await trace_of(control, stray)}["returned"]
    assert back["understudy.returned"], "cart-2 was taken over from while it beat: that is a false failover"
    assert "understudy.could_not_serve" not in back


async def test_planned_moves_are_one_trace_of_their_own(trio):
    control = trio.controls["control-1"]
    trio.members["cart-1"].is_now(MemberState.DRAINING)
    after = await trio.table_with(lambda table: not actives(table)["cart-1"], "its slots go to others")
    await trio.claim_all(after)
    trace = trace_seed(POOL, "handover", str(after.table.generation)).hex

    async def root() -> dict:
        spans = (await control.ask(f"/v1/traces/{trace}")).get("spans", [])
        return next((span for span in spans if not span["parent_id"]), {})

    found = await until(root, 40, "the root span is stored")
    assert found["name"] == "handover"
    assert found["attributes"]["understudy.planned"] is True
    spans = await trace_of(control, trace_seed(POOL, "handover", str(after.table.generation)))
    path = [span for span in spans if span["attributes"].get("understudy.critical")]
    assert sum(s["end_ns"] - s["start_ns"] for s in path) == found["end_ns"] - found["start_ns"] > 0


async def test_routes_that_nobody_changed_are_not_sent_again_after_a_restart(trio):
    control = trio.controls["control-1"]
    async with connected(control.grpc, POOL) as node:
        before = dict(node.versions)
    control.kill()
    control.start()
    await control.ready()
    async with connected(control.grpc, POOL) as node:
        assert node.versions == before
    assert types.ROUTES in before


async def test_two_control_servers_may_lose_their_members_streams_and_find_them_again(trio):
    second = await trio.control("control-2")
    await second.ready()
    before = await trio.table()
    for name in trio.members:
        assert await state_of(second, name) == "READY"
    for name in ("cart-2", "cart-3"):
        trio.members[name].kill()
    after = await trio.table_with(lambda table: len(table.lost) == 2, "both are lost")

    assert actives(after.table) == {"cart-1": SLOTS}
    assert after.table.generation <= before.table.generation + 2


async def test_claims_that_run_ahead_of_a_death_do_not_send_slots_to_the_dead(quick_trio):
    trio = quick_trio
    first, second = trio.members["cart-1"], trio.members["cart-2"]
    before = await trio.table()
    first.signal(signal.SIGSTOP)
    slots = [slot for slot, order in enumerate(before.table.orders) if order[0] == "cart-1"]
    await second.claim(*slots)
    after = await trio.table_with(lost("cart-1"), "the table names it lost")

    # One table, or on a slow machine one before it that follows the claims.
    assert after.table.generation <= before.table.generation + 2
    moved = [slot for slot in slots if after.table.orders[slot][0] != "cart-2"]
    assert len(moved) <= len(slots) // 2 + 1


async def test_claims_that_sidecars_made_by_themselves_are_followed_once_they_rest(trio):
    before = await trio.table()
    mine, yours = (
        [slot for slot, order in enumerate(before.table.orders) if order[0] == name] for name in ("cart-1", "cart-2")
    )
    swaps = list(zip(mine, yours, strict=False))[:5]
    claims = [
        (trio.members[name], slot) for pair in swaps for name, slot in zip(("cart-2", "cart-1"), pair, strict=True)
    ]
    await asyncio.gather(*(member.claim(slot) for member, slot in claims))

    def followed(table: Table) -> bool:
        owners = [(table.orders[here][0], table.orders[there][0]) for here, there in swaps]
        return set(owners) == {("cart-2", "cart-1")}

    after = await trio.table_with(followed, "the table follows the owners")
    assert after.table.generation == before.table.generation + 1


async def test_a_deposed_leader_that_does_not_know_it_writes_nothing(pool):
    await pool.client.put(pool.keys.leader, b"somebody else")
    await pool.client.put(
        pool.keys.member("cart-1"), Member("cart-1", "one", "127.0.0.1:1", "127.0.0.1:2", "UP").encode()
    )
    term = (await pool.client.get(pool.keys.leader)).create_revision
    leadership = Leadership(pool.client, pool.keys, ControlServer("control-1", "", ""), ProcessLease(pool.client))
    telemetry = start_telemetry("understudy-control", "control-1")
    controller = Controller(
        pool.client,
        pool.keys,
        leadership=leadership,
        cache=ResourceCache(),
        telemetry=telemetry,
        timing=Timing(first_table=0.0),
        actor=ACTOR,
    )
    running = asyncio.gather(*controller.services().values())
    try:
        leadership._term = term - 1
        controller.leadership_changed()
        await until(leadership._recheck.is_set, what="it tried, and doubts that it leads")
        assert await pool.table() is None

        leadership._term = term
        controller.leadership_changed()
        await pool.table_with(lambda table: True, "a table")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await telemetry.aclose()


async def test_a_site_is_offline_for_as_long_as_was_said_and_comes_back_though_nothing_else_happens(trio):
    for name, member in trio.members.items():
        member.record = replace(member.record, site="west" if name == "cart-3" else "east")
        await member.register(MemberState.READY)
    before = await trio.table()
    intent = Intent(until=time.time() + 5.0, site="east")
    await trio.client.put(trio.keys.site_intent("east"), intent.encode())

    seen: list[tuple[str, ...]] = []

    def gone_and_back(table: Table) -> bool:
        seen.append(table.offline)
        return ("east",) in seen and not table.offline

    tables = await trio.tables_until(gone_and_back, after=before.revision)
    gone, back = next(table for table in tables if table.offline), tables[-1]
    assert gone.offline == ("east",)
    assert actives(gone).keys() == {"cart-3"}
    assert gone.cause == "site east offline"
    assert time.time() >= intent.until
    assert back.generation == gone.generation + 1
    assert actives(back).keys() == trio.members.keys()

    await goes_to_the_other_site_by_grade_and_when_the_freeze_is_over(trio)


async def goes_to_the_other_site_by_grade_and_when_the_freeze_is_over(trio: ControlPool) -> None:
    """A dependency is down: the slots go west. It is up and that of west is down: they go back when the freeze ends."""
    needs = ("database",)
    sites = {"east": SiteSpec(weight=100, needs=needs), "west": SiteSpec(weight=0, needs=needs)}
    spec = trio.spec.model_copy(update={"sites": sites, "site_switch": SiteSwitching(freeze=6.0)})
    await trio.client.put(trio.keys.spec, spec.encode())
    first = await trio.table_with(lambda table: table.switch is not None, "a table that says who serves")
    await trio.claim_all(first)

    down = DependencyDown(time.time(), "replication is broken").encode()
    await trio.client.put(trio.keys.dependency("east", "database"), down)
    seen = await trio.table_with(lambda table: actives(table).keys() == {"cart-3"}, "west has all slots")
    assert seen.table.cause == "site west serves: east has grade 0, west has grade 100"
    assert seen.table.switch.at - first.table.switch.at >= 6.0
    await trio.claim_all(seen)

    changes = [Put(trio.keys.dependency("west", "database"), down), Delete(trio.keys.dependency("east", "database"))]
    await trio.client.txn([], changes)
    back = await trio.table_with(lambda table: table.switch.to == ("east",), "east serves again, without another cause")
    assert back.table.switch.at - seen.table.switch.at >= 6.0
    assert actives(back.table).keys() == {"cart-1", "cart-2"}, "all slots may move at once: the switch is their cause"


@pytest.mark.parametrize("dead", [True, False], ids=["dead", "down"])
async def test_what_a_lost_member_held_up_does_not_make_hedges_wait_longer(dead: bool):
    client, keys = EtcdClient(["127.0.0.1:1"]), PoolKeys(POOL)
    controller = Controller(
        client,
        keys,
        leadership=Leadership(client, keys, ControlServer("control-1", "", ""), ProcessLease(client)),
        cache=ResourceCache(),
        telemetry=start_telemetry("understudy-control", "control-1"),
        timing=Timing(),
        actor=ACTOR,
    )
    spec = Event("put", Kv(keys.spec, PoolSpec(pool=POOL).encode(), 1, 1, 0))
    controller._on_batch(InformerBatch(1, (spec,), reset=True))

    def answer_ms() -> int:
        return controller.state_builder.current().answer_ms  # type: ignore[union-attr]

    assert answer_ms() == 1000
    controller.on_durations({5.0: 200})
    assert answer_ms() == 5
    controller.detector.on_beat(1, "cart-1", "one", MemberState.UP, 1)
    controller.on_durations({250.0: 200})
    assert answer_ms() == 250
    if dead:
        (well,) = controller.detector.members.values()
        controller._on_member_change(MemberChange(well, replace(well, death=Death("one", "silent", 1, 2, 0))))
    else:
        controller.detector.on_beat(1, "cart-1", "one", MemberState.DOWN, 2)
    controller.on_durations({5000.0: 2000})
    assert answer_ms() == 250
    await client.close()
