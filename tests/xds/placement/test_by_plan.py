"""The solver with a rebalance in force: the plan survives deaths, returns and new members."""

from collections import Counter

import pytest

from tests.xds.placement.table_rules import candidate
from understudy.statesync.pool.rebalance import Approved
from understudy.statesync.pool.records import MemberState, Table
from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.placement.solver import Candidate, Decision, decide

SPEC = PoolSpec(pool="cart", slots=60)
FOUR = [candidate(f"cart-{number}") for number in range(1, 5)]
EVEN = Table(1, decide(SPEC, FOUR, Table()).orders)
GIVEN = [slot for slot, order in enumerate(EVEN.orders) if order[0] == "cart-1"][::2]
WANTED = tuple("cart-4" if slot in GIVEN else order[0] for slot, order in enumerate(EVEN.orders))
"""cart-1 gives every second slot to cart-4: far from even numbers."""
PLAN = Approved(WANTED, frozenset(WANTED), "plan p1 by requests")


def decided(field: list[Candidate], before: Table, *, plan: Approved | None = PLAN) -> Decision:
    """The decision when all slots are where the table has them."""
    current = {slot: order[0] for slot, order in enumerate(before.orders) if order}
    return decide(SPEC, field, before, current=current, approved=plan)


def actives(decision: Decision) -> tuple[str, ...]:
    return tuple(order[0] for order in decision.orders)


def without(*names: str) -> list[Candidate]:
    """The members, these of them dead."""
    return [candidate(one.member, state=MemberState.LOST) if one.member in names else one for one in FOUR]


PLANNED = Table(2, decided(FOUR, EVEN).orders)


def test_the_table_is_the_plan_and_says_so() -> None:
    decision = decided(FOUR, EVEN)
    assert actives(decision) == WANTED
    moved = [move for move in decision.moves if move.role == "active"]
    assert {move.reason for move in moved} == {"plan p1 by requests"}
    assert all(len(set(order)) == SPEC.copies for order in decision.orders)


def test_the_plan_stays_as_it_is() -> None:
    """Even numbers of slots pull nothing back, and the copies of slots come to rest."""
    after = PLANNED
    for _ in range(5):
        after = Table(after.generation + 1, decided(FOUR, after).orders)
        assert tuple(order[0] for order in after.orders) == WANTED
    assert decided(FOUR, after).orders == after.orders


def test_without_a_plan_numbers_are_even_again() -> None:
    counts = Counter(actives(decided(FOUR, PLANNED, plan=None)))
    assert max(counts.values()) - min(counts.values()) <= 2


def test_a_dead_member_loses_its_slots_to_their_standbys_and_no_other_slot_moves() -> None:
    for dead in ("cart-1", "cart-4"):
        after = decided(without(dead), PLANNED)
        for order, new in zip(PLANNED.orders, actives(after), strict=True):
            assert new == (order[1] if order[0] == dead else order[0])


@pytest.mark.parametrize("dead", ["cart-1", "cart-4"])
def test_a_member_that_returns_gets_exactly_its_slots_back(dead: str) -> None:
    away = Table(3, decided(without(dead), PLANNED).orders)
    assert actives(decided(FOUR, away)) == WANTED


def test_a_new_member_gets_its_even_share_and_keeps_it() -> None:
    five = [*FOUR, candidate("cart-5")]
    first = decided(five, PLANNED)
    counts = Counter(actives(first))
    assert 10 <= counts["cart-5"] <= 13
    assert all(new in (old, "cart-5") for new, old in zip(actives(first), WANTED, strict=True))
    again = decided(five, Table(3, first.orders))
    assert actives(again) == actives(first)


def test_a_slot_whose_member_is_gone_for_good_stays_where_it_is() -> None:
    three = [one for one in FOUR if one.member != "cart-2"]
    first = decided(three, PLANNED)
    assert actives(decided(three, Table(3, first.orders))) == actives(first)
    assert set(actives(first)) == {"cart-1", "cart-3", "cart-4"}
