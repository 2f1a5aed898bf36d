"""The pictures of a review's page, as inline SVG. Pure.

Each picture has a title and a description for who cannot see it, takes its colours from the page's style sheet (so
light, dark and print are the page's business), and is drawn for 480 units of width, so that its text can still be read
on a phone. Everything that came from outside is escaped.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

from understudy.telemetry.slo.judgement import outages
from understudy.telemetry.slo.model import DAY_NS, Failover, Review, is_crash
from understudy.telemetry.timing.duration import length
from understudy.telemetry.tracing.names import AFTERMATH

WIDTH = 480
_LEFT = 112
_RIGHT = 14
_ROW = 26
_MOST_DOTS = 400
_TICKS_MS = (1, 10, 100, 1_000, 10_000, 100_000)


@dataclass(frozen=True, slots=True)
class Scale:
    """A logarithmic axis of lengths in ms, from ``low`` to ``high``, drawn between ``left`` and ``right``."""

    low: float
    high: float
    left: float
    right: float

    def at(self, ms: float) -> float:
        """Where a length stands; what is beyond the ends stands at them."""
        inside = min(max(ms, self.low), self.high)
        share = math.log(inside / self.low) / math.log(self.high / self.low)
        return self.left + share * (self.right - self.left)

    def ticks(self) -> list[int]:
        """The powers of ten on it."""
        return [tick for tick in _TICKS_MS if self.low <= tick <= self.high]


def clean(text: str, most: int = 120) -> str:
    """Text from outside, ready for HTML: no control characters, not endless, escaped."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return escape(shown if len(shown) <= most else shown[: most - 1] + "…")


