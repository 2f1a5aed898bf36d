"""What ``understudy up`` shows while it runs: the pool at this moment, its failovers, and three things to try."""

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from understudy.deploy.common.layout import Layout
from understudy.deploy.inspect.member_views import View
from understudy.deploy.inspect.tables import TRACE_SHOWN, change_text, members_table, processes_table
from understudy.deploy.inspect.traces import read_durations
from understudy.deploy.local.processes import State
from understudy.deploy.local.starting import APP_SUFFIX
from understudy.telemetry.timing.duration import length

SHOWN = 3
"""Failovers in the picture; 'understudy failovers' has them all."""
LENGTHS_KNOWN = 60.0
"""Seconds after its begin within which a failover's length is asked for: it is recorded when the failover is over."""
LENGTHS_PATIENCE = 0.5
UNCHANGED = 2.0
"""Seconds after which a failover is told as a line: its slots come in several steps."""


@dataclass(frozen=True, slots=True)
class Now:
    """The pool at one moment. ``view`` is the answer of ``status``; without it ``trouble`` says why it is not known."""

    layout: Layout
    processes: Sequence[Mapping[str, Any]]
    example: bool
    tcp: bool
    view: View | None = None
    trouble: str = ""
    failovers: Sequence[Mapping[str, Any]] = ()


class Failovers:
    """The changes of active since this was made, with their lengths as far as ``controls`` (admin addresses) know."""

    def __init__(self, controls: Sequence[str]) -> None:
        self._controls = controls
        self._since = time.time()
        self._lengths: dict[str, float] = {}
        self._seen: dict[str, tuple[int, float]] = {}
        self._told: set[str] = set()

    async def latest(self, rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Those of ``rows`` (the answer of ``failovers``) that are to be shown, the latest first."""
        mine = [row for row in rows if row["started"] >= self._since][:SHOWN]
        young = [row for row in mine if time.time() - row["started"] < LENGTHS_KNOWN]
        if any(row["trace"] not in self._lengths for row in young):
            with contextlib.suppress(TimeoutError):
                asked = read_durations(self._controls, 4 * SHOWN)
                self._lengths |= await asyncio.wait_for(asked, LENGTHS_PATIENCE)
        return [{**row, "took_ms": self._lengths.get(row["trace"])} for row in mine]

    def to_tell(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """The failovers that are complete and were not told before, a line each, the oldest first."""
        now, lines = time.monotonic(), []
        for row in reversed(rows):
            slots, since = self._seen.get(row["trace"], (-1, now))
            if slots != row["slots"]:
                self._seen[row["trace"]] = (row["slots"], now)
            elif now - since >= UNCHANGED and row["trace"] not in self._told:
                self._told.add(row["trace"])
                lines.append(f"{failover_line(row)}; see 'understudy trace {row['trace'][:TRACE_SHOWN]}'")
        return lines


def failover_line(row: Mapping[str, Any]) -> str:
    """A failover in one line: when, how long, and what."""
    took = "" if row["took_ms"] is None else f" took {length(row['took_ms'])}:"
    at = time.strftime("%H:%M:%SZ", time.gmtime(row["started"]))
    return f"{at}{took} {change_text(row)}"


def picture(now: Now) -> RenderableType:
    """All of it. What a low terminal has no room for is cut off at the end, so the processes come last."""
    processes = processes_table(now.processes)
    if now.view is None:
        return Group(Text(now.trouble, style="red"), processes)
    failovers = [
        Text(
            failover_line(row),
            style="cyan" if row["kind"] == "handover" else "yellow",
            no_wrap=True,
            overflow="ellipsis",
        )
        for row in now.failovers
    ]
    return Group(
        Text(line(now), style="bold"), members_table(now.view["members"]), *failovers, things_to_try(now), processes
    )


def line(now: Now) -> str:
    """The pool's state in one line."""
    if now.view is None:
        return now.trouble
    slots = now.view["slots"]
    members = ", ".join(f"{m['member']} {m['state']} ({m['active']} active)" for m in now.view["members"])
    ailing = [process for process in now.processes if process["state"] != State.RUNNING]
    return f"{slots['served']} of {slots['total']} slots served; {members}" + "".join(
        f"; {process['name']} {process['state']}: {process['reason']}" for process in ailing
    )


def killable(now: Now) -> tuple[str, str]:
    """A member that runs, and the command that kills it as it is now; texts are empty if none runs."""
    running = {process["name"]: process["pid"] for process in now.processes if process["state"] == State.RUNNING}
    for place in now.layout.members:
        pids = [running.get(f"{place.name}{part}") for part in (APP_SUFFIX, "/sidecar")]
        if all(pids):
            return place.name, f"kill -9 {' '.join(map(str, pids))}"
    return "", ""


def kill_line(now: Now) -> str:
    """How to kill a member, as a line; '' if none runs."""
    member, command = killable(now)
    return f"kill {member}: {command}" if member else ""


def things_to_try(now: Now) -> RenderableType:
    """Three things to try, ready to be copied."""
    layout = now.layout
    if now.tcp:
        use = f"nc {layout.front.listen.replace(':', ' ')}" + ("   # and say: ADD 1 hello" if now.example else "")
    else:
        use = f"curl -i -X POST {layout.front_url}/cart" if now.example else f"curl -i {layout.front_url}/"
    member, kill = killable(now)
    lines = [
        ("use it", use),
        *([(f"kill {member}", kill)] if member else []),
        ("see what it did", "understudy failovers; understudy trace"),
    ]
    table = Table(box=None, pad_edge=False, show_header=False, title="Three things to try", title_justify="left")
    for what, command in lines:
        table.add_row(what, Text(command, style="cyan", overflow="fold"))
    return table


def addresses(layout: Layout, *, tcp: bool) -> RenderableType:
    """Where everything listens; ``tcp``: the applications are not HTTP."""
    scheme = "" if tcp else "http://"
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_row("your clients", f"{scheme}{layout.front.listen}")
    table.add_row("front Envoy's admin", f"http://{layout.front.admin}")
    for control in layout.controls:
        otlp = f", http://{control.otlp_http} (OTLP/HTTP)" if control.otlp_http else ""
        table.add_row(control.name, f"http://{control.http} (admin), {control.grpc} (xDS and OTLP){otlp}")
    table.add_row("etcd", ", ".join(layout.etcd))
    for member in layout.members:
        where = f"{scheme}{member.app} (application), http://{member.session_api} (session API)"
        table.add_row(member.name, where)
    return table
