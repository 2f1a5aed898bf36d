"""The result of drills as JSON data and as a table. Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from understudy.deploy.drill.conditions import DrillKind, HomeFigures, TakeOverFigures
from understudy.deploy.drill.settings import DrillResult


def view_of(pool: str, results: Sequence[DrillResult]) -> dict[str, Any]:
    """The results as JSON data. A value that was not measured is null. Times in ms, ``seconds`` in s."""
    return {
        "pool": pool,
        "ok": all(not result.missed for result in results),
        "drills": [
            {
                "kind": str(result.kind),
                "name": result.name,
                "at": datetime.fromtimestamp(result.at, tz=UTC).isoformat(timespec="milliseconds"),
                "seconds": round(result.seconds, 1),
                "requests": result.seen.requests,
                "failed_requests": result.seen.failed,
                "client_gap_ms": _triple(result.seen.gap),
                "longest_wait_ms": _triple(result.seen.wait),
                "sessions_touched": result.seen.touched,
                "lost_writes": result.seen.lost_writes,
                "moved_needlessly": result.seen.needless_moves,
                "second_writers": result.seen.second_writers,
                "slots_taken_from": dict(result.taken),
                "home": _home_view(result.home),
                "take_over": _take_over_view(result.take_over),
                "takeover_ms": None if result.seen.took_ms is None else round(result.seen.took_ms, 1),
                "missed": list(result.missed),
                "outcome": result.outcome,
                "failures": list(result.seen.failures),
                "traces": list(result.traces),
            }
            for result in results
        ],
    }


def drill_table(view: dict[str, Any]) -> RenderableType:
    """One line per drill for 80 columns, then the missed objectives."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    table.add_column("drill", overflow="fold")
    for column in ("failed", "gap ms", "wait ms", "took\nms", "lost", "moved", "trace"):
        table.add_column(column, no_wrap=True)
    parts: list[RenderableType] = [table]
    for row in view["drills"]:
        name = f"{row['kind']} {row['name']}"
        table.add_row(
            name,
            Text(f"{row['failed_requests']} of {row['requests']}", style="red" if row["failed_requests"] else ""),
            _shown(row["client_gap_ms"]),
            _shown(row["longest_wait_ms"]),
            _number(row["takeover_ms"]),
            _number(row["lost_writes"]),
            _number(row["moved_needlessly"]),
            row["traces"][0][:8] if row["traces"] else "",
        )
        parts += [Text(f"{name} missed {text}", style="red") for text in row["missed"]]
        parts += [Text(f"{name} failed {text}", style="red") for text in row["failures"]]
        if DrillKind(row["kind"]).keeps_slots:
            parts.append(Text(_link_line(row)))
        if row["home"]:
            parts.append(Text(_home_line(row)))
        if row["take_over"]:
            parts.append(Text(_take_over_line(row)))
        if row["outcome"]:
            well = row["outcome"] == "SUCCEEDED"
            parts.append(Text(f"{name}: {row['outcome']}", style="bold green" if well else "bold red"))
        if not row["requests"]:
            parts.append(Text(f"{name}: no client made a request; use --load N for own clients", style="yellow"))
    summary = "all objectives were met" if view["ok"] else "an objective was missed"
    parts.append(Text("gap and wait: p50/p99/max over sessions; -: not measured", style="dim"))
    parts.append(Text(summary, style="bold green" if view["ok"] else "bold red"))
    return Group(*parts)


def _home_view(home: HomeFigures | None) -> dict[str, Any] | None:
    if home is None:
        return None
    return {
        "mirror_lag_ms": round(home.lag * 1000, 1),
        "without_home_seconds": [round(seconds, 2) for seconds in home.without_home],
        "estimated_lost_writes": home.estimated,
        "counted_lost_writes": home.counted,
    }


def _home_line(row: dict[str, Any]) -> str:
    """How long no side was the home, and what was lost."""
    home = row["home"]
    times = " and ".join(f"{seconds:g} s" for seconds in home["without_home_seconds"])
    line = f"{row['kind']} {row['name']}: no side was the home for {times}; "
    line += f"the mirror was {home['mirror_lag_ms']:g} ms behind before"
    if home["estimated_lost_writes"] is None:
        return line
    counted = home["counted_lost_writes"]
    found = "not counted" if counted is None else f"{counted} counted afterwards"
    return f"{line}; lost: at most {home['estimated_lost_writes']} expected, {found}"


def _take_over_view(done: TakeOverFigures | None) -> dict[str, Any] | None:
    if done is None:
        return None
    return {
        "without_etcd_seconds": round(done.without_etcd, 2),
        "by_hand_seconds": round(done.by_hand, 2),
        "accepted_writes": done.accepted,
        "estimated": {
            "slots_from_memory": done.from_memory,
            "slots_from_etcd": done.from_etcd,
            "lossy_slots": done.lossy,
            "missing_revisions": done.missing,
        },
    }


def _take_over_line(row: dict[str, Any]) -> str:
    """How long there was no etcd, and what the estimate said beside what was lost."""
    done = row["take_over"]
    said = done["estimated"]
    return (
        f"{row['kind']} {row['name']}: no etcd for {done['without_etcd_seconds']:g} s, of which the take-over took "
        f"{done['by_hand_seconds']:g} s; {done['accepted_writes']} writes acknowledged without a majority; expected: "
        f"{said['slots_from_memory']} slots go on from memory, {said['slots_from_etcd']} are read from etcd, "
        f"{said['lossy_slots']} lose more, {said['missing_revisions']} revisions missing; lost: "
        f"{_number(row['lost_writes'])}"
    )


def _link_line(row: dict[str, Any]) -> str:
    """What a drill in which all members live did to the slots, and whether anybody else wrote."""
    lost = ", ".join(f"{site or 'no site'} lost {count} slots" for site, count in row["slots_taken_from"].items())
    writers = row["second_writers"]
    told = "two writers were not looked for" if writers is None else f"{writers} writes of a second writer"
    return f"{row['kind']} {row['name']}: {lost or 'no slot was taken'}; {told}"


def _triple(values: tuple[float, float, float] | None) -> dict[str, float] | None:
    return dict(zip(("p50", "p99", "max"), (round(value, 1) for value in values), strict=True)) if values else None


def _shown(triple: dict[str, float] | None) -> str:
    return "/".join(f"{value:.0f}" for value in triple.values()) if triple else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
