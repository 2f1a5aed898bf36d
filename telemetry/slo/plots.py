"""The pictures of the HTML page of a review, as shapes for inline SVG. Pure.

Each picture has a title and a summary for readers who cannot see it. Colours come from the style sheet of the page. A
picture is 480 units wide, so that its text stays readable on a phone. The template writes and escapes the shapes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from understudy.telemetry.slo.judgement import outages
from understudy.telemetry.slo.model import DAY_NS, Failover, Review, is_crash
from understudy.telemetry.timing.duration import length
from understudy.telemetry.tracing.names import AFTERMATH

WIDTH = 480
_LEFT = 112
_RIGHT = 14
_END = WIDTH - _RIGHT
_ROW = 26
_MOST_DOTS = 400
_MOST_BARS = 24
_TICKS_MS = (1, 10, 100, 1_000, 10_000, 100_000)


@dataclass(frozen=True, slots=True)
class Shape:
    """An SVG element: its name, its attributes, its text, and what is shown when the pointer rests on it."""

    kind: str
    attributes: Mapping[str, str | int]
    text: str = ""
    tooltip: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture. Without shapes, only its summary is shown."""

    name: str
    summary: str
    title: str = ""
    height: int = 0
    shapes: Sequence[Shape] = ()
    width: int = WIDTH


@dataclass(frozen=True, slots=True)
class Scale:
    """A logarithmic axis of lengths in ms, from ``low`` to ``high``, drawn between ``left`` and ``right``."""

    low: float
    high: float
    left: float
    right: float

    def at(self, ms: float) -> float:
        """The position of a length. Lengths beyond an end are drawn at that end."""
        inside = min(max(ms, self.low), self.high)
        share = math.log(inside / self.low) / math.log(self.high / self.low)
        return self.left + share * (self.right - self.left)

    def ticks(self) -> list[int]:
        """The powers of ten on it."""
        return [tick for tick in _TICKS_MS if self.low <= tick <= self.high]


