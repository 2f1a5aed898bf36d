from dataclasses import replace

import pytest

from understudy.statesync.etcd.client import Event, Kv
from understudy.statesync.etcd.informer import InformerBatch
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import NO_ETCD, NOBODY_ELSE, Intent, Lost, Member, MemberState, Owner, Table
from understudy.statesync.pool.site_records import PoolInGroup
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import SiteSpec
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.ids import trace_seed
from understudy.xds.control.admin_views import members_view
from understudy.xds.membership.claim_reports import ClaimReports
from understudy.xds.membership.cluster_state import ClusterState, endpoints, lost_entries, orders_for_envoy, pool_view
from understudy.xds.membership.failure_detector import FailureDetector
from understudy.xds.membership.member_health import Death
from understudy.xds.membership.state_builder import StateBuilder
from understudy.xds.planning.plan import FirstTableTimer, next_plan
from understudy.xds.tracing.failover_timing import (
    Delivery,
    PhaseSpan,
    delivery_phases,
    handover_change,
    leader_phases,
    slots_of,
    takeover_change,
)

UP, READY, INIT = MemberState.UP, MemberState.READY, MemberState.INIT
DOWN, DRAINING, LOST, ATTENTION = MemberState.DOWN, MemberState.DRAINING, MemberState.LOST, MemberState.ATTENTION
SECOND = 1_000_000_000


def member(name: str, boot: str = "one", state: MemberState = UP, site: str = "") -> Member:
    return Member(name, boot, app=f"127.0.0.1:{7000 + ord(name[0])}", peer="127.0.0.1:1", state=state, site=site)


def world(
    *members: Member,
    orders: tuple[str, ...] = (),
    owners: str | None = None,
    deaths: dict[str, Death] | None = None,
    lost: dict[str, Lost] | None = None,
    beating: tuple[str, ...] = (),
    gone: tuple[str, ...] = (),
    newer: tuple[int, ...] = (),
) -> ClusterState:
    """``orders`` are written as "abc": a, b, c; ``owners`` one letter per slot, "-" for none."""
    known = {one.member: one for one in members}
    owned = {slot: Owner(name, "one", 1) for slot, name in enumerate(owners or "") if name != "-"}
    slots = max(len(orders), len(owners or ""), 1)
    table = Table(1, tuple(tuple(order) for order in orders), lost or {}) if orders else None
    found = deaths or {}
    return ClusterState(
        spec=PoolSpec(pool="cart", slots=slots),
        members=known,
        states={
            name: LOST if name in found and found[name].boot == one.boot else one.state for name, one in known.items()
        },
        registered={name: one.boot for name, one in known.items() if name not in gone},
        owners=owned,
        table=table,
        deaths=found,
        beating=frozenset((name, known[name].boot) for name in beating),
        newer=frozenset(newer),
    )


def death(boot: str = "one") -> Death:
    return Death(boot, "connection refused", 10 * SECOND, 11 * SECOND)


def entry(boot: str = "one") -> Lost:
    return Lost(boot, "connection refused", "", 1.0)


ABC = (member("a"), member("b"), member("c"))


def test_envoy_tries_the_owner_first_and_then_the_order_of_the_table():
    seen = world(*ABC, orders=("abc", "bca", "cab"), owners="bb-")

    assert orders_for_envoy(seen) == (("b", "a", "c"), ("b", "c", "a"), ("c", "a", "b"))


