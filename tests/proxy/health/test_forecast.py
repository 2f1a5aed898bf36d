"""Forecasts of what a member runs out of: a leak is seen in time, ordinary noise never counts."""

import random
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness.examples import examples
from tests.proxy.health.noise import ORDINARY, Series, leak, leak_with_collector, reading, saw_tooth
from understudy.proxy.health.forecast import (
    CALM,
    Forecast,
    Reading,
    Trend,
    Unit,
    follow,
    of_certificate,
    said,
    slope_bound,
    unseen,
    worst,
)
from understudy.statesync.pool.records import ForecastLevel

OK, WARN, CRITICAL = ForecastLevel
HALF_AN_HOUR = 1800
DAY = 86_400.0


def followed(series: Series, seconds: int, before: Trend | None = None, start: int = 0) -> list[Trend]:
    """The trend after each second."""
    found = []
    for second, (share, source) in enumerate(islice(series, seconds), start):
        before = follow(before, reading(share, source), float(second))
        found.append(before)
    return found


def seconds_ahead(series: Series, most: int = 40_000) -> float:
    """How many seconds before the memory is full the forecast is critical; negative if it never is."""
    trend, critical = None, None
    for second, (share, source) in enumerate(islice(series, most)):
        if share >= 1.0:
            return second - critical if critical is not None else -1.0
        trend = follow(trend, reading(share, source), float(second))
        if critical is None and trend.level is CRITICAL:
            critical = second
    raise AssertionError("the memory never became full")


@pytest.mark.parametrize("kind", ORDINARY)
def test_half_an_hour_of_ordinary_noise_is_never_critical(kind: str) -> None:
    for seed in range(2):
        trends = followed(ORDINARY[kind](random.Random(seed)), HALF_AN_HOUR)
        assert CRITICAL not in {trend.level for trend in trends}, seed


@settings(max_examples=examples(10), deadline=None)
@given(
    seed=st.integers(0, 10**6),
    low=st.floats(0.05, 0.6),
    rise=st.floats(0.05, 0.3),
    period=st.integers(2, 70),
    noise=st.floats(0.0, 0.008),
)
def test_no_collector_that_stays_below_nine_tenths_is_critical(
    seed: int, low: float, rise: float, period: int, noise: float
) -> None:
    series = saw_tooth(random.Random(seed), low=low, high=min(low + rise, 0.87), period=period, noise=noise)
    assert CRITICAL not in {trend.level for trend in followed(series, 400)}


@pytest.mark.parametrize(
    ("slope", "noise", "every"),
    [
        (0.008, 0.0, 1),
        (0.006, 0.002, 1),
        (0.004, 0.004, 1),
        (0.004, 0.001, 4),
        (0.001, 0.002, 1),
    ],
)
def test_a_leak_is_critical_in_time_for_a_handover(slope: float, noise: float, every: int) -> None:
    ahead = [
        seconds_ahead(leak(random.Random(seed), start=0.2, slope=slope, noise=noise, every=every)) for seed in range(2)
    ]
    assert min(ahead) >= 10, ahead


@pytest.mark.parametrize(("slope", "period"), [(0.0005, 20), (0.001, 8)])
def test_a_leak_under_a_collector_is_critical_before_the_end(slope: float, period: int) -> None:
    assert min(seconds_ahead(leak_with_collector(random.Random(s), slope=slope, period=period)) for s in range(3)) > 0


def test_a_critical_member_is_well_again_only_after_a_calm_below_the_floor() -> None:
    trends = followed(leak(random.Random(0), start=0.2, slope=0.006, noise=0.001), 115)
    assert trends[-1].level is CRITICAL
    stays_high = followed(iter([(0.85, "one")] * 600), 600, trends[-1], 115)
    assert {trend.level for trend in stays_high} == {CRITICAL}  # the leak waits for the next requests
    restarted = followed(iter([(0.2, "two")] * 90), 90, stays_high[-1], 715)
    levels = [trend.level for trend in restarted]
    assert levels == [CRITICAL] * int(CALM) + [OK] * (90 - int(CALM))
    assert restarted[-1].forecast.text == ""


