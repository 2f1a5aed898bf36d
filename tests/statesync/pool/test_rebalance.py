"""The records of a rebalance: what they say together, and what of a stranger's is refused."""

import pytest

from understudy.statesync.pool.rebalance import MovePlan, MoveProgress, PlanState, SlotMove, approved, in_force
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Balance
from understudy.statesync.pool.spec_reader import decode_spec

ACTIVES = ["a", "b", "a", "b"]
MOVES = [SlotMove(0, "a", "b"), SlotMove(1, "b", "c")]
PLAN = MovePlan.of_moves("p1", 7, ACTIVES, MOVES, rate=2.0, by="requests")
SPEC = PoolSpec(pool="cart", slots=4, balance=Balance(by="requests"))


def test_a_plan_is_read_as_it_was_written() -> None:
    assert MovePlan.decode(PLAN.encode()) == PLAN
    assert PLAN.steps() == MOVES
    progress = MoveProgress("p1", PlanState.RUNNING, 1, spent=[(5.0, 2)])
    assert MoveProgress.decode(progress.encode()) == progress


def test_the_moves_count_that_are_released() -> None:
    """So a plan that was aborted, or is under way, says where every slot belongs."""
    assert approved(PLAN, MoveProgress("p1", PlanState.RUNNING)).actives == ("a", "b", "a", "b")
    assert approved(PLAN, MoveProgress("p1", PlanState.ABORTED, 1)).actives == ("b", "b", "a", "b")
    assert approved(PLAN, MoveProgress("p1", PlanState.DONE, 2)).actives == ("b", "c", "a", "b")


def test_a_plan_is_in_force_only_where_the_spec_balances_by_load() -> None:
    done = MoveProgress("p1", PlanState.DONE, 2)
    assert in_force(SPEC, PLAN, done) is not None
    assert in_force(SPEC, PLAN, MoveProgress("other", PlanState.DONE, 2)) is None
    assert in_force(SPEC.model_copy(update={"slots": 8}), PLAN, done) is None
    assert in_force(SPEC.model_copy(update={"balance": Balance(by="count")}), PLAN, done) is None
    assert in_force(SPEC.model_copy(update={"balance": None}), PLAN, done) is None
    assert in_force(SPEC, None, None) is None


@pytest.mark.parametrize(
    "change",
    [
        {"before": [0, 1, 0, 9]},
        {"members": ["a", "a", "c"]},
        {"moves": [[0, 9]]},
        {"moves": [[9, 0]]},
        {"moves": [[0, 1], [0, 2]]},
        {"moves": [[0]]},
        {"moves": "text"},
        {"rate": 0.0},
    ],
)
def test_a_plan_that_is_none_is_refused(change: dict[str, object]) -> None:
    import json

    raw = {**json.loads(PLAN.encode()), **change}
    with pytest.raises(ValueError, match="MovePlan"):
        MovePlan.of(raw)


def test_a_spec_has_balance_only_if_it_is_given() -> None:
    """Earlier releases refuse a spec with keys that they do not know."""
    assert b"balance" not in PoolSpec(pool="cart").encode()
    assert decode_spec(SPEC.encode()).balance == Balance(by="requests")


def test_off_is_read_as_yaml_gives_it_and_active_standby_has_no_shares() -> None:
    assert Balance.model_validate({"mode": False}).mode == "off"
    with pytest.raises(ValueError, match="active_standby"):
        PoolSpec(pool="cart", mode="active_standby", balance=Balance(by="cpu"))
