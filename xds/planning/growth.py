"""In how many days a pool reaches a limit, by the trend of its daily peaks. Pure.

A control server keeps the peak of each day (UTC) in memory, for :data:`KEPT_DAYS` days. Peaks, since a limit is met at
the busiest time; of whole days, since loads follow the time of day. A straight line through them is extrapolated. The
uncertainty is the prediction interval of simple linear regression for one more day: in 9 of 10 cases its peak is inside
(Draper and Smith, Applied Regression Analysis, 1.4).
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Literal

import msgspec

DAY = 86_400
KEPT_DAYS = 28
FEWEST_DAYS = 5
"""Whole days that a trend needs. With fewer, the interval is so wide that it says nothing."""
HORIZON = 365
"""Days; what lies further away is not told."""
_T_90 = (6.314, 2.92, 2.353, 2.132, 2.015, 1.943, 1.895, 1.86, 1.833, 1.812, 1.796, 1.782, 1.771, 1.761, 1.753)
"""Student's t for 90 %, two-sided, by degrees of freedom from 1; beyond the last one 1.75 is used."""

Resource = Literal["sessions", "memory", "cpu", "etcd"]


class Usage(msgspec.Struct, frozen=True):
    """How much of something is used, and its limit, in the same unit; ``limit`` 0: not known."""

    used: float
    limit: float


class Growth(msgspec.Struct, frozen=True):
    """When a limit is reached: in ``days``, at the earliest in ``earliest``, at the latest in ``latest``.

    None means not within :data:`HORIZON`. ``per_day``: how much more is used each day. ``known_days``: whole days of
    history; if they are fewer than :data:`FEWEST_DAYS` there is no trend, and ``trend`` is False.
    """

    resource: Resource
    used: float
    limit: float
    known_days: int
    trend: bool
    per_day: float = 0.0
    days: int | None = None
    earliest: int | None = None
    latest: int | None = None


class DailyPeaks:
    """The peak of each resource of a pool on each day. Days are those since 1970, in UTC."""

    def __init__(self) -> None:
        self._peaks: dict[Resource, dict[int, float]] = {}
        self._first: dict[Resource, int] = {}
        self._last: dict[Resource, Usage] = {}

    def take(self, usages: Mapping[Resource, Usage], at: float) -> None:
        """Take in what is used at ``at`` (wall time in seconds)."""
        day = int(at // DAY)
        for resource, usage in usages.items():
            self._last[resource] = usage
            self._first.setdefault(resource, day)
            peaks = self._peaks.setdefault(resource, {})
            peaks[day] = max(usage.used, peaks.get(day, 0.0))
            for old in [one for one in peaks if one <= day - KEPT_DAYS]:
                del peaks[old]

    def growth(self, at: float) -> list[Growth]:
        """The growth of every resource that was seen, at ``at`` (wall time in seconds).

        Today is not over, and the first day was not seen from its beginning, so neither counts.
        """
        today = int(at // DAY)
        return [
            growth(
                resource,
                self._last[resource],
                {day - today: peak for day, peak in peaks.items() if day < today and day != self._first[resource]},
            )
            for resource, peaks in self._peaks.items()
        ]


def growth(resource: Resource, usage: Usage, peaks: Mapping[int, float]) -> Growth:
    """The growth by daily peaks.

    Args:
        resource: what is used.
        usage: how much of it now, and its limit.
        peaks: the peak of each day, by how many days ago it was (-1 is yesterday).
    """
    known = len(peaks)
    if known < FEWEST_DAYS or usage.limit <= 0:
        return Growth(resource, usage.used, usage.limit, known, trend=False)
    line = _Line([float(day) for day in peaks], list(peaks.values()))
    ahead = range(HORIZON + 1)
    return Growth(
        resource,
        usage.used,
        usage.limit,
        known,
        trend=True,
        per_day=line.slope,
        days=next((day for day in ahead if line.at(day) >= usage.limit), None),
        earliest=next((day for day in ahead if line.at(day) + line.margin(day) >= usage.limit), None),
        latest=next((day for day in ahead if line.at(day) - line.margin(day) >= usage.limit), None),
    )


class _Line:
    """The straight line with the least squares through some points, at least three."""

    def __init__(self, days: Sequence[float], values: Sequence[float]) -> None:
        self._count = len(days)
        self._middle, mean = sum(days) / len(days), sum(values) / len(values)
        self._spread = sum((day - self._middle) ** 2 for day in days)
        shared = sum((day - self._middle) * (value - mean) for day, value in zip(days, values, strict=True))
        self.slope = shared / self._spread
        self._mean = mean
        left = sum((value - self.at(day)) ** 2 for day, value in zip(days, values, strict=True))
        freedom = self._count - 2
        self._deviation = sqrt(left / freedom)
        self._quantile = _T_90[freedom - 1] if freedom <= len(_T_90) else 1.75

    def at(self, day: float) -> float:
        """The value of the line."""
        return self._mean + self.slope * (day - self._middle)

    def margin(self, day: float) -> float:
        """Half of the prediction interval of one day's peak."""
        distance = (day - self._middle) ** 2 / self._spread
        return self._quantile * self._deviation * sqrt(1 + 1 / self._count + distance)
