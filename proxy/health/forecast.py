"""When a resource of a member will run out, by its trend. Pure; times are monotonic seconds.

:func:`follow` takes in a reading each second. A trend counts only if it is certain, so that ordinary noise is none:

* The slope is the lower bound of Sen's estimate, the median of the slopes between all pairs of readings (P. K. Sen,
  1968). A step, or a few readings that are far off, do not move it. Both the last :data:`WINDOW` and the last
  :data:`RECENT` seconds must rise, so a resource that has stopped growing has no end in sight.
* Nothing is said in the first :data:`WINDOW` seconds of a process: a start is no trend.
* A use that the process has come back from is no danger. A garbage collector lets memory rise and frees it again. Such
  a process is judged only above all it has come back from, and from :data:`NEARLY_FULL` on; or by the trend of its
  peaks.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum

from understudy.statesync.pool.records import ForecastLevel

WINDOW = 60.0
RECENT = 15.0
LEAST_READINGS = 8
"""A window with fewer readings shows no trend."""
NOTICED = 0.70
"""From this share of its limit on the trend of a resource is looked at."""
FLOOR = 0.80
"""Below this share nothing is critical."""
NEARLY_FULL = 0.95
SOON = 30.0
"""A resource at :data:`FLOOR` or above is critical if it runs out within so many seconds. A handover takes some 2 s."""
LATER = 600.0
"""The same for one that is nearly full: a slow leak gives no shorter forecast until the last request is too much."""
RECOVERY = 0.05
"""A fall by this share of the limit is a recovery from the use before it."""
MARGIN = 0.005
PEAK_FLOOR = 0.85
PEAKS_SOON = 120.0
"""A resource that rises and falls is critical if its last peak was at :data:`PEAK_FLOOR` or above, and a peak by the
trend of all peaks reaches the limit within so many seconds."""
MOST_PEAKS = 30
CONFIRMED = 3
"""Readings in a row that must be critical."""
CALM = 60.0
"""Seconds for which a resource must be well before its level falls."""
_NORMAL = 1.96
"""The 97.5th percentile of the normal distribution: the bounds of the slope are those of 95 % confidence."""


class Unit(StrEnum):
    """What a resource is measured in."""

    BYTES = "bytes"
    COUNT = "count"
    SECONDS = "seconds"


@dataclass(frozen=True, slots=True)
class Reading:
    """How much of a resource is used. ``source`` names what was measured: another source begins a trend anew."""

    name: str
    used: float
    limit: float
    source: str
    unit: Unit = Unit.BYTES

    @property
    def share(self) -> float:
        """The used share of the limit."""
        return self.used / self.limit


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is expected of the resource ``name``.

    ``text`` is for people, '' if all is well. ``share`` is the used share of its limit, ``left`` the seconds until it
    runs out.
    """

    name: str = ""
    level: ForecastLevel = ForecastLevel.OK
    text: str = ""
    share: float = 0.0
    left: float = math.inf


@dataclass(frozen=True, slots=True)
class Trend:
    """The history of one resource.

    ``samples`` are the times and used shares of the last :data:`WINDOW` seconds. ``peak`` is the highest share since
    the last recovery, ``peaks`` are the last ones that the process has come back from, and ``survived`` is the highest
    of all of these. ``peaks_left`` is as ``left``, by the peaks. ``hits`` counts critical readings in a row.
    ``calm_since`` is since when it has been well enough for a lower level, None if it is not. ``raised`` is the text of
    the reading that raised the level.
    """

    reading: Reading
    began: float
    samples: tuple[tuple[float, float], ...]
    peak: float
    peaks: tuple[tuple[float, float], ...] = ()
    survived: float = 0.0
    left: float = math.inf
    peaks_left: float = math.inf
    level: ForecastLevel = ForecastLevel.OK
    hits: int = 0
    calm_since: float | None = None
    raised: str = ""

    @property
    def forecast(self) -> Forecast:
        """What is expected of the resource."""
        text = self.raised if self.level.rank else ""
        return Forecast(self.reading.name, self.level, text, self.reading.share, min(self.left, self.peaks_left))

    @property
    def said(self) -> str:
        """The trend in words; by peaks if they show an end."""
        if math.isfinite(self.peaks_left):
            peak = replace(self.reading, used=self.peaks[-1][1] * self.reading.limit)
            return said(peak, self.peaks_left)
        return said(self.reading, self.left)


def follow(before: Trend | None, reading: Reading, now: float) -> Trend:
    """The trend after a reading at ``now``. A resource of another source keeps its level until it has been calm."""
    sample = (now, reading.share)
    if before is None or before.reading.source != reading.source:
        fresh = Trend(reading, now, (sample,), reading.share)
        kept = replace(fresh, level=before.level, raised=before.raised) if before else fresh
        return _judged(kept, now)
    samples = (*(one for one in before.samples if now - one[0] <= WINDOW), sample)
    recovered = reading.share <= before.peak - RECOVERY
    left = _seconds_left(samples, before.began, now)
    trend = replace(before, reading=reading, samples=samples, peak=max(before.peak, reading.share), left=left)
    return _judged(_recovered(trend, now) if recovered else trend, now)


def _recovered(trend: Trend, now: float) -> Trend:
    """The trend of a resource that has come back from a peak."""
    peaks = (*trend.peaks, (now, trend.peak))[-MOST_PEAKS:]
    slope = slope_bound(peaks) if trend.peak >= PEAK_FLOOR else 0.0
    return replace(
        trend,
        peak=trend.reading.share,
        peaks=peaks,
        survived=max(trend.survived, trend.peak),
        peaks_left=max(1.0 - trend.peak, 0.0) / slope if slope else math.inf,
    )


