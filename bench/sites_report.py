"""The figures of ``bench.sites``: what is known of an event, summaries, and the tables of docs/benchmarks.md."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.failover_load import WINDOW
from understudy.deploy.load.history_checker import percentile

CLASSES = ("sync", "replicas")
EVENT_COLUMNS = (
    "ms one way | event | events | gap p50, ms | p99 | slowest session: median | p99 | worst | failed of requests "
    "| lost: `sync` | `replicas` | moved | needless"
)
COST_COLUMNS = "ms one way | copies | class | write p50, ms | p99 | slots with copies on both sites"
STEADY_COLUMNS = (
    f"ms one way | requests without an event: p50, ms | p99 | p99 of each session's slowest in {WINDOW:g} s "
    "| lag of copies: p50 | p99"
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One event. ``gaps``: ms for each session that the site had served. ``lost``: sessions by class.

    ``moved``: sessions that the event moved as it must; ``needless``: those that were on the other site and moved.
    ``leader``: the site of etcd's leader before it. ``late``: by how many ms the clients' process was late at the most.
    """

    kind: str
    site: str
    leader: str
    requests: int
    failed: int
    gaps: tuple[float, ...]
    lost: dict[str, int]
    moved: int
    needless: int
    errors: tuple[str, ...]
    seconds: float
    late: float


def rows_of(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """The rows of a delay by their titles; those without an event are left out."""
    losses = [one for one in outcomes if one.kind == "loss"]
    rows = {
        "loss of a site": losses,
        "loss, etcd's leader on this site": [one for one in losses if one.leader == one.site],
        "loss, etcd's leader elsewhere": [one for one in losses if one.leader != one.site],
        "planned switch": [one for one in outcomes if one.kind == "switch"],
    }
    return {title: summary(found) for title, found in rows.items() if found}


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of a row. ``gap``: of all sessions. ``worst``: of the slowest session of each event. In ms."""
    gaps = [gap for one in outcomes for gap in one.gaps]
    worst = [max(one.gaps, default=0.0) for one in outcomes]
    return {
        "events": len(outcomes),
        "requests": sum(one.requests for one in outcomes),
        "failed": sum(one.failed for one in outcomes),
        "lost": {name: sum(one.lost[name] for one in outcomes) for name in CLASSES},
        "moved": sum(one.moved for one in outcomes),
        "needless": sum(one.needless for one in outcomes),
        "gap_ms": {f"p{part}": round(percentile(gaps, part / 100), 1) for part in (50, 99)},
        "worst_ms": {f"p{part}": round(percentile(worst, part / 100), 1) for part in (50, 99, 100)},
        "each": [
            {
                "site": one.site,
                "leader": one.leader,
                "worst_ms": round(max(one.gaps, default=0.0), 1),
                "failed": one.failed,
                "lost": one.lost,
                "errors": one.errors,
                "seconds": one.seconds,
                "late_ms": one.late,
            }
            for one in outcomes
        ],
    }


def table(results: dict[str, Any]) -> str:
    """The figures as Markdown: events, what writes take if that was measured, and requests without an event."""
    delays = results["delays"].items()
    parts = [
        _markdown(EVENT_COLUMNS, [_event_row(delay, *row) for delay, found in delays for row in found["rows"].items()]),
        _markdown(COST_COLUMNS, [_cost_row(delay, row) for delay, found in delays for row in found["costs"]]),
        _markdown(STEADY_COLUMNS, [_steady_row(delay, found["steady"]) for delay, found in delays]),
    ]
    return "\n\n".join(filter(None, parts))


def _markdown(columns: str, rows: Sequence[str]) -> str:
    """A table; '' without rows."""
    return "\n".join([f"| {columns} |", "|---" * (columns.count("|") + 1) + "|", *rows]) if rows else ""


def _event_row(delay: str, title: str, row: dict[str, Any]) -> str:
    gap, worst = row["gap_ms"], row["worst_ms"]
    times = (gap["p50"], gap["p99"], worst["p50"], worst["p99"], worst["p100"])
    counts = (row["lost"]["sync"], row["lost"]["replicas"], row["moved"], row["needless"])
    failed = f"{row['failed']} of {row['requests']}"
    shown = [delay, title, row["events"], *(f"{time:.0f}" for time in times), failed, *counts]
    return f"| {' | '.join(map(str, shown))} |"


def _cost_row(delay: str, row: dict[str, Any]) -> str:
    shown = [delay, f"`{row['copies']}`", f"`{row['class']}`", f"{row['p50']:.1f}", f"{row['p99']:.1f}"]
    return f"| {' | '.join(shown)} | {100 * row['crossing']:.0f} % |"


def _steady_row(delay: str, steady: dict[str, Any]) -> str:
    taken = steady["latency_ms"]
    shown = [taken["p50"], taken["p99"], taken["slowest_p99"], *steady["lag_ms"].values()]
    return f"| {delay} | {' | '.join(f'{value:.0f}' for value in shown)} |"
