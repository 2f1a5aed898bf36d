"""A review for the terminal and for machines. Pure: a :class:`Review` in, rich or JSON out."""

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from understudy.telemetry.slo.model import Burn, Failover, Figure, Review, State
from understudy.telemetry.timing.duration import length

COLOURS = {
    State.MET: "green",
    State.MISSED: "bold red",
    State.NOT_SHOWN: "yellow",
    State.NO_DATA: "yellow",
    State.NOT_JUDGED: "dim",
}
_BUCKETS_MS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
_BARS = "▏▎▍▌▋▊▉█"
_WORST = 3


def verdict(review: Review) -> str:
    """The answer in one sentence."""
    missed = [figure.title for figure in review.figures if figure.state is State.MISSED]
    unknown = [figure for figure in review.figures if figure.state in (State.NOT_SHOWN, State.NO_DATA)]
    if missed:
        return f"Missed: {', '.join(missed)}"
    if unknown:
        met = sum(figure.state is State.MET for figure in review.figures)
        return f"Not yet shown: {met} objectives met, {len(unknown)} without enough evidence"
    return "Every objective was met"


def when(ns: int) -> str:
    """A moment in UTC, to the second."""
    return datetime.fromtimestamp(ns / 1e9, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")


def buckets(lengths_ms: Sequence[float]) -> list[tuple[str, int]]:
    """A histogram of lengths: the number up to each bound, from the first to the last bound with any."""
    counts = [0] * (len(_BUCKETS_MS) + 1)
    for ms in lengths_ms:
        counts[next((at for at, bound in enumerate(_BUCKETS_MS) if ms <= bound), len(_BUCKETS_MS))] += 1
    names = [f"<= {length(bound)}" for bound in _BUCKETS_MS] + [f"> {length(_BUCKETS_MS[-1])}"]
    used = [at for at, count in enumerate(counts) if count]
    return list(zip(names, counts, strict=True))[used[0] : used[-1] + 1] if used else []


def share_told(share: float, digits: int = 3) -> str:
    """A share in percent, with as few digits as show that it is neither 0 nor 100 %."""
    text = f"{share * 100:.{digits}f}"
    least = f"{10**-digits:.{digits}f}"
    if share and float(text) == 0:
        return f"< {least if share > 0 else 0} %"
    if digits and share < 1 and float(text) == 100:
        return f"> {100 - 10**-digits:.{digits}f} %"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


def change_told(one: Failover) -> str:
    """What kind of change it was, in words."""
    source = f" from {_safe(one.source)}" if one.source else ""
    return f"planned moves{source}" if one.planned else f"takeover{source}"


def requests_told(one: Failover) -> str:
    """What happened to the requests that met a change, in words; empty if no Envoy reported."""
    through = one.through
    if through is None:
        return ""
    of = "" if through.total is None else f" of {through.total} requests"
    if not through.failed and not through.retried:
        return "" if through.total is None else f"none of {through.total} requests failed or was repeated"
    return f"{through.failed}{of} failed, {through.retried} were repeated and went well"


def as_json(review: Review, before: Review | None = None) -> dict[str, Any]:
    """The review for machines: plain JSON types; figures in the units they name."""
    view: dict[str, Any] = {
        "pool": review.pool,
        "verdict": str(review.state),
        "summary": verdict(review),
        "window": {"start": when(review.start_ns), "end": when(review.end_ns)},
        "failovers": len(review.failovers),
        "left_out": review.left_out,
        "traffic": dataclasses.asdict(review.traffic),
        "figures": [_figure(figure) for figure in review.figures],
        "worst": [_failover(one) for one in review.worst[:_WORST]],
        "costliest": [_failover(one) for one in review.costliest[:_WORST]],
    }
    if before is not None:
        view["before"] = as_json(before)
    return view


@dataclasses.dataclass(frozen=True, slots=True)
class Drawing:
    """The review as ``rich`` draws it: verdict first, then figures, advice, histogram and worst failovers."""

    review: Review
    before: Review | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it as wide as the console is."""
        review = self.review
        yield Text(verdict(review), style=COLOURS[review.state])
        planned = sum(one.planned for one in review.failovers)
        drills = sum(bool(one.drill) for one in review.failovers)
        yield Text(
            f"pool {review.pool}, {when(review.start_ns)} to {when(review.end_ns)} UTC: {len(review.failovers)} changes"
            f" of active, {planned} planned, {drills} drills",
            style="dim",
        )
        yield _table(review, self.before, options.max_width)
        for figure in review.figures:
            told = "; ".join(filter(None, (figure.basis, figure.advice)))
            if told and figure.state is not State.NOT_JUDGED:
                line = Text(f"{figure.title}: ", style=COLOURS[figure.state], overflow="fold")
                yield line.append(told, "default")
        if review.left_out:
            yield Text(left_out_told(review), style="dim", overflow="fold")
        yield from _traffic(review)
        yield from _histogram(review, options)
        for one in review.worst[:_WORST]:
            yield Text()
            yield from _waterfall(one, options)
        yield from _costliest(review)


def _table(review: Review, before: Review | None, width: int) -> Table:
    """Every figure in a line. If 80 columns are too few, words continue in the next line, and numbers are never cut."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2 if width >= 100 else 1, 0, 0))
    for column in ("objective", "state"):
        table.add_column(column)
    earlier = {figure.key: figure for figure in before.figures} if before else {}
    for column in ("found", *(("before",) if before else ()), "wanted", "of", "budget", "burn"):
        table.add_column(column, justify="right", no_wrap=True)
    for figure in review.figures:
        table.add_row(
            figure.title,
            Text(str(figure.state), style=COLOURS[figure.state]),
            figure.shown,
            *((earlier[figure.key].shown,) if before else ()),
            figure.wanted,
            str(figure.total or "-"),
            budget_told(figure),
            Text(burn_told(figure), style="bold red" if burning(figure) else ""),
        )
    return table


def budget_told(figure: Figure) -> str:
    """What is left of the budget, in percent; ``-`` without a budget."""
    return "-" if figure.budget_left is None else share_told(figure.budget_left, 0)


def burning(figure: Figure) -> Burn | None:
    """The first burn rate that alerts; None if none does."""
    return next((burn for burn in figure.burns if burn.firing), None)


def burn_told(figure: Figure) -> str:
    """How many times too fast the budget is spent; ``-`` if no burn rate alerts."""
    burn = burning(figure)
    return "-" if burn is None else f"{burn.long_rate:.1f}x"


def left_out_told(review: Review) -> str:
    """What the review does not judge, in words."""
    belong = f"{review.left_out} changes of active belong to stops and starts of the pool"
    return f"{belong}: of those only lost replicas writes count"


def _traffic(review: Review) -> RenderResult:
    traffic = review.traffic
    if traffic.requests is None:
        return
    envoys = "1 Envoy" if traffic.nodes == 1 else f"{traffic.nodes} Envoys"
    yield Text(
        f"{traffic.requests} requests through {envoys}, counted for {share_told(traffic.covered, 0)} of the time", "dim"
    )


def _costliest(review: Review) -> RenderResult:
    """The changes in which most requests failed."""
    if not review.costliest:
        return
    yield Text()
    yield Text("changes in which most requests failed", style="dim")
    for one in review.costliest[:_WORST]:
        yield Text(f"{when(one.began_ns)} UTC, {change_told(one)}: {requests_told(one)} (trace {one.trace})")


def _histogram(review: Review, options: ConsoleOptions) -> RenderResult:
    rows = buckets([one.total_ms or 0.0 for one in review.crashes])
    if not rows:
        return
    yield Text()
    yield Text("crash RTO, number of failovers", style="dim")
    most = max(count for _, count in rows)
    width = max(10, min(60, options.max_width - 24))
    for name, count in rows:
        cells = round(count * width * 8 / most)
        ascii_only = options.ascii_only or options.legacy_windows
        bar = "#" * round(cells / 8) if ascii_only else "█" * (cells // 8) + (_BARS[cells % 8 - 1] if cells % 8 else "")
        yield Text(f"{name:>12} {count:>5} ").append(bar, "cyan")


def _waterfall(one: Failover, options: ConsoleOptions) -> RenderResult:
    """How much time each phase of one failover took; the parts add up to the total."""
    total = one.total_ms or 0.0
    drill = f", drill: {one.drill}" if one.drill else ""
    source = f" from {_safe(one.source)}" if one.source else ""
    yield Text(f"{length(total)}{source} at {when(one.began_ns)} UTC{drill}", style="bold")
    yield Text(f"trace {one.trace}, {one.slots} slots: {_safe(one.cause)}", style="dim")
    if requests_told(one):
        yield Text(requests_told(one), style="dim")
    width = max(10, min(60, options.max_width - 32))
    at = 0.0
    mark = "=" if options.ascii_only or options.legacy_windows else "━"
    for name, ms in one.costs.items():
        begin = min(round(at * width / total), width - 1) if total else 0
        cells = max(1, round((at + ms) * width / total) - begin) if total else 1
        style = "bold magenta" if name == one.dearest else "cyan"
        yield Text(f"{name:<15} {length(ms):>10}  {' ' * begin}").append(mark * min(cells, width - begin), style)
        at += ms


def _figure(figure: Figure) -> dict[str, Any]:
    view = dataclasses.asdict(figure)
    view["state"] = str(figure.state)
    view["burns"] = [{**dataclasses.asdict(burn), "firing": burn.firing} for burn in figure.burns]
    return view


def _failover(one: Failover) -> dict[str, Any]:
    return {
        "trace": one.trace,
        "began": when(one.began_ns),
        "total_ms": round(one.total_ms or 0.0, 3),
        "from": one.source,
        "slots": one.slots,
        "cause": one.cause,
        "drill": one.drill,
        "requests": None if one.through is None else dataclasses.asdict(one.through),
        "dearest": one.dearest,
        "costs_ms": {name: round(ms, 3) for name, ms in one.costs.items()},
    }


def _safe(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200]
