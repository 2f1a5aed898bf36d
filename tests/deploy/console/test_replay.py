"""A replayed failover has the slots of its records and the times of its trace."""

from tests.deploy.console.pools import a_pool, failed_over
from understudy.deploy.console.replay import steps_of
from understudy.telemetry.tracing.names import CLAIM, SLOT


def trace(*claims: tuple[str, float, float], root_at: float = 0.0) -> dict:
    spans = [
        {"name": CLAIM, "who": who, "start_ms": start, "duration_ms": took, "parent_id": "ab", "attributes": {}}
        for who, start, took in claims
    ]
    root = {"name": "failover", "who": "control-1", "start_ms": root_at, "duration_ms": 61.5, "parent_id": ""}
    return {"name": "failover", "total_ms": 61.5, "spans": [*spans, root]}


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


def test_the_end_comes_after_the_claims_also_if_their_members_clocks_are_ahead():
    steps = steps_of(parts(("cart-2", (0,)), ("cart-10", (6,))), trace(("cart-2", 60, 5), ("cart-10", 7, 3)))
    told = "the failover has ended, by the clock of control-1; by its member's clock the last claim is 3.5 ms later"
    assert [(step["ms"], step["text"]) for step in steps[2:]] == [
        (65, "cart-2 is active of 1 slot of cart-1"),
        (61.5, told),
    ]


def test_a_member_whose_clock_is_behind_does_not_bring_the_end_forward():
    """Times are counted from the earliest span, which then is that of the member."""
    steps = steps_of(parts(("cart-2", (0,))), trace(("cart-2", 0, 25), root_at=20))
    assert [(step["ms"], step["text"]) for step in steps[1:]] == [
        (25, "cart-2 is active of 1 slot of cart-1"),
        (81.5, "the failover has ended"),
    ]


def test_the_last_claim_of_a_member_is_the_one_that_ends_last():
    assert steps_of(parts(("cart-2", (0, 3))), trace(("cart-2", 7, 30), ("cart-2", 8, 2)))[1]["ms"] == 37


def test_the_slots_of_a_handover_change_one_after_the_other():
    told = trace(("cart-2", 7, 6), ("cart-2", 7, 6), ("cart-2", 20, 5.5))
    for span, slot in zip(told["spans"], (0, 6, 3), strict=False):
        span["attributes"] = {SLOT: slot}
    steps = steps_of(parts(("cart-2", (0, 3, 6, 7))), told)
    assert [(step["ms"], step["slots"]) for step in steps[1:3]] == [
        (13, {0: "cart-2", 6: "cart-2"}),
        (25.5, {3: "cart-2", 7: "cart-2"}),
    ]