def by_phase(review: Review) -> str:
    """A row per phase and one for the total, a dot per failover, a tick at each median; the objective as a line."""
    crashes = review.crashes
    if not crashes:
        return _empty("by-phase", "No takeover was measured in this window.")
    phases = list(dict.fromkeys(name for one in crashes for name in one.costs))
    rows = [("total", [one.total_ms or 0.0 for one in crashes])]
    rows += [(name, [one.costs[name] for one in crashes if name in one.costs]) for name in phases]
    wanted = review.targets.rto * 1000
    scale = _scale([ms for _, lengths in rows for ms in lengths] + [wanted], _LEFT, WIDTH - _RIGHT)
    parts: list[str] = []
    bottom = 16 + _ROW * len(rows)
    parts += _grid(scale, 10, bottom)
    for number, (name, lengths) in enumerate(rows):
        y = 10 + _ROW * number + _ROW / 2
        style = ' class="strong"' if not number else ""
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 5:.1f}" text-anchor="end"{style}>{clean(name, 16)}</text>')
        for ms in lengths[-_MOST_DOTS:]:
            late = " late" if not number and ms > wanted else ""
            parts.append(f'<circle class="dot{late}" cx="{scale.at(ms):.1f}" cy="{y:.1f}" r="5"/>')
        middle = scale.at(sorted(lengths)[len(lengths) // 2])
        parts.append(f'<path class="median" d="M{middle:.1f} {y - 10:.1f}v20"/>')
    parts.append(_limit_v(scale.at(wanted), 4, 10 + _ROW))
    medians = ", ".join(f"{name} {length(sorted(lengths)[len(lengths) // 2])}" for name, lengths in rows)
    told = f"{len(crashes)} takeovers against an objective of {length(wanted)}. Medians: {medians}."
    return _svg("by-phase", "Crash RTO by phase", told, bottom + 20, parts)


def timeline(review: Review) -> str:
    """Every measured change of active: when, and how long it took."""
    shown = [one for one in review.failovers if one.total_ms is not None and one.slots][-_MOST_DOTS:]
    lost = [one for one in review.failovers if one.total_ms is None]
    if not shown and not lost:
        return _empty("timeline", "Nothing changed its active in this window.")
    top, bottom, left = 12, 200, 66
    wanted = review.targets.rto * 1000
    lengths = [one.total_ms or 1.0 for one in shown] + [wanted]
    scale = _scale(lengths, bottom, top)
    parts = []
    for tick in scale.ticks():
        y = scale.at(tick)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 5:.1f}" text-anchor="end">{length(tick)}</text>')
    parts.append(f'<path class="limit" d="M{left} {scale.at(wanted):.1f}H{WIDTH - _RIGHT}"/>')
    for one in shown:
        kind = "planned" if one.planned else "drill" if one.drill else "crash"
        parts.append(_mark(kind, _time(review, one.began_ns, left), scale.at(one.total_ms or 1.0), one))
    for one in lost[-_MOST_DOTS:]:
        x = _time(review, one.began_ns, left)
        parts.append(f'<path class="unmeasured" d="M{x - 5:.1f} {bottom - 5}l10 10m0 -10l-10 10"/>')
    parts += _dates(review, left, bottom)
    told = (
        f"{len(review.failovers)} changes of active: {len(review.crashes)} measured takeovers, "
        f"{sum(one.planned for one in review.failovers)} planned, {len(lost)} without a measured end. "
        f"The line is the RTO objective, {length(wanted)}."
    )
    return _svg("timeline", "Failovers over time", told, bottom + 28, parts)


def burn_down(review: Review) -> str:
    """How much of the budget of unavailability was left at each moment of the window."""
    window = max(review.end_ns - review.start_ns, 1)
    allowed = review.targets.unavailability * window / 1e6
    if not allowed:
        return _empty("burn-down", "The objective allows no unavailability, so there is no budget to burn.")
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
    parts = []
    for tick in ticks:
        parts.append(f'<path class="{"limit" if not tick else "grid"}" d="M{left} {y(tick):.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{left - 8}" y="{y(tick) + 5:.1f}" text-anchor="end">{tick * 100:.0f} %</text>')
    line = f"M{left} {y(1.0):.1f}"
    # Of steps at the same place only the last can be seen; a hundred thousand of them would be megabytes.
    places = {f"{_time(review, at, left):.1f}": share for at, share in steps[1:]}
    line += "".join(f"H{x}V{y(share):.1f}" for x, share in places.items())
    line += f"H{WIDTH - _RIGHT}"
    parts.append(f'<path class="area" d="{line}V{y(min(0.0, floor)):.1f}H{left}Z"/><path class="line" d="{line}"/>')
    parts += _dates(review, left, bottom)
    unmeasured = sum(one.total_ms is None for one in crashes)
    gap = f" {unmeasured} takeovers without a measured end are not in it." if unmeasured else ""
    told = f"{steps[-1][1] * 100:.1f} % of the budget of {length(allowed)} is left after {len(crashes)} takeovers.{gap}"
    return _svg("burn-down", "Error budget of unavailability", told, bottom + 28, parts)


def waterfall(one: Failover, number: int) -> str:
    """One failover: who did which phase, when and for how long, from its trace."""
    bars = [bar for bar in one.bars if bar.name not in AFTERMATH]
    total = max([one.total_ms or 0.0, 0.001, *(bar.start_ms + bar.ms for bar in bars)])
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for bar in bars:
        groups.setdefault((bar.who, bar.name), []).append((bar.start_ms, bar.start_ms + bar.ms))
    parts, left, y = [], 190, 8.0
    width = WIDTH - _RIGHT - left
    for (who, name), spans in list(groups.items())[:24]:
        start, end = min(span[0] for span in spans), max(span[1] for span in spans)
        x = left + min(max(start / total, 0.0), 1.0) * width
        size = max(2.0, min(max((end - start) / total, 0.0) * width, left + width - x))
        x = min(x, left + width - 2.0)
        kind = "root" if name in ("failover", "handover") else "dear" if name == one.dearest else "phase"
        many = f" &times;{len(spans)}" if len(spans) > 1 else ""
        said = clean(name, 10) if who == name else f"{clean(who, 13)} {clean(name, 10)}"
        parts.append(f'<text x="0" y="{y + 14:.1f}">{said}{many}</text>')
        parts.append(f'<rect class="{kind}" x="{x:.1f}" y="{y + 2:.1f}" width="{size:.1f}" height="14" rx="3"/>')
        told = length(max(end - start, 0.0))
        inside = x + size + 6 + 9 * len(told) < WIDTH
        anchor, at = ("start", x + size + 6) if inside else ("end", x - 6)
        if not inside and x - 6 - 9 * len(told) < left:
            anchor, at = "end", x + size - 6
        over = ' class="over"' if anchor == "end" and at > x else ""
        parts.append(f'<text x="{at:.1f}" y="{y + 14:.1f}" text-anchor="{anchor}"{over}>{told}</text>')
        y += 22
    costs = ", ".join(f"{name} {length(ms)}" for name, ms in one.costs.items())
    told = f"Takeover of {length(one.total_ms or 0.0)}; its time went to: {costs}."
    return _svg(f"waterfall-{number}", f"Where the time of trace {one.trace[:12]} went", told, y + 6, parts)


def _scale(lengths: Sequence[float], left: float, right: float) -> Scale:
    used = [max(ms, 0.1) for ms in lengths]
    low = 10 ** math.floor(math.log10(min(used)))
    high = 10 ** math.ceil(math.log10(max(used)) + 1e-9)
    return Scale(low, max(high, low * 10), left, right)


def _grid(scale: Scale, top: float, bottom: float) -> Iterable[str]:
    for tick in scale.ticks():
        x = scale.at(tick)
        anchor = "end" if x > WIDTH - 40 else "middle"
        yield f'<path class="grid" d="M{x:.1f} {top}V{bottom}"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="{anchor}">{length(tick)}</text>'


def _limit_v(x: float, top: float, bottom: float) -> str:
    return f'<path class="limit" d="M{x:.1f} {top}V{bottom}"/>'


def _mark(kind: str, x: float, y: float, one: Failover) -> str:
    told = (
        f"<title>{clean(f'{one.source or one.cause}: {length(one.total_ms or 0.0)}, trace {one.trace[:12]}')}</title>"
    )
    if kind == "planned":
        return f'<rect class="planned" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10">{told}</rect>'
    if kind == "drill":
        return f'<path class="drill" d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z">{told}</path>'
    return f'<circle class="crash" cx="{x:.1f}" cy="{y:.1f}" r="6">{told}</circle>'


def _time(review: Review, at: int, left: float) -> float:
    share = (at - review.start_ns) / max(review.end_ns - review.start_ns, 1)
    return left + min(max(share, 0.0), 1.0) * (WIDTH - _RIGHT - left)


def _dates(review: Review, left: float, bottom: float) -> Iterable[str]:
    window = review.end_ns - review.start_ns
    form = "%d %b" if window > 2 * DAY_NS else "%d %b %H:%M" if window >= DAY_NS else "%H:%M"
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        at = review.start_ns + share * (review.end_ns - review.start_ns)
        text = datetime.fromtimestamp(at / 1e9, tz=UTC).strftime(form)
        x = left + share * (WIDTH - _RIGHT - left)
        yield f'<text x="{x:.1f}" y="{bottom + 22}" text-anchor="{anchor}">{text}</text>'


def _svg(name: str, title: str, told: str, height: float, parts: Iterable[str]) -> str:
    return (
        f'<svg role="img" aria-labelledby="{name}-t {name}-d" viewBox="0 0 {WIDTH} {height:.0f}" id="{name}">'
        f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(told)}</desc>{"".join(parts)}</svg>'
        f'<p class="told">{escape(told)}</p>'
    )


def _empty(name: str, told: str) -> str:
    return f'<p class="empty" id="{name}">{escape(told)}</p>'
