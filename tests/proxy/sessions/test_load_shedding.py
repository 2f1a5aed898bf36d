"""What an overloaded sidecar refuses: low calls before normal ones, critical ones never, and not for one late turn."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness.examples import examples
from understudy.proxy.sessions.load_shedding import (
    CALM_TIME,
    REFUSE_FROM,
    LoadShedder,
    Overload,
    overload_after,
    priority_of,
)
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_reader import parse_spec

RULES = "priority_rules: [{prefix: 'pay:', priority: critical}, {prefix: 'pay:log:', priority: low}]"


def spec(text: str = "") -> PoolSpec:
    return parse_spec(f"pool: cart\n{text}", where="test")


@pytest.mark.parametrize(
    ("text", "header", "key", "priority"),
    [
        ("", "", "k", "normal"),
        ("priority: low", "", "k", "low"),
        ("priority: low", "critical", "k", "critical"),
        (RULES, "", "pay:1", "critical"),
        (RULES, "", "pay:log:1", "low"),
        (RULES, "", "cart:1", "normal"),
        (RULES, "normal", "pay:1", "normal"),
        ("", "of a later release", "k", "normal"),
    ],
)
def test_a_call_says_its_priority_or_has_that_of_its_session_or_pool(
    text: str, header: str, key: str, priority: str
) -> None:
    headers = {"understudy-priority": header} if header else {}
    assert priority_of(headers, key, spec(text)) == priority


def overloaded(lag: float) -> LoadShedder:
    return LoadShedder(lambda: lag)


@pytest.mark.parametrize(
    ("lag", "text", "refused"),
    [
        (0.01, RULES, set()),
        (REFUSE_FROM[0], RULES, {"low"}),
        (REFUSE_FROM[1], RULES, {"low", "normal"}),
        (5.0, "", {"low"}),
        (5.0, "priority: critical", {"low", "normal"}),
    ],
    ids=[
        "nothing is refused",
        "low calls first",
        "then normal ones beside critical ones",
        "nothing is more important than a normal call here",
        "in a critical pool calls that say that they are normal",
    ],
)
def test_what_is_refused(lag: float, text: str, refused: set[str]) -> None:
    shedder = overloaded(lag)
    found = set()
    for priority in ("critical", "normal", "low"):
        reply = shedder.refusal({"understudy-priority": priority}, "k", spec(text))
        if reply is not None:
            found.add(priority)
            assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
            assert b"/overloaded" in reply.body
    assert found == refused == set(shedder.refused)


def test_the_level_rises_at_once_and_falls_step_by_step_after_a_calm() -> None:
    now = overload_after(Overload(), 1.0, 0.0)
    assert now.level == 2
    now = overload_after(now, 0.0, 1.0)
    assert now.level == 2
    now = overload_after(now, 0.0, 1.0 + CALM_TIME)
    assert now.level == 1
    now = overload_after(overload_after(now, 0.0, 3.0), 0.0, 3.0 + CALM_TIME)
    assert now == Overload()


def test_lag_between_the_bounds_keeps_a_level() -> None:
    held = overload_after(Overload(1), REFUSE_FROM[0] * 0.7, 0.0)
    assert overload_after(held, REFUSE_FROM[0] * 0.7, 100.0).level == 1


@settings(max_examples=examples(200))
@given(lags=st.lists(st.floats(0, 2), max_size=60))
def test_the_level_is_never_below_what_the_lag_asks_for_and_swings_no_quicker_than_it_may(lags: list[float]) -> None:
    state, falls = Overload(), []
    for turn, lag in enumerate(lags):
        now = turn * 0.25
        after = overload_after(state, lag, now)
        assert after.level >= sum(lag >= bound for bound in REFUSE_FROM)
        if after.level < state.level:
            falls.append(now)
            assert after.level == state.level - 1
        state = after
    assert all(later - earlier >= CALM_TIME for earlier, later in itertools.pairwise(falls))
