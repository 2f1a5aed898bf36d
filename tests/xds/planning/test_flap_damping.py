"""The brakes against flapping: what they hold back, what they never hold back, and when they come off."""

from dataclasses import replace

import pytest

from understudy.statesync.pool.records import Member, MemberState, Owner, Phase, Table
from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.membership.cluster_state import ClusterState
from understudy.xds.planning.flap_damping import (
    ABSENCE_TIME,
    ETCD_GRACE,
    FREEZE_TIME,
    HOLD_TIME,
    LOSS_WINDOW,
    SECOND,
    SURGE_WINDOW,
    FlapDamping,
)
from understudy.xds.planning.plan import next_plan

UP, DOWN, INIT, DRAINING = MemberState.UP, MemberState.DOWN, MemberState.INIT, MemberState.DRAINING
START = 1000 * SECOND


def world(owners: str, *, orders: str = "", states: str = "UU", epochs: int = 1) -> ClusterState:
    """``owners`` and ``orders`` name the active per slot; ``states`` are those of a, b, c... (U: up, D: down)."""
    names = "abcdef"[: len(states)]
    members = {name: Member(name, "one", f"127.0.0.1:{7000 + ord(name)}", "127.0.0.1:1", UP) for name in names}
    table = Table(1, tuple((name, *(other for other in names if other != name)) for name in orders or owners))
    return ClusterState(
        spec=PoolSpec(pool="cart", slots=len(owners)),
        members=members,
        states={name: UP if letter == "U" else DOWN for name, letter in zip(names, states, strict=True)},
        registered=dict.fromkeys(names, "one"),
        owners={slot: Owner(name, "one", epochs) for slot, name in enumerate(owners)},
        table=table,
        deaths={},
        beating=frozenset(),
    )


def leaving(seen: ClusterState, slot: int, to: str) -> ClusterState:
    """The pool while ``slot`` is handed over."""
    return replace(seen, owners={**seen.owners, slot: replace(seen.owners[slot], phase=Phase.HANDOVER, to=to)})


def test_a_slot_that_has_just_changed_hands_is_held_for_a_while() -> None:
    damping = FlapDamping().observe(leaving(world("aabb"), 1, "b"), START)
    taken = world("abbb")

    damping = damping.observe(taken, START + SECOND)
    assert damping.held_slots(taken) == {1}
    assert damping.seconds_until_release(START + SECOND) == HOLD_TIME / SECOND
    assert damping.observe(taken, START + SECOND + HOLD_TIME).held_slots(taken) == frozenset()


def test_what_a_leader_finds_at_its_first_look_is_not_held() -> None:
    assert FlapDamping().observe(world("aabb"), START).held_slots(world("aabb")) == frozenset()


def test_a_slot_whose_owner_cannot_serve_is_never_held() -> None:
    damping = FlapDamping().observe(leaving(world("aabb"), 1, "b"), START).observe(world("abbb"), START + SECOND)
    failing = world("abbb", states="UD")

    assert damping.observe(failing, START + 2 * SECOND).held_slots(failing) == frozenset()


def flapping(times: int) -> FlapDamping:
    damping = FlapDamping().observe(world("aaaa"), START)
    for number in range(times):
        damping = damping.observe(world("aaaa", states="UD"), START + (2 * number + 1) * SECOND)
        damping = damping.observe(world("aaaa", states="UU"), START + (2 * number + 2) * SECOND)
    return damping


def test_a_member_that_keeps_failing_gets_nothing_until_it_has_been_well_for_long() -> None:
    seen = world("aaaa")

    assert flapping(2).with_members_held(seen).state("b") is UP
    assert flapping(3).with_members_held(seen).state("b") is INIT
    assert "b failed 3 times within 30 s" in [brake.why for brake in flapping(3).holds()]
    later = flapping(3).observe(seen, START + 5 * SECOND + LOSS_WINDOW + 1)
    assert later.with_members_held(seen).state("b") is UP


def test_a_member_that_keeps_failing_is_better_than_none() -> None:
    assert flapping(3).with_members_held(world("aaaa", states="DU")).state("b") is UP


def test_a_member_that_keeps_failing_keeps_what_it_owns() -> None:
    assert flapping(3).with_members_held(world("aaab")).state("b") is UP


