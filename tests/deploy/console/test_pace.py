"""How often frames are built: at once after a quiet while, and never for more than a share of the time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.deploy.console.pace import (
    LEAST_INTERVAL,
    LONGEST_PAUSE,
    LONGEST_REFRESH,
    REFRESH_SECONDS,
    SAVED_MOST,
    SHARE_OF_TIME,
    Pace,
)


def test_a_small_pool_may_have_four_frames_a_second_for_ever():
    pace, now = Pace(), 0.0
    for _ in range(1000):
        pace.built(now, 0.01)
        assert (pace.pause, pace.refresh) == (LEAST_INTERVAL, REFRESH_SECONDS)
        now += pace.pause


def test_after_a_rest_a_large_pool_shows_a_claim_without_a_pause():
    pace, now = Pace(), 0.0
    for _ in range(20):
        pace.built(now, 0.4)
        now += pace.refresh
    assert pace.pause == LEAST_INTERVAL, "at rest more is earned than used"
    assert pace.refresh == pytest.approx(2 * 0.4 / SHARE_OF_TIME)


@given(st.lists(st.floats(0.001, LONGEST_PAUSE * SHARE_OF_TIME), min_size=1, max_size=50))
def test_building_takes_no_more_than_its_share_however_much_changes(frames):
    pace, now = Pace(), 0.0
    for took in frames:
        pace.built(now, took)
        now += pace.pause
    assert sum(frames) <= now * SHARE_OF_TIME + SAVED_MOST + 1e-6


def test_a_change_waits_no_longer_than_the_longest_pause_however_many_pages_were_loaded():
    pace = Pace()
    for number in range(50):
        pace.built(number * 1.5, 1.5)
    assert pace.pause == LONGEST_PAUSE
    assert pace.refresh == LONGEST_REFRESH
