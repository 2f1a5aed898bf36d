"""Rests between handovers: a series takes two seconds however many there are, and a few take less."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from understudy.proxy.ownership.handover_pacing import REST_MOST, SERIES_ENDS, SPREAD, HandoverPacing


def series(
    many: int, took: float, begun: float = 100.0, unhurried: HandoverPacing | None = None
) -> tuple[float, float]:
    """How long all rests of a series took, and when it ended."""
    rests, now = 0.0, begun
    unhurried = unhurried or HandoverPacing()
    for left in reversed(range(many)):
        now += took
        rest = unhurried.rest(now, left)
        assert 0 <= rest <= REST_MOST
        rests += rest
        now += rest
    return rests, now


@example(8, 0.75)
@given(st.integers(1, 600), st.floats(0.001, 0.9))
def test_however_many_and_however_slow_the_rests_of_a_series_are_bounded(many: int, took: float):
    rests, _ = series(many, took)
    assert rests <= SPREAD + 1e-6


def test_many_quick_ones_are_spread_and_nobody_rests_after_the_last():
    rests, ended = series(40, 0.01)
    assert rests > SPREAD * 0.75
    assert ended - 100.0 < SPREAD + 40 * 0.01
    assert series(1, 0.01)[0] == 0.0
    assert series(3, 0.01)[0] == 2 * REST_MOST


@pytest.mark.parametrize("pause", [SERIES_ENDS + 0.1, 0.1], ids=["later", "at once"])
def test_a_second_series_is_spread_like_the_first(pause: float):
    unhurried = HandoverPacing()
    first, ended = series(40, 0.01, unhurried=unhurried)
    again, _ = series(40, 0.01, ended + pause, unhurried)
    assert abs(first - again) < 1e-6


def test_who_has_little_time_to_leave_rests_for_little_of_it():
    assert HandoverPacing.within(10.0).spread == SPREAD
    assert series(40, 0.01, unhurried=HandoverPacing.within(1.0))[0] <= 0.25 + 1e-6


def test_who_is_late_does_not_rest():
    unhurried = HandoverPacing()
    assert unhurried.rest(100.0, 9) > 0
    for now in (100.9, 101.8, 102.7):
        unhurried.rest(now, 9)
    assert unhurried.rest(103.0, 9) == 0.0