def test_moves_without_a_cause_freeze_and_the_freeze_ends() -> None:
    seen = world("aabbaabbaa")
    damping = FlapDamping().observe(seen, START)
    later = START + SURGE_WINDOW + SECOND
    damping = damping.observe(seen, later)

    frozen = damping.with_plan(seen, world("bbbbbbbbbb").table.orders, later)  # type: ignore[union-attr]

    assert frozen.frozen is not None
    assert "6 of 10 slots were to move within 10 s" in frozen.frozen.why
    assert frozen.held_slots(seen) == set(range(10))
    thawed = frozen.observe(seen, later + FREEZE_TIME)
    assert thawed.held_slots(seen) == frozenset()
    assert thawed.with_plan(seen, world("bbbbbbbbbb").table.orders, later + FREEZE_TIME).frozen is None  # type: ignore[union-attr]


def test_moves_to_preferred_members_are_no_surge() -> None:
    seen = replace(world("bbbbbbbbbb"), spec=PoolSpec(pool="cart", slots=10, prefer={"members": ["a"]}))
    later = START + SURGE_WINDOW + SECOND
    damping = FlapDamping().observe(seen, START).observe(seen, later)
    assert damping.with_plan(seen, world("aaaaaaaaaa").table.orders, later).frozen is None  # type: ignore[union-attr]
    nobody = replace(seen, spec=PoolSpec(pool="cart", slots=10))
    damping = FlapDamping().observe(nobody, START).observe(nobody, later)
    assert damping.with_plan(nobody, world("aaaaaaaaaa").table.orders, later).frozen is not None  # type: ignore[union-attr]


def test_the_share_of_a_member_that_is_steady_again_is_no_surge() -> None:
    steady = flapping(3)
    seen, later = world("aaaa"), START + 6 * SECOND + LOSS_WINDOW
    assert steady.with_members_held(seen).state("b") is INIT

    again = steady.observe(seen, later)

    assert again.with_members_held(seen).state("b") is UP
    assert again.with_plan(seen, world("bbaa").table.orders, later).frozen is None  # type: ignore[union-attr]


def test_nothing_moves_while_a_member_that_seems_well_has_just_been_taken_over_from() -> None:
    """Its standby knows more of it than the control server: what it got in place of its slots would be lost, too."""
    damping = FlapDamping().observe(world("aaaabbbb"), START)
    robbed = world("aaaabbcc", states="UUU")

    damping = damping.observe(robbed, START + SECOND)

    assert damping.held_slots(robbed) == set(range(8))
    assert damping.observe(robbed, START + SECOND + HOLD_TIME).held_slots(robbed) == frozenset()


def test_sessions_of_the_living_are_not_moved_while_a_dead_member_may_soon_be_back() -> None:
    damping = FlapDamping().observe(world("aaaabbbb"), START)
    dead = world("aaaabbcc", states="UDU")
    damping = damping.observe(dead, START)

    assert damping.held_slots(dead) == {0, 1, 2, 3, 6, 7}, "what the dead one still has goes at once"
    claimed = world("aaaaaccc", states="UDU")
    damping = damping.observe(claimed, START + SECOND)
    assert damping.observe(claimed, START + SECOND + HOLD_TIME).held_slots(claimed) == set(range(8))
    assert (
        damping.observe(claimed, START + SECOND + HOLD_TIME).seconds_until_release(START + SECOND + HOLD_TIME)
        == (ABSENCE_TIME - HOLD_TIME) / SECOND
    )
    assert damping.observe(claimed, START + SECOND + ABSENCE_TIME).held_slots(claimed) == frozenset()

    back = world("aaaaaccc", states="UUU")
    assert damping.observe(back, START + SECOND + HOLD_TIME).held_slots(back) == frozenset()


@pytest.mark.parametrize("cause", ["UUU", "UD"])
def test_moves_after_a_change_of_members_do_not_freeze(cause: str) -> None:
    damping = FlapDamping().observe(world("aabbaabbaa"), START)
    changed = world("aabbaabbaa", states=cause)
    damping = damping.observe(changed, START + SURGE_WINDOW + SECOND)

    asked = damping.with_plan(changed, world("bbbbbbbbbb").table.orders, START + SURGE_WINDOW + SECOND)  # type: ignore[union-attr]
    assert asked.frozen is None


def test_small_moves_add_up_over_the_window() -> None:
    seen = world("aaaaaaaaaa")
    damping = FlapDamping().observe(seen, START)
    now = START + SURGE_WINDOW
    for number in range(4):
        now += SECOND
        orders = world("b" * 1 + "a" * 9).table.orders  # type: ignore[union-attr]
        damping = damping.observe(seen, now).with_plan(seen, orders, now)
        assert (damping.frozen is not None) == (number == 3)


def test_a_held_slot_keeps_its_active_in_the_plan() -> None:
    seen = world("aaaa", states="UU")

    free, held = next_plan(seen, 1.0), next_plan(seen, 1.0, frozenset(range(4)))

    assert free is not None
    assert any(order[0] == "b" for order in free.table.orders)
    assert held is None or all(order[0] == "a" for order in held.table.orders)


