"""The console in a terminal, for ``understudy top``: one frame as a screen of text. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.text import Text

from understudy.deploy.common.console_style import coloured, plain_table, utc_time
from understudy.deploy.console.frame import Frame
from understudy.deploy.inspect.versions import versions_table

TONES = ("white on blue", "black on yellow", "white on dark_green", "white on magenta", "black on cyan", "white on red")
"""The colours of members on the slot map. A letter stands for the member too, so that colour is not needed."""
UNKNOWN_TONE = "black on white"
ROW_CELLS = 32
NARROW_CELLS = 16
NARROW = 103
"""Columns below which a row of the map has :data:`NARROW_CELLS` slots."""
MAP_ROWS_MOST = 16
PROBLEMS_SHOWN = 5
FAILOVERS_SHOWN = 5
MEMBERS_SHOWN = 20
LEVELS = {"alert": "bold red", "warning": "yellow", "notice": "cyan"}


class Currency(msgspec.Struct, frozen=True):
    """How current the frame is.

    Attributes:
        read_at: wall time of the frame, in seconds.
        silent_for: seconds since etcd was last heard; 0 while all is well.
        trouble: the last error of etcd.
        paused: whether the operator has paused the screen.
    """

    read_at: float
    silent_for: float = 0.0
    trouble: str = ""
    paused: bool = False

    def said(self) -> Text:
        """In words."""
        if self.paused:
            return Text(f"PAUSED at {utc_time(self.read_at)}, p goes on", style="bold yellow")
        if self.silent_for:
            why = f": {self.trouble}" if self.trouble else ""
            return Text(f"STALE, etcd has been silent for {self.silent_for:.0f} s{why}", style="bold red")
        return Text(f"live, {utc_time(self.read_at)}", style="green")


def screen(frame: Frame, currency: Currency, width: int) -> RenderableType:
    """The whole screen. What does not fit is cut off by the terminal, so the important things come first."""
    overview = frame.overview
    head = Text.assemble((f"pool {frame.pool}", "bold"), f"  etcd revision {frame.revision}  ", currency.said())
    parts: list[RenderableType] = [head, Text(overview["sentence"]), Text(overview["exposure"], style="dim")]
    parts += _problems(overview)
    parts += [Text(), *_slot_map(frame, NARROW_CELLS if width < NARROW else ROW_CELLS), Text(), _members(frame)]
    if overview["versions"]:
        parts += [Text(), versions_table(overview["versions"])]
    parts += [Text(), _failovers(frame), Text(_traffic(overview), style="dim")]
    parts.append(Text("q quits, p pauses", style="dim"))
    return Group(*parts)


def _problems(overview: Mapping[str, Any]) -> Iterable[RenderableType]:
    problems = overview["problems"]
    for one in problems[:PROBLEMS_SHOWN]:
        since = f" (since {utc_time(one['since'])})" if one["since"] else ""
        yield Text.assemble((f"! {one['text']}{since}: ", LEVELS[one["level"]]), (one["command"], "bold"))
    more = len(problems) - PROBLEMS_SHOWN + overview["more_problems"]
    if more > 0:
        yield Text(f"! and {more} more: understudy status", style="yellow")


def _slot_map(frame: Frame, cells: int) -> Iterable[RenderableType]:
    """A cell for each slot: the letter of its active, ``.`` for a single copy, ``>`` for a slot that is moving."""
    slots = list(frame.objects["slots"].values())
    if not slots:
        yield Text("no slot table is known yet", style="dim")
        return
    rows = [slots[first : first + cells] for first in range(0, len(slots), cells)]
    for row in rows[:MAP_ROWS_MOST]:
        line = Text(f"{row[0]['slot']:>5} ", style="dim")
        for one in row:
            sign = ">" if one["moving"] else "." if one["copies"] == 1 else " "
            line.append(f"{one['mark'][:2]}{sign}".ljust(3)[:3], style=_tone(one["tone"]))
        yield line
    if len(rows) > MAP_ROWS_MOST:
        yield Text(f"      and {len(slots) - MAP_ROWS_MOST * cells} more slots: understudy table --all", style="dim")


def _tone(number: int) -> str:
    return TONES[number % len(TONES)] if number >= 0 else UNKNOWN_TONE


def _members(frame: Frame) -> RenderableType:
    table = plain_table("", "member", "state", "active", "standby", "backup", "site", "reason")
    rows = list(frame.objects["members"].values())
    for row in rows[:MEMBERS_SHOWN]:
        out = f"{row['out']}{' until ' + utc_time(row['until']) if row['until'] else ''}" if row["out"] else ""
        table.add_row(
            Text(row["mark"], style=_tone(row["tone"])),
            row["member"],
            coloured(row["state"]),
            *(str(row[role]) for role in ("active", "standby", "backup")),
            row["site"],
            "; ".join(part for part in (out, row["reason"]) if part),
        )
    if len(rows) > MEMBERS_SHOWN:
        table.add_row("", f"and {len(rows) - MEMBERS_SHOWN} more", "", "", "", "", "", "understudy status")
    return table


def _failovers(frame: Frame) -> RenderableType:
    rows = list(frame.objects["failovers"].values())[:FAILOVERS_SHOWN]
    if not rows:
        return Text("no failover yet", style="dim")
    table = plain_table("when", "what", "took", "from and to", "trace")
    for row in rows:
        table.add_row(utc_time(float(row["started"])), row["kind"], row["took"], row["who"], row["trace"][:12])
    return Columns([table])


def _traffic(overview: Mapping[str, Any]) -> str:
    traffic, rate = overview["traffic"], overview["per_second"]
    if traffic is None:
        return "requests: not known, no front Envoy has reported"
    return (
        f"requests: {'not known' if rate is None else rate}/s; in the last {traffic['minutes']} min "
        f"{traffic['elsewhere']} answered by another member, {traffic['unanswered']} not answered by their member"
    )
