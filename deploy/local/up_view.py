"""The output of ``understudy up``: the state of the pool, its latest failovers, and three things to try."""

import asyncio
import contextlib
import shlex
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
from understudy.deploy.local.processes import ProcessState
from understudy.deploy.local.several_pools import client_address, layouts_of
from understudy.deploy.local.starting import APP_SUFFIX
from understudy.statesync.pool.spec import PoolSpec
from understudy.telemetry.timing.duration import length

FAILOVERS_SHOWN = 3
"""Number of failovers in the display. 'understudy failovers' lists all of them."""
DURATION_WINDOW = 60.0
"""Seconds after the start of a failover in which its duration is read. It is known when the failover is over."""
DURATION_TIMEOUT = 0.5
UNCHANGED_FOR = 2.0
"""Seconds without a change after which a failover is printed, because its slots move in several steps."""


@dataclass(frozen=True, slots=True)
class Now:
    """The pool at one moment. ``view`` is the output of ``status``; None if there is an ``error``.

    ``use`` is a command that sends a request to the pool; '' for the usual one of a pool that runs alone.
    """

    layout: Layout
    processes: Sequence[Mapping[str, Any]]
    example: bool
    tcp: bool
    view: View | None = None
    error: str = ""
    failovers: Sequence[Mapping[str, Any]] = ()
    use: str = ""