def test_a_table_that_missed_a_takeover_is_put_right_although_nothing_may_move() -> None:
    """It was decided on before the claim and written after it, so it is newer, and still says that the dead serve."""
    damping = FlapDamping().observe(world("aabbcc", states="UUU"), START)
    claimed = world("aacacc", orders="aabbcc", states="UUU", epochs=2)
    seen = replace(claimed, states={**claimed.states, "b": MemberState.LOST})
    damping = damping.observe(seen, START + SECOND)

    assert damping.held_slots(seen) == frozenset(range(6))
    plan = next_plan(seen, 1.0, damping.held_slots(seen))

    assert plan is not None
    assert "".join(order[0] for order in plan.table.orders) == "aacacc"


def returning(states: dict[str, MemberState]) -> ClusterState:
    """A pool whose table calls east offline, which no operator does any more; a and b are there, c and d elsewhere."""
    seen = world("ccccdddd", states="UUUU")
    sited = {name: replace(one, site="east" if name in "ab" else "west") for name, one in seen.members.items()}
    table = Table(1, (("c", "d"),) * 4 + (("d", "c"),) * 4, offline=("east",))
    return replace(seen, members=sited, states={**seen.states, **states}, table=table)


def test_a_site_comes_back_as_a_whole() -> None:
    half = returning({"b": DRAINING})
    damping = FlapDamping().observe(half, START)
    assert damping.with_members_held(half).state("a") is DRAINING
    assert next_plan(damping.with_members_held(half), 1.0) is None
    assert damping.seconds_until_release(START) == HOLD_TIME / SECOND

    whole = returning({})
    plan = next_plan(damping.observe(whole, START + SECOND).with_members_held(whole), 1.0)
    assert plan is not None
    assert {"a", "b"} < {order[0] for order in plan.table.orders}


def test_when_etcd_is_back_nobody_loses_slots_for_finding_it_later_than_others() -> None:
    late = replace(world("aabb", states="UD"), cut_off=frozenset({"b"}))
    damping = FlapDamping(began=START)

    assert damping.with_cut_off_kept(late, START + ETCD_GRACE - 1).state("b") is UP
    assert damping.with_cut_off_kept(world("aabb", states="UD"), START + 1).state("b") is DOWN
    assert damping.with_cut_off_kept(replace(late, table=Table(1, (("a",),) * 4)), START + 1).state("b") is DOWN
    assert damping.observe(late, START + SECOND).seconds_until_release(START + SECOND) == (ETCD_GRACE - SECOND) / SECOND
    assert damping.with_cut_off_kept(late, START + ETCD_GRACE).state("b") is DOWN
    assert damping.observe(late, START + ETCD_GRACE).seconds_until_release(START + ETCD_GRACE) is None

    back = damping.etcd_reached_since(START + 10 * ETCD_GRACE)
    assert back.with_cut_off_kept(late, START + 11 * ETCD_GRACE - 1).state("b") is UP
    assert back.with_cut_off_kept(late, START + 11 * ETCD_GRACE).state("b") is DOWN
    assert back.etcd_reached_since(START) == back, "who reached etcd before it led is new all the same"
    assert FlapDamping().etcd_reached_since(START).began is None


def test_a_site_does_not_wait_for_ever_for_one_of_its_members() -> None:
    half = returning({"b": DRAINING})
    damping = FlapDamping().observe(half, START).observe(half, START + HOLD_TIME - 1)
    assert damping.with_members_held(half).state("a") is DRAINING
    damping = damping.observe(half, START + HOLD_TIME)
    assert damping.with_members_held(half).state("a") is UP
    assert damping.seconds_until_release(START + HOLD_TIME) is None


def test_a_site_comes_back_when_the_slots_that_it_has_just_left_are_held_no_more() -> None:
    left = returning({"a": DRAINING, "b": DRAINING})
    left = replace(left, offline=frozenset({"east"}))
    damping = FlapDamping().observe(
        leaving(replace(left, owners={**left.owners, 0: Owner("a", "one", 1)}), 0, "c"), START
    )
    back = returning({})
    back = replace(back, owners={**back.owners, 0: Owner("c", "one", 2)})

    damping = damping.observe(back, START + SECOND)
    assert damping.with_members_held(back).state("a") is DRAINING
    assert damping.observe(back, START + SECOND + HOLD_TIME).with_members_held(back).state("a") is UP


def test_a_site_that_comes_back_is_not_waited_for_when_nobody_else_can_serve() -> None:
    half = returning({"b": DRAINING, "c": DOWN, "d": DOWN})
    assert FlapDamping().observe(half, START).with_members_held(half).state("a") is UP
