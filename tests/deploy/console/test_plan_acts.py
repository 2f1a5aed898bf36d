"""Plans at the console: what applying, aborting and undoing them would do, and why it is refused."""

from dataclasses import replace

import msgspec
import pytest

from tests.deploy.console.pools import NOW, a_pool
from understudy.deploy.common.errors import NegativeAnswer
from understudy.deploy.console.acts import preview
from understudy.deploy.console.frame import Surroundings, frame_of
from understudy.deploy.console.load_reading import UNASKED_MOST, plan_values
from understudy.deploy.console.plans import MEMBERS_SHOWN, MOVES_SHOWN, last_plan, proposal_page
from understudy.deploy.console.wishes import ShownPlan, Wish
from understudy.statesync.pool.rebalance import MovePlan, MoveProgress, PlanState, SlotMove
from understudy.statesync.pool.records import Owner
from understudy.statesync.pool.spec_parts import Balance
from understudy.statesync.pool.state import At, PoolState

PLAN = ShownPlan(
    1, "requests", ("cart-1", "cart-10", "cart-2"), ((0, 0, 2), (3, 0, 1), (6, 0, 2)), ("--by", "requests")
)
APPLY = Wish("rebalance apply", plan=PLAN)
UNDO = Wish("rebalance undo")
ABORT = Wish("rebalance abort")


def balanced_by_load() -> PoolState:
    state = a_pool(slots=9)
    state.spec = At(state.spec.record.model_copy(update={"balance": Balance(by="requests")}), 1)
    return state


def with_plan(progress: PlanState, released: int) -> PoolState:
    """A pool whose plan of two moves has come so far."""
    state = balanced_by_load()
    moves = [SlotMove(0, "cart-1", "cart-2"), SlotMove(3, "cart-1", "cart-2")]
    actives = [state.owners[slot].record.active for slot in range(9)]
    plan = MovePlan.of_moves("ab12", 1, actives, moves, rate=2.0, by="requests", who="anna", at=NOW)
    state.move_plan = At(plan, 7)
    state.move_progress = At(MoveProgress("ab12", progress, released), 8)
    for move in moves[:released]:
        state.owners[move.slot] = At(Owner(move.target, "cart-2b", 2), 9)
    return state


def told(state: PoolState, wish: Wish) -> dict:
    assert wish.fault() == ""
    return preview(state, None, wish, NOW)


def test_a_plan_is_applied_as_it_is_shown_and_names_the_command():
    view = told(balanced_by_load(), replace_wish(APPLY, rate="2", reason="peak at noon"))
    assert view["command"] == ("understudy rebalance apply --by requests --rate 2 --reason 'peak at noon' --pool cart")
    assert view["effect"] == [
        "3 slots would get another active: 2 from cart-1 to cart-2, 1 from cart-1 to cart-10. No request fails.",
        "The leading control server makes up to 2 a second: that takes 2 s or more.",
    ]
    assert view["undo"] == "understudy rebalance undo --pool cart"


def replace_wish(wish: Wish, **changes: str) -> Wish:
    return msgspec.structs.replace(wish, **changes)


def test_an_abort_says_what_stays():
    view = told(with_plan(PlanState.RUNNING, 1), ABORT)
    assert view["command"] == "understudy rebalance abort --pool cart"
    assert view["effect"][0] == "1 of 2 moves of plan ab12 are begun; the others would not be made."


def test_an_undo_moves_back_what_has_moved():
    view = told(with_plan(PlanState.ABORTED, 1), replace_wish(UNDO, rate="0.5"))
    assert view["command"] == "understudy rebalance undo --rate 0.5 --pool cart"
    assert view["effect"][0] == "1 slot would get another active: 1 from cart-2 to cart-1. No request fails."


def moved(state: PoolState) -> PoolState:
    state.owners[0] = At(Owner("cart-2", "cart-2b", 2), 9)
    return state


def of_table(state: PoolState, generation: int) -> PoolState:
    state.table = At(replace(state.table.record, generation=generation), 9)
    return state


@pytest.mark.parametrize(
    ("state", "wish", "why"),
    [
        (of_table(balanced_by_load(), 2), APPLY, "the plan is for table 1, and the pool has table 2 now"),
        (a_pool(slots=9), APPLY, "the pool balances numbers of slots"),
        (with_plan(PlanState.RUNNING, 0), APPLY, "another plan is carried out"),
        (moved(balanced_by_load()), APPLY, "slot 0 is with cart-2 now and not with cart-1"),
        (
            balanced_by_load(),
            Wish("rebalance apply", plan=ShownPlan(1, "cpu", ("cart-1",), ((99, 0, 0),))),
            "no slot 99",
        ),
        (
            balanced_by_load(),
            Wish("rebalance apply", plan=ShownPlan(1, "cpu", ("x", "y"), ((0, 0, 1),))),
            "x, y cannot",
        ),
        (balanced_by_load(), UNDO, "pool cart has had no rebalance"),
        (with_plan(PlanState.RUNNING, 1), UNDO, "the plan is still carried out"),
        (with_plan(PlanState.DONE, 0), UNDO, "nothing of plan ab12 is left to undo"),
        (with_plan(PlanState.DONE, 2), ABORT, "no rebalance of pool cart is carried out"),
    ],
)
def test_a_refusal_says_why(state, wish, why):
    with pytest.raises(NegativeAnswer, match=why):
        told(state, wish)