def test_the_status_tells_who_is_given_more_time_and_why():
    detector, now = FailureDetector(), 100 * SECOND
    detector.update_records(ABC, (), now)
    for name, late in (("a", 0), ("b", SECOND // 4)):
        detector.on_beat(1, name, "one", UP, now, stall=late)

    told = {row["member"]: (row["patience_ms"], row["under_load"]) for row in members_view(world(*ABC), detector, now)}

    assert told["a"] == (300, "")
    assert told["b"] == (300 + 3 * 250, "its event loop was 250 ms late within the last 10 s")


def test_a_dead_owner_or_its_former_boot_is_left_to_the_table():
    dead = world(*ABC, orders=("bca",), owners="a", deaths={"a": death()})
    restarted = world(member("a", "two"), *ABC[1:], orders=("bca",), owners="a")
    gone = world(*ABC[1:], orders=("bca",), owners="a")

    assert orders_for_envoy(dead) == orders_for_envoy(restarted) == orders_for_envoy(gone) == (("b", "c", "a"),)


def test_without_a_table_there_are_no_orders():
    assert orders_for_envoy(world(*ABC, owners="a")) == ()


@pytest.mark.parametrize(
    ("state", "orders", "owners", "healthy"),
    [
        (UP, ("abc",), "a", True),
        (READY, ("bac",), "b", True),
        (READY, ("bc",), "b", False),
        (INIT, ("abc",), "a", False),
        (DOWN, ("abc",), "a", False),
        (DRAINING, ("bc",), "a", True),
        (DRAINING, ("bc",), "b", False),
    ],
)
def test_who_serves_is_healthy(state, orders, owners, healthy):
    seen = world(member("a", state=state), *ABC[1:], orders=orders, owners=owners)

    assert endpoints(seen)["a"].healthy is healthy


def test_if_nobody_serves_everybody_who_is_not_lost_stays_in():
    failing = [member(name, state=DOWN) for name in "ab"]
    seen = world(*failing, member("c"), orders=("abc",), owners="a", deaths={"c": death()})

    assert {name: one.healthy for name, one in endpoints(seen).items()} == {"a": True, "b": True, "c": False}


def test_a_member_whose_address_envoy_cannot_use_is_left_out():
    seen = world(replace(ABC[0], app="app.internal:80"), replace(ABC[1], app="nonsense"), ABC[2], orders=("abc",))

    assert list(endpoints(seen)) == ["c"]


def test_a_death_becomes_an_entry_with_the_trace_that_everybody_can_derive():
    entries = lost_entries(world(*ABC, orders=("abc",), deaths={"a": death()}), 5.0)

    assert entries == {"a": Lost("one", "connection refused", trace_seed("cart", "takeover", "a/one").traceparent, 5.0)}


def test_an_entry_stays_as_it_was_while_the_member_is_dead():
    seen = world(*ABC, orders=("abc",), deaths={"a": death()}, lost={"a": entry()})

    assert lost_entries(seen, 99.0) == {"a": entry()}


def test_an_entry_of_a_leader_before_stays_until_the_member_is_heard():
    unheard = world(*ABC, orders=("abc",), lost={"a": entry()})
    heard = world(*ABC, orders=("abc",), lost={"a": entry()}, beating=("a",))

    assert lost_entries(unheard, 5.0) == {"a": entry()}
    assert unheard.state("a") is LOST
    assert lost_entries(heard, 5.0) == {}
    assert heard.state("a") is UP


def test_an_entry_of_a_former_boot_stays_while_owner_records_name_it():
    reborn = (member("a", "two", INIT), *ABC[1:])
    claimed = world(*reborn, orders=("abc", "bca"), owners="bb", lost={"a": entry()})
    owning = world(*reborn, orders=("abc", "bca"), owners="ab", lost={"a": entry()})

    assert lost_entries(owning, 5.0) == {"a": entry()}
    assert lost_entries(claimed, 5.0) == {}
    assert owning.state("a") is INIT


def test_equal_worlds_make_no_table():
    seen = world(*ABC, orders=("abc", "abc", "abc"), owners="abc")
    plan = next_plan(seen, 1.0)
    assert plan is not None
    assert [order[0] for order in plan.table.orders] == ["a", "b", "c"]
    again = replace(seen, table=plan.table)

    assert next_plan(again, 2.0) is None


def test_a_takeover_that_the_table_does_not_know_of_is_a_fact_and_stays():
    seen = world(*ABC, orders=("abc", "bca", "cab"), owners="bbc", newer=(0,))

    plan = next_plan(seen, 5.0)

    assert plan is not None
    assert [order[0] for order in plan.table.orders] == ["b", "b", "c"]


@pytest.mark.parametrize("undone", [0, 1])
def test_a_move_that_was_undone_is_asked_for_again_by_a_newer_table(undone):
    seen = world(*ABC[:2], orders=("ab", "ab", "ba", "ba", "ba", "ba"), owners="bbbbbb", newer=(undone,))

    plan = next_plan(seen, 5.0)

    assert plan is not None
    assert sum(order[0] == "a" for order in plan.table.orders) >= 2


def test_a_move_under_way_is_not_asked_for_again():
    assert next_plan(world(*ABC[:2], orders=("ab", "ba", "ba", "ba"), owners="bbbb"), 5.0) is None


def test_nobody_who_could_hold_slots_leaves_the_orders_alone():
    starting = [member(name, state=INIT) for name in "abc"]
    seen = world(*starting, orders=("abc", "bca", "cab"), owners="abc")

    assert next_plan(seen, 1.0) is None


def test_a_death_among_members_that_fail_their_checks_is_told_and_moves_nothing():
    failing = [member(name, state=DOWN) for name in "abc"]
    plan = next_plan(world(*failing, orders=("abc", "bca", "cab"), owners="abc", deaths={"a": death()}), 1.0)

    assert plan is not None
    assert plan.newly_lost == ("a",)
    assert plan.table.orders == (("a", "b", "c"), ("b", "c", "a"), ("c", "a", "b"))


def test_entries_that_no_longer_matter_go_with_the_next_table_but_make_none():
    stale = {"z": entry()}
    seen = world(*ABC, orders=("abc", "bca", "cab"), owners="abc", lost=stale)
    settled = next_plan(seen, 1.0)
    calm = replace(seen, table=settled.table if settled else seen.table)
    calm = replace(calm, table=replace(calm.table, lost=stale))
    assert next_plan(calm, 1.0) is None

    plan = next_plan(replace(calm, deaths={"a": death()}, states={**calm.states, "a": LOST}), 1.0)
    assert plan is not None
    assert plan.table.lost.keys() == {"a"}


def test_planned_moves_have_a_trace_and_keep_it_until_others_are_added():
    alone = world(member("a"), orders=("a", "a", "a", "a"), owners="aaaa")
    joined = replace(alone, members={"a": member("a"), "b": member("b")}, states={"a": UP, "b": UP})
    first = next_plan(joined, 1.0)
    assert first is not None
    assert first.table.traceparent == trace_seed("cart", "handover", "2").traceparent

    under_way = replace(joined, table=first.table, deaths={}, registered={"a": "one", "b": "one"})
    again = next_plan(replace(under_way, table=replace(first.table, lost={"b": entry("zero")})), 1.0)
    assert again is not None
    assert again.table.generation == 3
    assert again.table.traceparent == first.table.traceparent


def look(first: FirstTableTimer, now: float, *members: Member) -> FirstTableTimer:
    return first.observe(world(*members), int(now * SECOND))


def test_the_first_table_waits_for_quiet_among_the_members():
    first = FirstTableTimer(longest=SECOND, quiet=SECOND // 4)
    assert look(first, 10, member("a", state=INIT)).due() is None

    one = look(first, 10, member("a"))
    assert one.due() == 10.25 * SECOND
    two = look(one, 10.2, member("a"), member("b"))
    assert two.due() == 10.45 * SECOND
    assert look(two, 10.3, member("a"), member("b")).due() == 10.45 * SECOND


def test_the_first_table_waits_no_longer_than_it_must():
    first = FirstTableTimer(longest=SECOND, quiet=SECOND // 4)
    for step in range(20):
        first = look(first, 10 + step / 10, member("a"), replace(member("b"), weight=step + 1))

    assert first.due() == 11 * SECOND


def test_the_first_table_waits_longer_for_members_that_are_starting():
    first = FirstTableTimer(longest=SECOND, quiet=SECOND // 4)

    assert look(first, 10, member("a"), member("b", state=INIT)).due() == 11 * SECOND


def takeover(found: Death | None = None):
    seen = world(*ABC, orders=("abc", "bca"), owners="ab", deaths={"a": found or death()})
    plan = next_plan(seen, 1.0)
    assert plan is not None
    course = takeover_change(
        seen,
        plan.table,
        "a",
        written=12 * SECOND,
        death=seen.deaths["a"],
        slots=seen.owned_by("a", "one"),
        reports=ClaimReports(),
    )
    return seen, course


def test_a_takeover_from_a_process_of_which_nobody_ever_heard_begins_when_it_was_found():
    never = replace(death(), last_sign=0)
    _, course = takeover(never)
    assert course.began == never.found > 0


def test_a_takeover_is_settled_when_the_dead_own_nothing():
    seen, course = takeover()
    assert not course.settled(seen)

    claimed = {0: Owner("c", "one", 2), 1: Owner("b", "one", 1)}
    assert not course.settled(replace(seen, owners=claimed)), "the table that orders it has not been seen yet"
    known = replace(seen, table=replace(seen.table, generation=course.generation))
    assert course.settled(replace(known, owners=claimed))
    assert course.settled(replace(known, owners={0: Owner("a", "two", 2), 1: Owner("b", "one", 1)}))
    assert not course.settled(known)


def test_a_takeover_is_of_all_slots_that_were_taken_even_if_the_table_has_followed_them():
    seen = world(*ABC, orders=("bc", "cb", "ab"), owners="bca", deaths={"a": death()})
    plan = next_plan(seen, 1.0)
    trace = plan.table.lost["a"].traceparent
    owners = {**seen.owners, 0: Owner("b", "one", 2, traceparent=trace), 2: Owner("c", "one", 2, traceparent=trace)}
    assert slots_of(replace(seen, owners=owners), seen.table, plan.table, "a") == {0, 2}
    followed = replace(seen.table, orders=(("b", "c"), ("c", "b"), ("c", "b")))
    assert slots_of(replace(seen, owners=owners), followed, plan.table, "a") == {0, 2}


def test_a_takeover_begins_with_the_last_sign_of_life():
    _, course = takeover()

    assert course.ends_by == 22 * SECOND
    detect, decide = leader_phases(course)
    assert (detect.name, detect.start, detect.end) == (names.DETECT, 10 * SECOND, 11 * SECOND)
    assert (decide.name, decide.start, decide.end) == (names.DECIDE, 11 * SECOND, 12 * SECOND)


def test_push_and_ack_span_all_nodes_and_leave_out_what_was_sent_before():
    _, course = takeover()
    at = 11 * SECOND
    ms = SECOND // 1000
    deliveries = [
        Delivery("early", at - ms, at + 90 * ms),
        Delivery("one", at + 2 * ms, at + 10 * ms),
        Delivery("two", at + 4 * ms, at + 30 * ms),
        Delivery("two", at + 5 * ms, at + 20 * ms),
    ]
    push, ack = delivery_phases(course, deliveries)

    assert (push.start, push.end) == (at, at + 5 * ms)
    assert (ack.start, ack.end) == (at + 2 * ms, at + 30 * ms)
    assert (push.attributes[names.NODE_FIRST_MS], push.attributes[names.NODE_LAST_MS]) == (2.0, 5.0)
    assert (ack.attributes[names.NODE_FIRST_MS], ack.attributes[names.NODE_LAST_MS]) == (8.0, 28.0)
    assert push.attributes[names.NODE_COUNT] == 2
    assert isinstance(push, PhaseSpan)


def test_without_nodes_there_is_neither_push_nor_ack():
    _, course = takeover()

    assert delivery_phases(course, []) == []


def test_planned_moves_settle_slot_by_slot_and_let_go_of_what_a_later_table_takes_back():
    seen = world(*ABC, orders=("ab", "bc", "ca"), owners="aba")
    table = replace(seen.table, traceparent=trace_seed("cart", "handover", "1").traceparent, cause="rebalance")
    course = handover_change(seen, table, written=SECOND)
    assert course is not None
    assert course.moving == {2: "c"}
    told = course.attributes()
    assert (told[names.FROM], told[names.TO], told[names.CAUSE]) == ("a", "c", "rebalance")
    assert not course.settled(seen)

    assert course.settled(replace(seen, owners={**seen.owners, 2: Owner("c", "one", 2)}))
    assert course.settled(replace(seen, table=replace(seen.table, orders=(("a",), ("b",), ("a",)))))


EAST_WEST = tuple(member(name, site="east" if name in "ab" else "west") for name in "abcd")
FOUR = ("abcd", "badc", "cdab", "dcba")


def test_a_site_that_goes_offline_is_left_by_all_its_members_in_one_table_and_one_trace():
    seen = replace(world(*EAST_WEST, orders=FOUR, owners="abcd"), offline=frozenset({"east"}))
    assert [seen.state(name) for name in "abcd"] == [DRAINING, DRAINING, UP, UP]

    plan = next_plan(seen, 1.0)
    assert plan is not None
    assert {name for order in plan.table.orders for name in order} == {"c", "d"}
    assert (plan.table.cause, plan.table.offline) == ("site east offline", ("east",))
    told = handover_change(seen, plan.table, written=SECOND).attributes()  # type: ignore[union-attr]
    assert (told[names.FROM], told[names.TO]) == ("a, b", "c, d")
    assert (told[names.CAUSE], told[names.SITE], told[names.PLANNED]) == ("site east offline", "east", True)

    half_way = replace(seen, table=plan.table, owners={**seen.owners, 0: Owner("c", "one", 2)})
    assert next_plan(half_way, 2.0) is None


def test_a_site_that_is_back_gets_its_share_in_one_table_and_one_trace():
    away = replace(world(*EAST_WEST, orders=("cd", "dc", "cd", "dc") * 4, owners="cdcd" * 4))
    away = replace(away, table=replace(away.table, offline=("east",)))

    plan = next_plan(away, 1.0)

    assert plan is not None
    assert (plan.table.cause, plan.table.offline) == ("site east online", ())
    told = handover_change(away, plan.table, written=SECOND).attributes()  # type: ignore[union-attr]
    assert (told[names.FROM], told[names.TO]) == ("c, d", "a, b")
    assert (told[names.CAUSE], told[names.SITE]) == ("site east online", "east")


def test_a_site_goes_into_the_table_and_out_of_it_also_when_nothing_moves():
    seen = world(*EAST_WEST, orders=FOUR, owners="abcd")
    rest = next_plan(seen, 1.0)
    seen = seen if rest is None else replace(seen, table=rest.table)
    assert next_plan(seen, 1.0) is None
    away = next_plan(replace(seen, offline=frozenset({"north"})), 1.0)
    assert away is not None
    assert (away.table.offline, away.table.traceparent, away.table.cause) == (("north",), "", "")
    assert Table.decode(away.table.encode()) == away.table
    back = next_plan(replace(seen, table=away.table), 1.0)
    assert back is not None
    assert back.table.offline == ()


@pytest.mark.parametrize(
    ("drained", "offline", "cause"),
    [
        ("a", "", "drain"),
        ("ac", "", "drain"),
        ("c", "east", "drain"),
        ("", "east", "site east offline"),
        ("a", "east", "site east offline"),
    ],
)
def test_members_that_are_drained_by_themselves_are_no_site(drained: str, offline: str, cause: str):
    seen = world(*EAST_WEST, orders=FOUR, owners="abcd")
    seen = replace(
        seen, states={**seen.states, **dict.fromkeys(drained, DRAINING)}, offline=frozenset(filter(None, [offline]))
    )
    plan = next_plan(seen, 1.0)
    assert plan is not None
    assert plan.table.cause == cause


def test_who_starts_on_a_site_that_is_offline_and_who_failed_there_is_as_before():
    others = tuple(member(name, state=state, site="east") for name, state in (("e", INIT), ("f", DOWN), ("g", READY)))
    seen = replace(world(*EAST_WEST, *others), offline=frozenset({"east"}))
    assert [seen.state(name) for name in "efg"] == [INIT, DOWN, DRAINING]


def test_envoy_goes_by_what_members_tell_and_not_by_a_servers_clock():
    seen = replace(world(*EAST_WEST, orders=FOUR, owners="cdcd"), offline=frozenset({"east"}))
    assert [endpoints(seen)[name].healthy for name in "abcd"] == [True] * 4
    placed = replace(seen, table=replace(seen.table, orders=(("c", "d"),) * 4))
    assert [endpoints(placed)[name].healthy for name in "abcd"] == [False, False, True, True]


def test_a_site_is_offline_until_its_time_is_over():
    keys, clock = PoolKeys("cart"), [10.0]
    builder = StateBuilder(keys, FailureDetector(), lambda: clock[0])
    put = {
        keys.spec: PoolSpec(pool="cart").encode(),
        keys.site_intent("east"): Intent(until=12.5, site="east").encode(),
        keys.site_intent("west"): Intent(site="west").encode(),
    }
    events = tuple(Event("put", Kv(key, value, 1, 1, 0)) for key, value in put.items())
    builder.apply(InformerBatch(1, events, reset=True))

    assert (builder.current().offline, builder.seconds_until_site_returns()) == ({"east", "west"}, 2.5)  # type: ignore[union-attr]
    clock[0] = 12.5
    assert (builder.current().offline, builder.seconds_until_site_returns()) == ({"west"}, None)  # type: ignore[union-attr]


@pytest.mark.parametrize("beats", [False, True], ids=["as the record says", "as the beats say"])
def test_a_member_that_cannot_reach_etcd_is_told_from_one_with_another_fault(beats: bool):
    keys, detector = PoolKeys("cart"), FailureDetector()
    builder = StateBuilder(keys, detector)
    said = {
        "a": (DOWN, f"{NO_ETCD}Deadline Exceeded"),
        "b": (DOWN, "the application does not listen"),
        "c": (ATTENTION, f"{NOBODY_ELSE}{NO_ETCD}Deadline Exceeded"),
        "d": (ATTENTION, f"{NOBODY_ELSE}the application does not listen"),
    }
    put = {keys.spec: PoolSpec(pool="cart").encode()}
    for name, (state, reason) in said.items():
        at_rest = Member(name, "one", "127.0.0.1:7000", "127.0.0.1:1", UP)
        put[keys.member(name)] = (at_rest if beats else replace(at_rest, state=state, reason=reason)).encode()
        if beats:
            detector.on_beat(1, name, "one", state, 1, reason=reason)
    builder.apply(InformerBatch(1, tuple(Event("put", Kv(key, value, 1, 1, 0)) for key, value in put.items())))

    assert builder.current().cut_off == {"a", "c"}  # type: ignore[union-attr]


def test_envoy_is_told_when_most_of_the_members_that_beat_are_late():
    keys = PoolKeys("cart")
    detector = FailureDetector(on_change=lambda _: builder.members_changed())
    builder = StateBuilder(keys, detector)
    spec = Event("put", Kv(keys.spec, PoolSpec(pool="cart").encode(), 1, 1, 0))
    builder.apply(InformerBatch(1, (spec,), reset=True))
    told = []
    for name in "abc":
        detector.on_beat(1, name, "one", UP, 1)
    for late in "abc":
        detector.on_beat(1, late, "one", UP, 2, stall=SECOND)
        told.append(pool_view(builder.current()).late)  # type: ignore[arg-type]

    assert told == [False, True, True]


def test_envoy_is_told_how_long_answers_take_and_a_second_while_nobody_knows():
    keys = PoolKeys("cart")
    builder = StateBuilder(keys, FailureDetector(on_change=lambda _: None))
    builder.apply(InformerBatch(1, (Event("put", Kv(keys.spec, PoolSpec(pool="cart").encode(), 1, 1, 0)),), reset=True))

    def told() -> int:
        return pool_view(builder.current()).answer_ms  # type: ignore[arg-type]

    assert told() == 1000
    assert builder.answers_took(250)
    assert told() == 250
    assert not builder.answers_took(250)
    assert told() == 250


def test_the_takeovers_of_a_site_that_is_lost_can_be_found_by_it():
    found = replace(death(), site="east")
    dead = world(*EAST_WEST, orders=FOUR, owners="abcd", deaths={"a": found, "b": found})
    plan = next_plan(dead, 1.0)
    assert plan is not None
    told = [
        takeover_change(
            dead, plan.table, name, written=SECOND, death=found, slots=frozenset({slot}), reports=ClaimReports()
        ).attributes()
        for slot, name in enumerate("ab")
    ]
    assert [(one[names.FROM], one[names.SITE], one[names.PLANNED]) for one in told] == [
        ("a", "east", False),
        ("b", "east", False),
    ]


def test_a_table_that_moves_nothing_has_no_course():
    seen = world(*ABC, orders=("ab", "bc", "ca"), owners="abc")

    assert handover_change(seen, seen.table, written=SECOND) is None


@pytest.mark.parametrize(("group", "known"), [("shop", False), (None, True)])
def test_a_pool_waits_until_it_knows_its_group(group: str | None, known: bool):
    keys = PoolKeys("cart")
    builder = StateBuilder(keys, FailureDetector())
    spec = PoolSpec(pool="cart", sites={"east": SiteSpec(weight=1)}, group=group)
    builder.apply(InformerBatch(1, (Event("put", Kv(keys.spec, spec.encode(), 1, 1, 0)),), reset=True))

    assert builder.group_known is known
    said = PoolInGroup({"east": "offline"}, {"east": 1}, ())
    builder.group_says({"stock": said})
    assert builder.group_known
    assert builder.current().group == ({"stock": said} if group else {})  # type: ignore[union-attr]
