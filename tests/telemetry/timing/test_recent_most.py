"""The highest value of late: how long a value counts."""

import pytest

from understudy.telemetry.timing.recent_most import SECONDS, RecentMost


@pytest.mark.parametrize(
    ("noted", "now", "most"),
    [
        ([], 100.0, 0),
        ([(100, 7), (101, 3)], 101.0, 7),
        ([(100, 7), (100 + SECONDS / 2, 3)], 100.0 + SECONDS, 7),
        ([(100, 1), (100 + SECONDS - 0.1, 7), (100 + SECONDS, 2)], 100 + 2 * SECONDS - 0.2, 7),
        ([(100, 7), (100 + SECONDS, 3)], 100 + 2 * SECONDS, 3),
        ([(100, 7)], 100 + 2 * SECONDS, 0),
    ],
)
def test_the_highest_of_the_last_seconds_counts_and_goes(
    noted: list[tuple[float, float]], now: float, most: float
) -> None:
    recent = RecentMost()
    for at, value in noted:
        recent.note(value, at)
    assert recent.most(now) == most
