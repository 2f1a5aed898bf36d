"""In how many days a pool reaches a limit, and how sure that is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.xds.planning.growth import DAY, KEPT_DAYS, DailyPeaks, Usage, growth


def peaks(*values: float) -> dict[int, float]:
    """The last day is yesterday."""
    return {place - len(values): value for place, value in enumerate(values)}


@pytest.mark.parametrize(
    ("values", "limit", "days"),
    [
        ((10, 20, 30, 40, 50), 100, 4),
        ((10, 20, 30, 40, 50), 55, 0),
        ((50, 50, 50, 50, 50), 100, None),
        ((50, 40, 30, 20, 10), 100, None),
        ((1, 2, 3, 4, 5), 1000, None),
    ],
)
def test_a_straight_line_reaches_the_limit_on_a_day_without_doubt(
    values: tuple[float, ...], limit: float, days: int | None
):
    found = growth("sessions", Usage(values[-1], limit), peaks(*values))
    assert found.trend
    assert (found.earliest, found.days, found.latest) == (days, days, days)


def test_noise_makes_the_time_uncertain():
    """Slope 10 and residuals -4, 3, 2, 3, -4: s = sqrt(54 / 3) = 4.24, t(3) = 2.353, by hand."""
    found = growth("sessions", Usage(50, 100), peaks(6, 23, 32, 43, 46))
    assert found.per_day == pytest.approx(10)
    assert (found.earliest, found.days, found.latest) == (3, 4, 8)


def test_too_little_history_makes_no_trend():
    found = growth("memory", Usage(0.5, 1.0), peaks(0.1, 0.2, 0.3, 0.4))
    assert (found.trend, found.known_days, found.days) == (False, 4, None)
    assert not growth("memory", Usage(5, 0), peaks(1, 2, 3, 4, 5)).trend, "without a limit there is nothing to reach"


def test_neither_the_first_day_nor_today_counts_and_old_days_are_forgotten():
    book = DailyPeaks()
    for day in range(100, 200):
        for hour, used in ((1, day), (13, 2 * day)):
            book.take({"sessions": Usage(used, 1000)}, day * DAY + hour * 3600)
        (found,) = book.growth(day * DAY + 14 * 3600)
        assert found.known_days == min(max(day - 101, 0), KEPT_DAYS - 1)
        if found.trend:
            assert found.per_day == pytest.approx(2), "of a day the peak counts"


@given(st.lists(st.floats(0, 1e9), min_size=5, max_size=28), st.floats(1, 1e10))
def test_the_earliest_time_is_never_after_the_latest(values: list[float], limit: float):
    found = growth("sessions", Usage(values[-1], limit), peaks(*values))
    far = 10_000
    early, middle, late = (far if day is None else day for day in (found.earliest, found.days, found.latest))
    assert early <= middle <= late