def clean(text: str, most: int = 120) -> str:
    """Text from outside without control characters, cut to ``most`` characters. It is not escaped yet."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def by_phase(review: Review) -> Picture:
    """A row for the total and one for each phase: a dot for each failover, a tick at the median, the objective."""
    crashes = review.crashes
    if not crashes:
        return Picture("by-phase", "No takeover was measured in this window.")
    phases = list(dict.fromkeys(name for one in crashes for name in one.costs))
    rows = [("total", [one.total_ms or 0.0 for one in crashes])]
    rows += [(name, [one.costs[name] for one in crashes if name in one.costs]) for name in phases]
    wanted = review.targets.rto * 1000
    scale = _scale([ms for _, lengths in rows for ms in lengths] + [wanted], _LEFT, _END)
    bottom = 16 + _ROW * len(rows)
    shapes: list[Shape] = []
    for tick in scale.ticks():
        x = scale.at(tick)
        shapes += [
            _path("grid", f"M{x:.1f} 10V{bottom}"),
            _text(length(tick), x, bottom + 17, "end" if x > WIDTH - 40 else "middle"),
        ]
    for number, (name, lengths) in enumerate(rows):
        y = 10 + _ROW * number + _ROW / 2
        shapes.append(_text(clean(name, 16), _LEFT - 8, y + 5, "end", "" if number else "strong"))
        for ms in lengths[-_MOST_DOTS:]:
            late = " late" if not number and ms > wanted else ""
            shapes.append(_shape("circle", f"dot{late}", cx=scale.at(ms), cy=y, r=5))
        shapes.append(_path("median", f"M{scale.at(_median(lengths)):.1f} {y - 10:.1f}v20"))
    shapes.append(_path("limit", f"M{scale.at(wanted):.1f} 4V{10 + _ROW}"))
    medians = ", ".join(f"{name} {length(_median(lengths))}" for name, lengths in rows)
    summary = f"{len(crashes)} takeovers against an objective of {length(wanted)}. Medians: {medians}."
    return Picture("by-phase", summary, "Crash RTO by phase", bottom + 20, shapes)


def timeline(review: Review) -> Picture:
    """Every measured change of active: when, and how long it took."""
    shown = [one for one in review.failovers if one.total_ms is not None and one.slots][-_MOST_DOTS:]
    lost = [one for one in review.failovers if one.total_ms is None]
    if not shown and not lost:
        return Picture("timeline", "No slot changed its active member in this window.")
    top, bottom, left = 12, 200, 66
    wanted = review.targets.rto * 1000
    scale = _scale([one.total_ms or 1.0 for one in shown] + [wanted], bottom, top)
    shapes = [shape for tick in scale.ticks() for shape in _line("grid", scale.at(tick), left, length(tick))]
    shapes.append(_path("limit", f"M{left} {scale.at(wanted):.1f}H{_END}"))
    shapes += [_mark(one, _time(review, one.began_ns, left), scale.at(one.total_ms or 1.0)) for one in shown]
    for one in lost[-_MOST_DOTS:]:
        x = _time(review, one.began_ns, left)
        shapes.append(_path("unmeasured", f"M{x - 5:.1f} {bottom - 5}l10 10m0 -10l-10 10"))
    shapes += _dates(review, left, bottom)
    summary = (
        f"{len(review.failovers)} changes of active: {len(review.crashes)} measured takeovers, "
        f"{sum(one.planned for one in review.failovers)} planned, {len(lost)} without a measured end. "
        f"The line is the RTO objective, {length(wanted)}."
    )
    return Picture("timeline", summary, "Failovers over time", bottom + 28, shapes)


def burn_down(review: Review) -> Picture:
    """How much of the budget of unavailability was left at each moment of the window."""
    window = max(review.end_ns - review.start_ns, 1)
    allowed = review.targets.unavailability * window / 1e6
    if not allowed:
        return Picture("burn-down", "The objective allows no unavailability, so there is no budget.")
    crashes = [one for one in review.failovers if is_crash(one)]
    costs, _ = outages(crashes, review.traffic, (review.start_ns, review.end_ns), review.slots)
    left, top, bottom = 66, 12, 180
    steps = [(review.start_ns, 1.0)]
    for one, cost in zip(crashes, costs, strict=True):
        steps.append((one.began_ns, steps[-1][1] - cost / allowed))
    floor = min(0.0, steps[-1][1])

    def y(share: float) -> float:
        return bottom - (share - floor) / (1 - floor) * (bottom - top)

    ticks = [1.0, 0.5, 0.0] if floor > -1 else [1.0, 0.0, floor]
    shapes = [
        shape for tick in ticks for shape in _line("grid" if tick else "limit", y(tick), left, f"{tick * 100:.0f} %")
    ]
    # Of several steps at one position only the last is visible; a hundred thousand of them would be megabytes.
    places = {f"{_time(review, at, left):.1f}": share for at, share in steps[1:]}
    line = "".join([f"M{left} {y(1.0):.1f}", *(f"H{x}V{y(share):.1f}" for x, share in places.items()), f"H{_END}"])
    shapes += [_path("area", f"{line}V{y(floor):.1f}H{left}Z"), _path("line", line)]
    shapes += _dates(review, left, bottom)
    unmeasured = sum(one.total_ms is None for one in crashes)
    gap = f" It leaves out {unmeasured} takeovers without a measured end." if unmeasured else ""
    spent = f"after {len(crashes)} takeovers.{gap}"
    summary = f"{steps[-1][1] * 100:.1f} % of the budget of {length(allowed)} is left {spent}"
    return Picture("burn-down", summary, "Error budget of unavailability", bottom + 28, shapes)


def waterfall(one: Failover, number: int) -> Picture:
    """One failover: which process did which phase, when and for how long, from its trace."""
    bars = [bar for bar in one.bars if bar.name not in AFTERMATH]
    total = max([one.total_ms or 0.0, 0.001, *(bar.start_ms + bar.ms for bar in bars)])
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for bar in bars:
        groups.setdefault((bar.who, bar.name), []).append((bar.start_ms, bar.start_ms + bar.ms))
    shapes: list[Shape] = []
    y = 8
    for (who, name), spans in list(groups.items())[:_MOST_BARS]:
        kind = "root" if name in ("failover", "handover") else "dear" if name == one.dearest else "phase"
        label = clean(name, 10) if who == name else f"{clean(who, 13)} {clean(name, 10)}"
        many = f" \N{MULTIPLICATION SIGN}{len(spans)}" if len(spans) > 1 else ""
        shapes.append(_text(label + many, 0, y + 14))
        shapes += _bar(kind, y, min(span[0] for span in spans), max(span[1] for span in spans), total)
        y += 22
    costs = ", ".join(f"{name} {length(ms)}" for name, ms in one.costs.items())
    summary = f"Takeover of {length(one.total_ms or 0.0)}; its time went to: {costs}."
    return Picture(f"waterfall-{number}", summary, f"Where the time of trace {one.trace[:12]} went", y + 6, shapes)


def _bar(kind: str, y: int, start: float, end: float, total: float) -> Iterator[Shape]:
    """A bar of a waterfall and its length in words: right of the bar, or else left of it, or else on it."""
    left = 190
    width = _END - left
    x = left + min(max(start / total, 0.0), 1.0) * width
    size = max(2.0, min(max((end - start) / total, 0.0) * width, left + width - x))
    x = min(x, left + width - 2.0)
    yield _shape("rect", kind, x=x, y=y + 2, width=size, height=14, rx=3)
    words = length(max(end - start, 0.0))
    needed = 9 * len(words)
    if x + size + 6 + needed < WIDTH:
        yield _text(words, x + size + 6, y + 14, "start")
    elif x - 6 - needed >= left:
        yield _text(words, x - 6, y + 14, "end")
    else:
        yield _text(words, x + size - 6, y + 14, "end", "over" if size > 6 else "")


def _median(lengths: Sequence[float]) -> float:
    return sorted(lengths)[len(lengths) // 2]


def _scale(lengths: Sequence[float], left: float, right: float) -> Scale:
    used = [max(ms, 0.1) for ms in lengths]
    low = 10 ** math.floor(math.log10(min(used)))
    high = 10 ** math.ceil(math.log10(max(used)) + 1e-9)
    return Scale(low, max(high, low * 10), left, right)


def _time(review: Review, at: int, left: float) -> float:
    share = (at - review.start_ns) / max(review.end_ns - review.start_ns, 1)
    return left + min(max(share, 0.0), 1.0) * (_END - left)


def _dates(review: Review, left: float, bottom: float) -> Iterator[Shape]:
    window = review.end_ns - review.start_ns
    form = "%d %b" if window > 2 * DAY_NS else "%d %b %H:%M" if window >= DAY_NS else "%H:%M"
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        date = datetime.fromtimestamp((review.start_ns + share * window) / 1e9, tz=UTC).strftime(form)
        yield _text(date, left + share * (_END - left), bottom + 22, anchor)


def _mark(one: Failover, x: float, y: float) -> Shape:
    """A change of active on the timeline."""
    tooltip = clean(f"{one.source or one.cause}: {length(one.total_ms or 0.0)}, trace {one.trace[:12]}")
    if one.planned:
        return _shape("rect", "planned", tooltip=tooltip, x=x - 5, y=y - 5, width=10, height=10)
    if one.drill:
        return _shape("path", "drill", tooltip=tooltip, d=f"M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z")
    return _shape("circle", "crash", tooltip=tooltip, cx=x, cy=y, r=6)


def _line(css: str, y: float, left: int, label: str) -> tuple[Shape, Shape]:
    """A horizontal line over the whole width, and its label."""
    return _path(css, f"M{left} {y:.1f}H{_END}"), _text(label, left - 8, y + 5, "end")


def _path(css: str, d: str) -> Shape:
    return _shape("path", css, d=d)


def _text(text: str, x: float, y: float, anchor: str = "start", css: str = "") -> Shape:
    return _shape("text", css, text, x=x, y=y, text_anchor=anchor)


def _shape(kind: str, css: str, text: str = "", tooltip: str = "", **attributes: Any) -> Shape:  # noqa: ANN401
    """An element with the class ``css``; ``_`` in an attribute's name stands for ``-``."""
    rounded = {
        name.replace("_", "-"): f"{value:.1f}" if isinstance(value, float) else value
        for name, value in attributes.items()
    }
    return Shape(kind, {**({"class": css} if css else {}), **rounded}, text, tooltip)
