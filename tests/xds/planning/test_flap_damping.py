"""The brakes against flapping: what they hold back, what they never hold back, and when they come off."""

from dataclasses import replace

import pytest

from understudy.statesync.pool.records import Member, MemberState, Owner, Phase, Table
from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.membership.cluster_state import World
from understudy.xds.planning.flap_damping import ABSENCE, FOUND, FREEZE, HOLD, LOSS_WINDOW, SECOND, SURGE_WINDOW, Calm
from understudy.xds.planning.plan import next_plan

UP, DOWN, INIT, DRAINING = MemberState.UP, MemberState.DOWN, MemberState.INIT, MemberState.DRAINING
START = 1000 * SECOND


def world(owners: str, *, orders: str = "", states: str = "UU", epochs: int = 1) -> World:
    """``owners`` and ``orders`` name the active per slot; ``states`` are those of a, b, c... (U: up, D: down)."""
    names = "abcdef"[: len(states)]
    members = {name: Member(name, "one", f"127.0.0.1:{7000 + ord(name)}", "127.0.0.1:1", UP) for name in names}
    table = Table(1, tuple((name, *(other for other in names if other != name)) for name in orders or owners))
    return World(
        spec=PoolSpec(pool="cart", slots=len(owners)),
        members=members,
        states={name: UP if letter == "U" else DOWN for name, letter in zip(names, states, strict=True)},
        registered=dict.fromkeys(names, "one"),
        owners={slot: Owner(name, "one", epochs) for slot, name in enumerate(owners)},
        table=table,
        deaths={},
        beating=frozenset(),
    )


def leaving(seen: World, slot: int, to: str) -> World:
    """The pool while ``slot`` is handed over."""
    return replace(seen, owners={**seen.owners, slot: replace(seen.owners[slot], phase=Phase.HANDOVER, to=to)})


def test_a_slot_that_has_just_changed_hands_is_held_for_a_while() -> None:
    calm = Calm().look(leaving(world("aabb"), 1, "b"), START)
    taken = world("abbb")

    calm = calm.look(taken, START + SECOND)
    assert calm.held(taken) == {1}
    assert calm.look_again(START + SECOND) == HOLD / SECOND
    assert calm.look(taken, START + SECOND + HOLD).held(taken) == frozenset()


def test_what_a_leader_finds_at_its_first_look_is_not_held() -> None:
    assert Calm().look(world("aabb"), START).held(world("aabb")) == frozenset()


def test_a_slot_whose_owner_cannot_serve_is_never_held() -> None:
    calm = Calm().look(leaving(world("aabb"), 1, "b"), START).look(world("abbb"), START + SECOND)
    failing = world("abbb", states="UD")

    assert calm.look(failing, START + 2 * SECOND).held(failing) == frozenset()


def flapping(times: int) -> Calm:
    calm = Calm().look(world("aaaa"), START)
    for number in range(times):
        calm = calm.look(world("aaaa", states="UD"), START + (2 * number + 1) * SECOND)
        calm = calm.look(world("aaaa", states="UU"), START + (2 * number + 2) * SECOND)
    return calm


def test_a_member_that_keeps_failing_gets_nothing_until_it_has_been_well_for_long() -> None:
    seen = world("aaaa")

    assert flapping(2).steadied(seen).state("b") is UP
    assert flapping(3).steadied(seen).state("b") is INIT
    assert "b failed 3 times within 30 s" in [brake.why for brake in flapping(3).brakes()]
    later = flapping(3).look(seen, START + 5 * SECOND + LOSS_WINDOW + 1)
    assert later.steadied(seen).state("b") is UP


def test_a_member_that_keeps_failing_is_better_than_none() -> None:
    assert flapping(3).steadied(world("aaaa", states="DU")).state("b") is UP


def test_a_member_that_keeps_failing_keeps_what_it_owns() -> None:
    assert flapping(3).steadied(world("aaab")).state("b") is UP


