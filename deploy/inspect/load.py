"""The load of members and slots as control servers know it: for ``status`` and for ``table --load``."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from understudy.deploy.common.console_style import plain_table
from understudy.deploy.inspect.controls import ask_controls
from understudy.deploy.inspect.member_views import View

LOAD_PATH = "/v1/load"


def load_by_member(statuses: Iterable[Any]) -> list[View]:
    """The newest report of each member, from the control servers' answers of ``/v1/status`` or ``/v1/load``."""
    found: dict[str, View] = {}
    for status in statuses:
        for row in _rows(status, "load") or _rows(status, "members"):
            name, age = row.get("member"), row.get("age_seconds")
            if isinstance(name, str) and isinstance(age, int | float):
                known = found.get(name)
                found[name] = row if known is None or age < known["age_seconds"] else known
    return [found[name] for name in sorted(found)]


def _rows(answer: Any, name: str) -> Sequence[View]:  # noqa: ANN401 - JSON
    rows = answer.get(name) if isinstance(answer, dict) else None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else ()


async def read_slot_loads(controls: Mapping[str, str], pool: str) -> dict[int, View]:
    """The load of each slot that a control server knows; that of the server that knows most."""
    answers = await ask_controls(controls.values(), LOAD_PATH, pool)
    rows = max((_rows(answer, "slots") for answer in answers), key=len, default=())
    return {row["slot"]: row for row in rows if isinstance(row.get("slot"), int)}


def balance_warnings(statuses: Iterable[Any]) -> list[str]:
    """A line if a rebalance would help, by the leading control server."""
    for status in statuses:
        advice = status.get("advice") if isinstance(status, dict) else None
        match advice:
            case {"moves": int(moves), "worst_before": float(now), "worst_after": float(after), "by": str(by)} if moves:
                busiest = f"the busiest member has {now:.2f} times its share by {by}"
                return [f"{busiest}; {moves} moves would make that {after:.2f}: 'understudy rebalance plan'"]
    return []


def busy_warnings(statuses: Iterable[Any]) -> list[str]:
    """A line for each member that will fail soon and keeps its slots since the others are too busy for them."""
    found: dict[str, str] = {}
    for status in statuses:
        told = status.get("too_busy") if isinstance(status, dict) else None
        found |= told if isinstance(told, dict) else {}
    return [f"{member} keeps its slots although it may fail soon: {why}" for member, why in sorted(found.items())]


def load_table(rows: Sequence[View]) -> RenderableType:
    """The load of each member."""
    table = plain_table("load", "calls/s", "sessions", "content", "CPU", "memory", "loop late")
    for row in rows:
        table.add_row(
            row["member"],
            f"{row['calls']:.1f}",
            str(row["sessions"]),
            size(row["bytes"]),
            f"{row['cpu']:.2f} of {row['cpus']:g}",
            f"{size(row['memory'])} of {size(row['memory_limit'])}" if row["memory_limit"] else size(row["memory"]),
            f"{row['lag_ms']:.0f} ms",
        )
    return table


def slot_load_table(view: View) -> RenderableType:
    """The slots by falling load, of ``table --load``."""
    heading = Text(f"pool {view['pool']}, table generation {view['generation']}, slots by calls/s")
    table = plain_table("slot", "active", "calls/s", "sessions", "content", "CPU", "order")
    rows = [row for row in view["slots"] if row["load"] is not None]
    for row in sorted(rows, key=lambda row: (-row["load"]["calls"], row["slot"])):
        load = row["load"]
        table.add_row(
            str(row["slot"]),
            row["owner"] or "",
            f"{load['calls']:.2f}",
            str(load["sessions"]),
            size(load["bytes"]),
            f"{load['cpu']:.3f}",
            " > ".join(row["order"]),
        )
    unknown = len(view["slots"]) - len(rows)
    note = f"slots whose load is not known yet: {unknown}" if unknown else ""
    return Group(heading, table, *([Text(note, style="dim")] if note else []))


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
