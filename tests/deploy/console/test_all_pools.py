"""The page of all pools: the state of each in a sentence, the worst first."""

from dataclasses import replace

from tests.deploy.console.pools import NOW, a_pool
from understudy.deploy.console.all_pools import pool_rows
from understudy.statesync.pool.records import MemberState
from understudy.statesync.pool.state import At


def row(pool: str, reason: str = "") -> dict:
    return {"pool": pool, "ready": not reason, "leads": True, "reason": reason, "failures": 0}


def test_the_pool_with_the_worst_problem_comes_first_and_nothing_is_said_of_copies():
    lame, broken = a_pool(), a_pool()
    lame.members["cart-2"] = At(replace(lame.members["cart-2"].record, state=MemberState.DOWN, reason="its check"), 9)
    broken.owners.pop(0)
    states = {"at-rest": a_pool(), "lame": lame, "broken": broken}
    rows = pool_rows([*map(row, states), row("starting", "it is starting")], states, NOW)
    assert [(one["pool"], one["level"], one["sentence"]) for one in rows] == [
        ("broken", 3, "1 of 8 slots have no living owner; 3 of 3 members serve."),
        ("lame", 2, "All 8 slots are served; 2 of 3 members serve."),
        ("starting", 2, ""),
        ("at-rest", 0, "All 8 slots are served; 3 of 3 members serve."),
    ]
    assert [(one["why"], one["more"]) for one in rows] == [
        ("1 slots have no owner yet", 0),
        ("cart-2 is DOWN: its check", 0),
        ("it is starting", 0),
        ("", 0),
    ]
