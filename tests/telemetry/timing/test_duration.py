"""Durations in text: a number and a unit, and nothing else."""

import pytest

from understudy.telemetry.timing.duration import parse_duration

ALL = ("ms", "s", "m", "h", "d", "w")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("30d", 2_592_000), ("4w", 2_419_200)],
)
def test_every_unit_is_read(text, seconds):
    assert parse_duration(text, ALL) == seconds


@pytest.mark.parametrize("text", ["", "5", "s", "-5s", "5 s", "5S", "1e3s", ".5s", "5s\n", "٣s", "5y", "nans"])
def test_anything_else_is_not_a_duration(text):
    assert parse_duration(text, ALL) is None


def test_only_the_units_asked_for_are_read():
    assert parse_duration("5d", ("s", "m")) is None