class Failovers:
    """The failovers and handovers since the start, with their durations from ``controls`` (admin addresses)."""

    def __init__(self, controls: Sequence[str]) -> None:
        self._controls = controls
        self._since = time.time()
        self._durations: dict[str, float] = {}
        self._seen: dict[str, tuple[int, float]] = {}
        self._printed: set[str] = set()

    async def latest(self, rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The rows of ``failovers`` to show, latest first."""
        mine = [row for row in rows if row["started"] >= self._since][:FAILOVERS_SHOWN]
        young = [row for row in mine if time.time() - row["started"] < DURATION_WINDOW]
        if any(row["trace"] not in self._durations for row in young):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DURATION_TIMEOUT):
                    self._durations |= await read_durations(self._controls, 4 * FAILOVERS_SHOWN)
        return [{**row, "took_ms": self._durations.get(row["trace"])} for row in mine]

    def to_print(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """A line for each failover that is complete and was not printed before, oldest first."""
        now, lines = time.monotonic(), []
        for row in reversed(rows):
            slots, since = self._seen.get(row["trace"], (-1, now))
            if slots != row["slots"]:
                self._seen[row["trace"]] = (row["slots"], now)
            elif now - since >= UNCHANGED_FOR and row["trace"] not in self._printed:
                self._printed.add(row["trace"])
                lines.append(f"{failover_line(row)}; see 'understudy trace {row['trace'][:TRACE_SHOWN]}'")
        return lines


def failover_line(row: Mapping[str, Any]) -> str:
    """A failover in one line: its time, its duration, and what changed."""
    took = "" if row["took_ms"] is None else f" took {length(row['took_ms'])}:"
    at = time.strftime("%H:%M:%SZ", time.gmtime(row["started"]))
    return f"{at}{took} {change_text(row)}"


def display(*nows: Now) -> RenderableType:
    """The whole display, of one pool or several. A low terminal cuts off the end, so the processes come last."""
    processes = {name: {**process, "name": name} for now in nows for name, process in _named_processes(now)}
    return Group(*map(_pool_display, nows), processes_table(list(processes.values())))


def _named_processes(now: Now) -> list[tuple[str, Mapping[str, Any]]]:
    """The processes by their names, which have the site in front where two sites have processes of the same names."""
    return [(f"{_site(now)}{process['name']}", process) for process in now.processes]


def _site(now: Now) -> str:
    return f"{now.layout.distant.site}: " if now.layout.distant else ""


def _pool_display(now: Now) -> RenderableType:
    if now.view is None:
        return Text(now.error, style="red")
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
        Text(f"{_site(now)}{state_line(now)}", style="bold"),
        members_table(now.view["members"]),
        *failovers,
        things_to_try(now),
    )


def state_line(now: Now) -> str:
    """The state of the pool in one line."""
    if now.view is None:
        return now.error
    slots = now.view["slots"]
    members = ", ".join(f"{m['member']} {m['state']} ({m['active']} active)" for m in now.view["members"])
    not_running = [process for process in now.processes if process["state"] != ProcessState.RUNNING]
    return f"{slots['served']} of {slots['total']} slots served; {members}" + "".join(
        f"; {process['name']} {process['state']}: {process['reason']}" for process in not_running
    )


def killable(now: Now) -> tuple[str, str]:
    """A running member, and the command that kills its processes; both are '' if none runs."""
    running = {process["name"]: process["pid"] for process in now.processes if process["state"] == ProcessState.RUNNING}
    for place in now.layout.members:
        pids = [running.get(f"{place.name}{part}") for part in (APP_SUFFIX, "/sidecar")]
        if all(pids):
            return place.name, f"kill -9 {' '.join(map(str, pids))}"
    return "", ""


def kill_line(now: Now) -> str:
    """A line with the command that kills a member; '' if none runs."""
    member, command = killable(now)
    return f"kill {member}: {command}" if member else ""


def things_to_try(now: Now) -> RenderableType:
    """Three commands to try, for copying."""
    layout = now.layout
    if now.use:
        use = now.use
    elif now.tcp:
        use = f"nc {layout.front.listen.replace(':', ' ')}" + ("   # then type: ADD 1 hello" if now.example else "")
    else:
        use = f"curl -i -X POST {layout.front_url}/cart" if now.example else f"curl -i {layout.front_url}/"
    member, kill = killable(now)
    of_pool = f" --pool {layout.pool}" if now.use else ""
    lines = [
        ("use it", use),
        *([(f"kill {member}", kill)] if member else []),
        ("see the failover", f"understudy failovers{of_pool}; understudy trace{of_pool}"),
    ]
    title = f"Three things to try with pool {layout.pool}" if now.use else "Three things to try"
    table = Table(box=None, pad_edge=False, show_header=False, title=title, title_justify="left")
    for what, command in lines:
        table.add_row(what, Text(command, style="cyan", overflow="fold"))
    return table


def distant_things(layouts: Sequence[Layout], *, example: bool) -> RenderableType:
    """Commands to try with two distant sites, for copying; the first site is the home at the first start."""
    one, other = layouts
    if one.distant is None or other.distant is None:
        raise ValueError("these pools have no peers")
    use = f"curl -i -X POST {one.front_url}/cart" if example else f"curl -i {one.front_url}/"
    here = f"UNDERSTUDY_DIR={shlex.quote(other.distant.peer_directory)}"
    lines = [
        ("see both sites", f"{here} understudy home status"),
        ("move the home", f"{here} understudy home move --to {other.distant.site}"),
        ("practise a move", f"{here} understudy drill home-move --load 100"),
        ("lose the home", f"{here} understudy drill home-loss --load 100"),
        (f"use it while {one.distant.site} is the home", use),
    ]
    table = Table(box=None, pad_edge=False, show_header=False, title="Things to try", title_justify="left")
    for what, command in lines:
        table.add_row(what, Text(command, style="cyan", overflow="fold"))
    return table


def addresses(layout: Layout, specs: Sequence[PoolSpec]) -> RenderableType:
    """The addresses of all processes of the pools with these specs."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    pools = list(zip(layouts_of(layout), specs, strict=True))
    for own, spec in pools:
        if len(pools) > 1:
            table.add_row(f"clients of {spec.pool}", client_address(own, spec))
        else:
            for front in (own.front, *layout.site_fronts):
                table.add_row(f"clients on {front.site}" if front.site else "clients", f"{_scheme(spec)}{front.listen}")
    for front in (layout.front, *layout.site_fronts):
        of = f" of {front.site}" if front.site else ""
        table.add_row(f"front Envoy admin{of}", f"http://{front.admin}")
    if layout.distant:
        table.add_row("metrics of the mirror", f"http://{layout.distant.metrics}/metrics")
    for control in layout.controls:
        otlp = f", http://{control.otlp_http} (OTLP/HTTP)" if control.otlp_http else ""
        table.add_row(control.name, f"http://{control.http} (admin), {control.grpc} (xDS and OTLP){otlp}")
    table.add_row("console", f"http://{layout.controls[0].http}/console/")
    table.add_row("etcd", ", ".join(layout.etcd))
    for own, spec in pools:
        for member in own.members:
            where = f"{_scheme(spec)}{member.app} (application), http://{member.session_api} (session API)"
            where += f", redis://{member.redis}"
            table.add_row(member.name, where)
    return table


def _scheme(spec: PoolSpec) -> str:
    """What the URLs of applications begin with; nothing where they do not speak HTTP."""
    return "" if spec.tcp else "http://"