def test_moves_without_a_cause_freeze_and_the_freeze_ends() -> None:
    seen = world("aabbaabbaa")
    calm = Calm().look(seen, START)
    later = START + SURGE_WINDOW + SECOND
    calm = calm.look(seen, later)

    frozen = calm.ask(seen, world("bbbbbbbbbb").table.orders, later)  # type: ignore[union-attr]

    assert frozen.frozen is not None
    assert "6 of 10 slots were to move within 10 s" in frozen.frozen.why
    assert frozen.held(seen) == set(range(10))
    thawed = frozen.look(seen, later + FREEZE)
    assert thawed.held(seen) == frozenset()
    assert thawed.ask(seen, world("bbbbbbbbbb").table.orders, later + FREEZE).frozen is None  # type: ignore[union-attr]


def test_the_share_of_a_member_that_is_steady_again_is_no_surge() -> None:
    steady = flapping(3)
    seen, later = world("aaaa"), START + 6 * SECOND + LOSS_WINDOW
    assert steady.steadied(seen).state("b") is INIT

    again = steady.look(seen, later)

    assert again.steadied(seen).state("b") is UP
    assert again.ask(seen, world("bbaa").table.orders, later).frozen is None  # type: ignore[union-attr]


def test_nothing_moves_while_a_member_that_seems_well_has_just_been_taken_over_from() -> None:
    """Its standby knows more of it than the control server: what it got in place of its slots would be lost, too."""
    calm = Calm().look(world("aaaabbbb"), START)
    robbed = world("aaaabbcc", states="UUU")

    calm = calm.look(robbed, START + SECOND)

    assert calm.held(robbed) == set(range(8))
    assert calm.look(robbed, START + SECOND + HOLD).held(robbed) == frozenset()


def test_sessions_of_the_living_are_not_moved_while_a_dead_member_may_soon_be_back() -> None:
    calm = Calm().look(world("aaaabbbb"), START)
    dead = world("aaaabbcc", states="UDU")
    calm = calm.look(dead, START)

    assert calm.held(dead) == {0, 1, 2, 3, 6, 7}, "what the dead one still has goes at once"
    claimed = world("aaaaaccc", states="UDU")
    calm = calm.look(claimed, START + SECOND)
    assert calm.look(claimed, START + SECOND + HOLD).held(claimed) == set(range(8))
    assert calm.look(claimed, START + SECOND + HOLD).look_again(START + SECOND + HOLD) == (ABSENCE - HOLD) / SECOND
    assert calm.look(claimed, START + SECOND + ABSENCE).held(claimed) == frozenset()

    back = world("aaaaaccc", states="UUU")
    assert calm.look(back, START + SECOND + HOLD).held(back) == frozenset()


@pytest.mark.parametrize("cause", ["UUU", "UD"])
def test_moves_after_a_change_of_members_do_not_freeze(cause: str) -> None:
    calm = Calm().look(world("aabbaabbaa"), START)
    changed = world("aabbaabbaa", states=cause)
    calm = calm.look(changed, START + SURGE_WINDOW + SECOND)

    asked = calm.ask(changed, world("bbbbbbbbbb").table.orders, START + SURGE_WINDOW + SECOND)  # type: ignore[union-attr]
    assert asked.frozen is None


def test_small_moves_add_up_over_the_window() -> None:
    seen = world("aaaaaaaaaa")
    calm = Calm().look(seen, START)
    now = START + SURGE_WINDOW
    for number in range(4):
        now += SECOND
        orders = world("b" * 1 + "a" * 9).table.orders  # type: ignore[union-attr]
        calm = calm.look(seen, now).ask(seen, orders, now)
        assert (calm.frozen is not None) == (number == 3)


def test_a_held_slot_keeps_its_active_in_the_plan() -> None:
    seen = world("aaaa", states="UU")

    free, held = next_plan(seen, 1.0), next_plan(seen, 1.0, frozenset(range(4)))

    assert free is not None
    assert any(order[0] == "b" for order in free.table.orders)
    assert held is None or all(order[0] == "a" for order in held.table.orders)