def test_a_member_that_fills_again_does_not_become_well_meanwhile() -> None:
    trends = followed(leak(random.Random(0), start=0.2, slope=0.006, noise=0.0), 115)
    again = followed(iter([(0.2, "two")] * 50 + [(0.75, "two")] * 20 + [(0.2, "two")] * 50), 120, trends[-1], 115)
    assert {trend.level for trend in again} == {CRITICAL}


def test_a_resource_that_is_no_longer_read_is_forgotten_after_a_while() -> None:
    trend = followed(leak(random.Random(0), start=0.2, slope=0.006, noise=0.0), 115)[-1]
    assert unseen(trend, 114 + CALM - 1) == trend
    assert unseen(trend, 114 + CALM) is None


def test_a_full_disk_is_a_warning_also_if_it_grows_no_more() -> None:
    trends = followed(iter([(0.96, "disk")] * 10), 10)
    assert {trend.level for trend in trends} == {WARN}


@settings(max_examples=examples(50), deadline=None)
@given(
    values=st.lists(st.floats(0, 1), min_size=2, max_size=60),
    scale=st.sampled_from([0.5, 1.0, 3.0]),
)
def test_the_bound_of_the_slope_follows_the_scale_and_is_no_steeper_than_any_two_readings(
    values: list[float], scale: float
) -> None:
    samples = [(float(at), value) for at, value in enumerate(values)]
    bound = slope_bound(samples)
    pairs = [(b - a) / (t - s) for place, (s, a) in enumerate(samples) for t, b in samples[place + 1 :]]
    assert 0.0 <= bound <= max(*pairs, 0.0)
    assert slope_bound([(at * scale, value) for at, value in samples]) == pytest.approx(bound / scale)


def test_the_bound_of_a_line_is_its_slope_and_a_few_wild_readings_do_not_move_it() -> None:
    line = [(float(at), 0.01 * at) for at in range(60)]
    assert slope_bound(line) == pytest.approx(0.01)
    wild = [(at, value + (5.0 if at in (7, 30, 31) else 0.0)) for at, value in line]
    assert 0.008 < slope_bound(wild) < 0.012
    assert slope_bound([(float(at), 0.2 if at < 30 else 0.9) for at in range(60)]) == 0.0


@pytest.mark.parametrize(
    ("one", "left", "text"),
    [
        (Reading("memory", 0.91 * 2**29, 2**29, ""), 40, "memory 91 % of 512 MiB, full in 40 s"),
        (Reading("memory", 2**30, 2**31, ""), float("inf"), "memory 50 % of 2 GiB"),
        (Reading("file descriptors", 900, 1024, "", Unit.COUNT), 7, "file descriptors 88 % of 1024, used up in 7 s"),
        (
            Reading("event loop delay", 0.9, 1.0, "", Unit.SECONDS),
            9,
            "event loop delay 90 % of 1 s, at the limit in 9 s",
        ),
    ],
)
def test_a_reading_in_words(one: Reading, left: float, text: str) -> None:
    assert said(one, left) == text


@pytest.mark.parametrize(
    ("life", "left", "level"),
    [
        (90 * DAY, 2 * DAY, OK),
        (90 * DAY, DAY - 1, WARN),
        (90 * DAY, 299, CRITICAL),
        (90 * DAY, -5, CRITICAL),
        (3600, 1200, OK),
        (3600, 350, WARN),
        (3600, 299, CRITICAL),
        (600, 100, OK),
        (600, 59, CRITICAL),
    ],
)
def test_a_certificate_counts_by_what_is_left_of_its_life(life: float, left: float, level: ForecastLevel) -> None:
    found = of_certificate(1e9, 1e9 + life, 1e9 + life - left)
    assert found.level is level
    assert found.text.startswith("certificate ends at ") == (level is not OK)


def test_the_worst_forecast_is_the_highest_level_that_ends_first() -> None:
    soon, later = Forecast("a", CRITICAL, "soon", 0.9, 10), Forecast("b", CRITICAL, "later", 0.99, 20)
    assert worst([Forecast("c", WARN, "warn", 0.99, 1), later, soon]) == soon
    assert worst([]) == Forecast()
