"""The steps of a rebalance, and the plan that a control server proposes, on a pool of three members."""

from dataclasses import replace

import pytest

from understudy.statesync.heartbeat.load_report import LoadReport, SlotLoad
from understudy.statesync.pool.rebalance import MovePlan, MoveProgress, PlanState, SlotMove, in_force
from understudy.statesync.pool.records import Member, MemberState, Owner, Phase, Table
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Balance
from understudy.xds.membership.cluster_state import ClusterState
from understudy.xds.membership.load_book import LoadBook, PoolLoad
from understudy.xds.planning.moves import Waiting, next_step, seconds_between_steps
from understudy.xds.planning.plan import next_plan
from understudy.xds.planning.proposal import NoProposal, propose, worth_moving

OWNERS = "aaaabbcc"
SPEC = PoolSpec(pool="cart", slots=len(OWNERS), balance=Balance(by="requests"))
PLAN = MovePlan.of_moves("p1", 1, list(OWNERS), [SlotMove(0, "a", "b"), SlotMove(1, "a", "c")], by="requests")
BEGUN = MoveProgress("p1", PlanState.RUNNING)


def world(owners: str = OWNERS, progress: MoveProgress | None = None, **states: MemberState) -> ClusterState:
    """The pool; its table is as ``owners``, and the plan is in force as far as ``progress`` says."""
    names = "abc"
    orders = tuple((name, *(other for other in names if other != name)) for name in owners)
    return ClusterState(
        spec=SPEC,
        members={name: Member(name, "one", "127.0.0.1:7000", "127.0.0.1:1", MemberState.UP) for name in names},
        states={name: states.get(name, MemberState.UP) for name in names},
        registered=dict.fromkeys(names, "one"),
        owners={slot: Owner(name, "one", 1) for slot, name in enumerate(owners)},
        table=Table(1, orders),
        deaths={},
        beating=frozenset(),
        approved=in_force(SPEC, PLAN, progress),
    )


def with_load(*calls: float, silent: str = "") -> PoolLoad:
    """Each slot's calls a second, as its owner reports them."""
    book = LoadBook()
    for member in "abc".replace(silent or " ", ""):
        slots = [SlotLoad(slot, calls[slot], 2, 100) for slot, owner in enumerate(OWNERS) if owner == member]
        book.on_report((member, "one"), LoadReport(slots=slots), 0)
    return book.current(1)


def test_a_step_is_made_when_the_slots_of_the_one_before_have_moved() -> None:
    first = next_step(world(progress=BEGUN), PLAN, BEGUN)
    assert first == replace(BEGUN, released=1)
    asked = world(progress=first)
    plan = next_plan(asked, 0.0)
    assert plan is not None
    assert plan.table.active_of(0) == "b"
    assert plan.table.active_of(1) == "a"
    assert plan.why == "plan p1 by requests"
    assert isinstance(next_step(asked, PLAN, first), Waiting)
    moving = replace(asked, owners={**asked.owners, 0: Owner("b", "one", 2, Phase.HANDOVER)})
    assert isinstance(next_step(moving, PLAN, first), Waiting)
    assert next_step(world("baaabbcc", first), PLAN, first) == replace(BEGUN, released=2)


def test_a_plan_whose_slots_have_all_moved_is_done_and_stays_in_force() -> None:
    last = replace(BEGUN, released=2)
    done = next_step(world("bcaabbcc", last), PLAN, last)
    assert done == replace(last, state=PlanState.DONE)
    after = next_plan(world("bcaabbcc", done), 0.0)
    assert after is not None  # the copies of this table are not spread yet
    assert "".join(order[0] for order in after.table.orders) == "bcaabbcc"


def test_a_plan_waits_for_a_member_that_cannot_take_slots() -> None:
    found = next_step(world(progress=BEGUN, c=MemberState.DRAINING), PLAN, BEGUN)
    assert found == Waiting("c is DRAINING")


def test_a_plan_goes_on_when_a_member_that_got_slots_is_lost() -> None:
    """Its standby has them, and it gets them back when it returns; the plan has no moves left for it."""
    released = replace(BEGUN, released=1)
    assert next_step(world(progress=released, b=MemberState.LOST), PLAN, released) == replace(BEGUN, released=2)


def test_a_plan_ends_when_the_spec_no_longer_balances_by_load() -> None:
    found = next_step(world(), PLAN, BEGUN)
    assert isinstance(found, MoveProgress)
    assert found.state is PlanState.ABORTED
    assert "no longer balances" in found.why


def test_the_rate_is_kept() -> None:
    assert seconds_between_steps(replace(PLAN, rate=0.5)) == 2
    five = replace(PLAN, rate=5.0)
    assert seconds_between_steps(five) == 1
    assert next_step(world(progress=BEGUN), five, BEGUN) == replace(BEGUN, released=2)


def test_a_proposal_says_what_it_brings_and_costs() -> None:
    found = propose(world(), with_load(6, 6, 4, 4, 5, 5, 5, 5), Balance(by="requests", over=0.2))
    assert found.moves == (SlotMove(2, "a", "b"),)
    assert found.worst_before == pytest.approx(1.5)
    assert found.worst_after <= 1.2
    assert found.sessions == 2 * len(found.moves)
    assert found.generation == 1
    assert worth_moving(found)


def test_an_idle_pool_is_not_worth_a_move() -> None:
    found = propose(world(), with_load(*[0.02] * 4, *[0.001] * 4), Balance(by="requests"))
    assert found.moves
    assert not worth_moving(found)


def test_there_is_no_proposal_while_slots_move_or_loads_are_unknown() -> None:
    load = with_load(*[1.0] * 8)
    moving = world()
    moving = replace(moving, owners={**moving.owners, 0: Owner("b", "one", 2)})
    with pytest.raises(NoProposal, match="1 slots are not with the member"):
        propose(moving, load, Balance(by="requests"))
    with pytest.raises(NoProposal, match="load of b is not known"):
        propose(world(), with_load(*[1.0] * 8, silent="b"), Balance(by="requests"))
    assert propose(world(), with_load(*[1.0] * 8, silent="b"), Balance(by="count")).moves
