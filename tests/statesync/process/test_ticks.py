"""Services with the same interval wake together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.statesync.process import ticks
from understudy.statesync.process.ticks import until_tick


@given(now=st.floats(0, 1e7), other=st.floats(0, 1), interval=st.sampled_from([0.05, 0.1, 0.4]))
def test_who_sleeps_until_a_tick_wakes_at_a_multiple_of_the_interval(now, other, interval):
    with pytest.MonkeyPatch.context() as patched:
        ends = []
        for at in (now, now + other):
            patched.setattr(ticks.time, "monotonic", lambda at=at: at)
            rest = until_tick(interval)
            assert interval / 4 <= rest <= interval * 5 / 4 + 1e-6
            ends.append((at + rest) / interval)
        assert abs(ends[1] - ends[0] - round(ends[1] - ends[0])) < 1e-3
