"""What ``capacity`` says about growth."""

from typing import Any

import pytest

from understudy.deploy.inspect.capacity import growth_line


def growth(**about: Any) -> dict[str, Any]:
    return {
        "resource": "sessions",
        "used": 500.0,
        "limit": 1000.0,
        "known_days": 9,
        "needed_days": 5,
        "horizon": 365,
        "trend": True,
        "days": 12,
        "earliest": 9,
        "latest": 20,
    } | about


@pytest.mark.parametrize(
    ("about", "line"),
    [
        ({}, "500 of 1000; limit in 12 days (90 %: 9 to 20), by 9 days"),
        ({"latest": None}, "500 of 1000; limit in 12 days (90 %: 9 to never), by 9 days"),
        (
            {"days": None, "latest": None},
            "500 of 1000; limit not within 365 days, and at the earliest in 9 (90 %), by 9 days",
        ),
        ({"days": None, "earliest": None, "latest": None}, "500 of 1000; not within 365 days, by 9 days"),
        ({"trend": False, "known_days": 2}, "500 of 1000; not enough history: 2 whole days of 5"),
        ({"resource": "memory", "used": 0.5, "limit": 1.0, "trend": False}, "50 % of 100 %; not enough history"),
        ({"resource": "cpu", "used": 0.5, "limit": 0.0, "trend": False}, "0.50 CPUs, no limit; not enough history"),
    ],
)
def test_when_a_limit_is_reached_is_said_with_its_uncertainty(about: dict[str, Any], line: str):
    assert growth_line(growth(**about)).startswith(line)