def unseen(before: Trend, now: float) -> Trend | None:
    """The trend of a resource without a reading at ``now``; None once it has not been read for :data:`CALM` seconds."""
    return None if now - before.samples[-1][0] >= CALM else before


def worst(forecasts: Iterable[Forecast]) -> Forecast:
    """The forecast with the highest level; of equal ones that which ends first."""
    return max(forecasts, key=lambda one: (one.level.rank, -one.left, one.share), default=Forecast())


def slope_bound(samples: Sequence[tuple[float, float]]) -> float:
    """The slope a second that the samples show for certain: the lower bound of Sen's, 0 if there is no rise.

    The bound is that of Kendall's test: of N sorted slopes the one at (N - C) / 2, with
    C = 1.96 * sqrt(n (n - 1) (2 n + 5) / 18).
    """
    count = len(samples)
    if count < LEAST_READINGS:
        return 0.0
    slopes = sorted(
        (later - earlier) / (then - before)
        for place, (before, earlier) in enumerate(samples)
        for then, later in samples[place + 1 :]
        if then > before
    )
    spread = _NORMAL * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    return max(slopes[max(int((len(slopes) - spread) / 2), 0)], 0.0) if slopes else 0.0


def _seconds_left(samples: Sequence[tuple[float, float]], began: float, now: float) -> float:
    """Seconds until the resource runs out, if it goes on as both windows show; infinite if they show no end."""
    share = samples[-1][1]
    if share < NOTICED or now - began < WINDOW:
        return math.inf
    recent = slope_bound([one for one in samples if now - one[0] <= RECENT])
    slope = min(recent, slope_bound(samples)) if recent else 0.0
    return max(1.0 - share, 0.0) / slope if slope else math.inf


def _critical(trend: Trend) -> bool:
    share = trend.reading.share
    if trend.peaks_left <= PEAKS_SOON:
        return True
    if share <= trend.survived + MARGIN:
        return False
    if share >= NEARLY_FULL and trend.left <= LATER:
        return True
    return share >= FLOOR and trend.left <= SOON and trend.survived < NOTICED


def _notable(trend: Trend) -> bool:
    share = trend.reading.share
    return share >= NEARLY_FULL or (trend.left <= LATER and share > trend.survived + MARGIN)


def _judged(trend: Trend, now: float) -> Trend:
    """The trend with its level: that rises at once, or after :data:`CONFIRMED` readings, and falls after a calm."""
    hits = trend.hits + 1 if _critical(trend) else 0
    wanted = ForecastLevel.OK
    if hits or _notable(trend):
        wanted = ForecastLevel.CRITICAL if hits >= CONFIRMED else ForecastLevel.WARN
    if wanted.rank > trend.level.rank:
        return replace(trend, hits=hits, level=wanted, raised=trend.said, calm_since=None)
    low = trend.level is not ForecastLevel.CRITICAL or trend.reading.share <= NOTICED
    if wanted.rank >= trend.level.rank or not low:
        return replace(trend, hits=hits, calm_since=None)
    since = now if trend.calm_since is None else trend.calm_since
    if now - since < CALM:
        return replace(trend, hits=hits, calm_since=since)
    return replace(trend, hits=hits, level=wanted, raised=trend.said, calm_since=None)


_ENDS = {Unit.BYTES: "full", Unit.COUNT: "used up", Unit.SECONDS: "at the limit"}


def said(reading: Reading, left: float) -> str:
    """A reading in words: ``memory 91 % of 512 MiB, full in 40 s``."""
    end = f", {_ENDS[reading.unit]} in {left:.0f} s" if left <= LATER else ""
    return f"{reading.name} {reading.share * 100:.0f} % of {_amount(reading.limit, reading.unit)}{end}"


def _amount(amount: float, unit: Unit) -> str:
    if unit is Unit.SECONDS:
        return f"{amount:g} s"
    if unit is Unit.COUNT:
        return f"{amount:.0f}"
    for size, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if amount >= size:
            return f"{amount / size:.3g} {name}" if amount < 1000 * size else f"{amount / size:.0f} {name}"
    return f"{amount / 2**10:.0f} KiB"


CERTIFICATE = "certificate"
CERTIFICATE_WARN = 86_400.0
CERTIFICATE_CRITICAL = 300.0
"""Seconds before its end at which a certificate is critical."""
CERTIFICATE_SHARE = 0.1
"""Neither counts before so small a share of the certificate's life is left: one that lives for an hour is no fault."""


def of_certificate(begins: float, ends: float, now: float) -> Forecast:
    """What is expected of a certificate. All times are wall time in seconds. Its end is known: it needs no trend."""
    life, left = max(ends - begins, 1.0), ends - now
    share = 1.0 - max(left, 0.0) / life
    bound = life * CERTIFICATE_SHARE
    level = (
        ForecastLevel.CRITICAL
        if left <= min(CERTIFICATE_CRITICAL, bound)
        else ForecastLevel.WARN
        if left <= min(CERTIFICATE_WARN, bound)
        else ForecastLevel.OK
    )
    said = f"{CERTIFICATE} ends at {datetime.fromtimestamp(ends, tz=UTC):%Y-%m-%d %H:%M:%SZ}"
    return Forecast(CERTIFICATE, level, said if level.rank else "", share, left)