def test_a_table_that_missed_a_takeover_is_put_right_although_nothing_may_move() -> None:
    """It was decided on before the claim and written after it, so it is newer, and still says that the dead serve."""
    calm = Calm().look(world("aabbcc", states="UUU"), START)
    claimed = world("aacacc", orders="aabbcc", states="UUU", epochs=2)
    seen = replace(claimed, states={**claimed.states, "b": MemberState.LOST})
    calm = calm.look(seen, START + SECOND)

    assert calm.held(seen) == frozenset(range(6))
    plan = next_plan(seen, 1.0, calm.held(seen))

    assert plan is not None
    assert "".join(order[0] for order in plan.table.orders) == "aacacc"


def returning(states: dict[str, MemberState]) -> World:
    """A pool whose table calls east offline, which no operator does any more; a and b are there, c and d elsewhere."""
    seen = world("ccccdddd", states="UUUU")
    sited = {name: replace(one, site="east" if name in "ab" else "west") for name, one in seen.members.items()}
    table = Table(1, (("c", "d"),) * 4 + (("d", "c"),) * 4, offline=("east",))
    return replace(seen, members=sited, states={**seen.states, **states}, table=table)


def test_a_site_comes_back_as_a_whole() -> None:
    half = returning({"b": DRAINING})
    calm = Calm().look(half, START)
    assert calm.steadied(half).state("a") is DRAINING
    assert next_plan(calm.steadied(half), 1.0) is None
    assert calm.look_again(START) == HOLD / SECOND

    whole = returning({})
    plan = next_plan(calm.look(whole, START + SECOND).steadied(whole), 1.0)
    assert plan is not None
    assert {"a", "b"} < {order[0] for order in plan.table.orders}


def test_when_etcd_is_back_nobody_loses_slots_for_finding_it_later_than_others() -> None:
    late = replace(world("aabb", states="UD"), cut_off=frozenset({"b"}))
    calm = Calm(began=START)

    assert calm.reached(late, START + FOUND - 1).state("b") is UP
    assert calm.reached(world("aabb", states="UD"), START + 1).state("b") is DOWN
    assert calm.reached(replace(late, table=Table(1, (("a",),) * 4)), START + 1).state("b") is DOWN
    assert calm.look(late, START + SECOND).look_again(START + SECOND) == (FOUND - SECOND) / SECOND
    assert calm.reached(late, START + FOUND).state("b") is DOWN
    assert calm.look(late, START + FOUND).look_again(START + FOUND) is None

    back = calm.found_etcd(START + 10 * FOUND)
    assert back.reached(late, START + 11 * FOUND - 1).state("b") is UP
    assert back.reached(late, START + 11 * FOUND).state("b") is DOWN
    assert back.found_etcd(START) == back, "who reached etcd before it led is new all the same"
    assert Calm().found_etcd(START).began is None


def test_a_site_does_not_wait_for_ever_for_one_of_its_members() -> None:
    half = returning({"b": DRAINING})
    calm = Calm().look(half, START).look(half, START + HOLD - 1)
    assert calm.steadied(half).state("a") is DRAINING
    calm = calm.look(half, START + HOLD)
    assert calm.steadied(half).state("a") is UP
    assert calm.look_again(START + HOLD) is None


def test_a_site_comes_back_when_the_slots_that_it_has_just_left_are_held_no_more() -> None:
    left = returning({"a": DRAINING, "b": DRAINING})
    left = replace(left, offline=frozenset({"east"}))
    calm = Calm().look(leaving(replace(left, owners={**left.owners, 0: Owner("a", "one", 1)}), 0, "c"), START)
    back = returning({})
    back = replace(back, owners={**back.owners, 0: Owner("c", "one", 2)})

    calm = calm.look(back, START + SECOND)
    assert calm.steadied(back).state("a") is DRAINING
    assert calm.look(back, START + SECOND + HOLD).steadied(back).state("a") is UP


def test_a_site_that_comes_back_is_not_waited_for_when_nobody_else_can_serve() -> None:
    half = returning({"b": DRAINING, "c": DOWN, "d": DOWN})
    assert Calm().look(half, START).steadied(half).state("a") is UP
