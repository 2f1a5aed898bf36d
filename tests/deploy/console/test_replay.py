"""A replayed failover has the slots of its records and the times of its trace."""

from tests.deploy.console.pools import a_pool, failed_over
from understudy.deploy.console.replay import steps_of
from understudy.telemetry.tracing.names import CLAIM


def trace(*claims: tuple[str, float, float]) -> dict:
    spans = [{"name": CLAIM, "who": who, "start_ms": start, "duration_ms": took} for who, start, took in claims]
    return {"name": "failover", "total_ms": 61.5, "spans": spans}


def parts(*takers: tuple[str, tuple[int, ...]]):
    state = a_pool()
    for to, slots in takers:
        failed_over(state, "cart-1", to, slots)
    return state.changes()[0][1]


def test_each_member_takes_its_slots_when_its_last_claim_ends():
    steps = steps_of(
        parts(("cart-2", (0, 3)), ("cart-10", (6,))), trace(("cart-2", 7, 6), ("cart-2", 20, 5.5), ("cart-10", 7, 3))
    )
    assert [(step["ms"], step["slots"]) for step in steps] == [
        (0.0, {0: "cart-1", 3: "cart-1", 6: "cart-1"}),
        (10, {6: "cart-10"}),
        (25.5, {0: "cart-2", 3: "cart-2"}),
        (61.5, {}),
    ]


def test_a_claim_without_a_span_has_no_moment_and_comes_last():
    steps = steps_of(parts(("cart-2", (0,)), ("cart-10", (6,))), {**trace(("cart-10", 7, 3)), "total_ms": None})
    assert [step["ms"] for step in steps] == [0.0, 10, None]
