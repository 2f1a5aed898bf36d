"""The choice of moves: bounds are met with few moves, the same ones each time, to members that have the sessions."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness.examples import examples
from understudy.xds.placement.rebalance import Rebalance, rebalance


def worst(loads: Sequence[float], shares: Sequence[float]) -> float:
    """The largest load in shares."""
    return max((load / share for load, share in zip(loads, shares, strict=True) if share), default=0.0)


def plan(loads: list[float], members: int, over: float = 0.2, weights: list[int] | None = None) -> Rebalance:
    """A plan for slots that members have in turn, with the next two members as standby and backup."""
    orders = [[(slot + place) % members for place in range(min(3, members))] for slot in range(len(loads))]
    return rebalance(loads, orders, weights or [10] * members, over)


def test_an_even_pool_moves_nothing() -> None:
    assert plan([1.0] * 32, 4).steps == ()


def test_a_pool_without_load_moves_nothing() -> None:
    found = plan([0.0] * 32, 4)
    assert (found.steps, found.above) == ((), ())


def test_one_slot_that_is_enough_is_the_only_one_that_moves_and_to_its_standby() -> None:
    """Member 0 has 6 of 12 and may have 4.5: one of its slots of 2 is enough, though its slot of 3 has room too."""
    loads = [3, 2, 1, 2, 2, 2]
    found = rebalance(loads, [[0, 1], [0, 2], [0, 3], [1, 0], [2, 0], [3, 0]], [10, 10, 10, 10], 0.5)
    assert [(step.slot, step.source, step.target, step.copy) for step in found.steps] == [(1, 0, 2, 1)]
    assert (found.least, found.above, found.hot) == (1, (), ())


def test_a_hot_slot_is_named_and_its_member_gives_the_others_away() -> None:
    """Slot 0 has half of the load of four members: nobody may have it, so it stays."""
    loads = [100.0, *([5.0] * 20)]
    found = plan(loads, 4)
    assert found.hot == (0,)
    assert all(step.slot != 0 for step in found.steps)
    assert found.after[0] <= 100 + 0.2 * found.shares[0] + 1e-6
    assert found.above == ()


def test_weights_are_shares() -> None:
    """A member with three times the weight gets three times the load."""
    found = plan([1.0] * 64, 4, 0.1, [30, 10, 10, 10])
    assert found.after[0] >= 64 * 30 / 60 * 0.85
    assert found.above == ()


def test_a_member_without_weight_gets_nothing() -> None:
    found = plan([1.0] * 32, 4, 0.2, [10, 10, 10, 0])
    assert found.after[3] == pytest.approx(0)
    assert all(step.target != 3 for step in found.steps)


@settings(max_examples=examples(60), deadline=None)
@given(
    st.integers(2, 8),
    st.lists(st.floats(0, 100), min_size=8, max_size=60),
    st.sampled_from([0.05, 0.2, 0.5]),
    st.integers(0, 1000),
)
def test_every_plan_keeps_its_word(members: int, loads: list[float], over: float, seed: int) -> None:
    """Loads add up, no target is above its bound unless it was before, and who is above had no way out."""
    weights = random.Random(seed).choices([5, 10, 20], k=members)
    found = plan(loads, members, over, weights)
    assert sum(found.after) == pytest.approx(sum(loads))
    assert plan(loads, members, over, weights) == found
    assert len({step.slot for step in found.steps}) == len(found.steps)
    bounds = [share * (1 + over) for share in found.shares]
    for member in range(members):
        if found.after[member] > bounds[member] + 1e-6:
            assert member in found.above or any(slot % members == member for slot in found.hot)
    if not found.hot:
        assert worst(found.after, found.shares) <= max(1 + over, worst(found.before, found.shares)) + 1e-6
    assert found.least <= len(found.steps) or found.above