@pytest.mark.parametrize(
    ("wish", "fault"),
    [
        (Wish("rebalance apply"), "plan: needed for 'rebalance apply'"),
        (Wish("rebalance undo", plan=PLAN), "and for no other act"),
        (replace_wish(UNDO, rate="0"), "rate: '0' is not a number above 0, up to 1000"),
        (replace_wish(UNDO, rate="1e9"), "rate: '1e9'"),
        (replace_wish(UNDO, rate="nan"), "rate: 'nan'"),
        (replace_wish(UNDO, rate="quick"), "rate: 'quick'"),
        (replace_wish(ABORT, rate="1"), "rate: '1'"),
        (Wish("rebalance apply", plan=ShownPlan(1, "cpu", ("cart-1",), ((0, 0, 1),))), "a move names a member"),
        (Wish("rebalance apply", plan=ShownPlan(1, "x" * 61, (), ())), "plan: a text is longer than 60"),
    ],
)
def test_a_wish_that_cannot_be_understood_is_refused_by_name(wish, fault):
    assert fault in wish.fault()


def test_the_last_plan_is_in_the_frame_with_what_it_waits_for():
    assert last_plan(a_pool())["headline"] == "Pool cart has had no rebalance."
    assert last_plan(a_pool())["why"] == ""
    frame = frame_of(with_plan(PlanState.RUNNING, 1), 9, NOW, Surroundings(waits_for="cart-2 is not in sync"))
    plan = frame.overview["plan"]
    assert plan["state"] == "running"
    assert plan["headline"] == "Plan ab12 by requests: running, 1 of 2 slots moved."
    assert plan["approved"].startswith("Approved by anna at ")
    assert plan["why"] == "it waits: cart-2 is not in sync."


def proposal(members: int, moves: int) -> dict:
    """A plan as a control server gives it."""
    share = {"share": 10.0, "after": 10.0}
    rows = [{"member": f"cart-{number}", "before": float(number), **share} for number in range(members)]
    return {
        "pool": "cart",
        "generation": 3,
        "by": "sessions",
        "over": 0.2,
        "worst_before": 1.4,
        "worst_after": 1.0,
        "sessions": 4,
        "bytes": 110,
        "to_standby": 1,
        "copies": 1,
        "copied_bytes": 0,
        "hot": [],
        "above": [],
        "members": rows,
        "moves": [{"slot": slot, "source": "cart-3", "target": f"cart-{slot % 2}"} for slot in range(moves)],
    }


def test_a_page_shows_the_busiest_members_first_and_the_plan_that_would_be_applied():
    page = proposal_page(proposal(4, 3), {"by": "sessions", "over": ""})
    assert page["headline"].startswith("Pool cart, table 3: 3 moves; the busiest member has 1.40 times its share")
    assert [row["member"] for row in page["members"]] == ["cart-3", "cart-2", "cart-1", "cart-0"]
    shown = msgspec.convert(page["shown"], ShownPlan)
    assert shown.asked == ("--by", "sessions")
    assert shown.file("cart")["moves"] == proposal(4, 3)["moves"]


def test_what_a_page_leaves_out_is_counted():
    page = proposal_page(proposal(MEMBERS_SHOWN + 5, MOVES_SHOWN + 7), {})
    assert (len(page["members"]), page["more_members"]) == (MEMBERS_SHOWN, 5)
    assert (len(page["moves"]), page["more_moves"]) == (MOVES_SHOWN, 7)
    assert len(page["shown"]["moves"]) == MOVES_SHOWN + 7, "what is applied is whole"


def test_of_many_remarks_some_are_shown():
    page = proposal_page({**proposal(3, 1), "above": [f"cart-{number}" for number in range(30)]}, {})
    assert page["remarks"][0] == "cart-0 stays above its bound: no slot of it fits elsewhere."
    assert (len(page["remarks"]), page["more_remarks"]) == (20, 10)


def test_a_pool_in_balance_has_nothing_to_apply():
    assert proposal_page(proposal(3, 0), {})["shown"] is None


@pytest.mark.asyncio
async def test_a_large_pool_makes_its_plan_only_when_asked_to():
    state = a_pool(names=tuple(f"cart-{number}" for number in range(UNASKED_MOST + 1)))
    view = await plan_values(None, state, {"by": "", "over": ""}, ordered=False)
    assert view["plan"] is None
    assert view["no_plan"].endswith("press 'Plan'")
