"""``understudy up``: a local pool that keeps running, with a live picture of it until it is told to stop."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from deploy.drawing import Terminal
from deploy.layout import Layout
from deploy.local import LocalPool, LocalSettings
from deploy.member_views import View
from deploy.printable import printable_view
from deploy.processes import State, as_json
from deploy.reading import read_pool
from deploy.tables import members_table, processes_table
from deploy.views import status_view
from statesync.etcd import EtcdClient, EtcdError

T = TypeVar("T")
_REFRESH = 0.5


async def run_up(settings: LocalSettings) -> int:
    """Run the pool until SIGINT or SIGTERM; returns the exit code. Raises ``DeployError`` when it cannot start."""
    console = Terminal()
    async with stop_signal() as stopping:
        pool = LocalPool(settings, say=lambda what: console.print(f"starting {what} ..."))
        starting = asyncio.create_task(pool.__aenter__())
        ended = asyncio.create_task(stopping.wait())
        await asyncio.wait({starting, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
            return 0
        ended.cancel()
        await starting
        try:
            console.print(addresses(pool.layout, tcp=settings.spec.tcp is not None))
            console.print(things_to_try(pool, example=not settings.app))
            await _show_until(stopping, pool, console)
        finally:
            console.print("stopping ...")
            await pool.__aexit__()
    return 0


@contextlib.asynccontextmanager
async def stop_signal() -> AsyncIterator[asyncio.Event]:
    """An event that SIGINT and SIGTERM set, for as long as the context is open."""
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    try:
        yield stopping
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


class Interrupted(Exception):
    """The user pressed Ctrl-C, or sent SIGTERM."""


async def unless(stopping: asyncio.Event, work: Awaitable[T]) -> T:
    """Do the work; if the event is set first, cancel it, let it clean up, and raise :class:`Interrupted`."""
    working = asyncio.ensure_future(work)
    waiting = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return await working
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
        raise Interrupted
    finally:
        waiting.cancel()


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


def things_to_try(pool: LocalPool, *, example: bool) -> RenderableType:
    """Three things to try, ready to be copied."""
    layout = pool.layout
    member = layout.members[0].name
    pids = " ".join(str(pool.processes[name].pid) for name in pool.member_processes(member))
    if pool.settings.spec.tcp:
        use = f"nc {layout.front.listen.replace(':', ' ')}" + ("   # and say: ADD 1 hello" if example else "")
    else:
        use = f"curl -i -X POST {layout.front_url}/cart" if example else f"curl -i {layout.front_url}/"
    lines = [
        ("use it", use),
        (f"kill {member}", f"kill -9 {pids}"),
        ("see what it did", "understudy failovers; understudy trace"),
    ]
    table = Table(box=None, pad_edge=False, show_header=False, title="Three things to try", title_justify="left")
    for what, command in lines:
        table.add_row(what, Text(command, style="cyan", overflow="fold"))
    return table


async def _show_until(stopping: asyncio.Event, pool: LocalPool, console: Console) -> None:
    """Show the pool's state: redrawn in a terminal, else one line per change."""
    async with EtcdClient(pool.etcd_endpoints) as client:
        if not console.is_terminal:
            await _tell_changes(stopping, pool, client, console)
            return
        with Live(console=console, auto_refresh=False) as live:
            while not stopping.is_set():
                live.update(_picture(await _read(client, pool), pool), refresh=True)
                await _wait(stopping)


async def _tell_changes(stopping: asyncio.Event, pool: LocalPool, client: EtcdClient, console: Console) -> None:
    told = ""
    while not stopping.is_set():
        line = _line(await _read(client, pool), pool)
        if line != told:
            console.print(line, soft_wrap=True)
            told = line
        await _wait(stopping)


async def _wait(stopping: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), _REFRESH)


async def _read(client: EtcdClient, pool: LocalPool) -> View | EtcdError:
    try:
        state, revision = await read_pool(client, pool.layout.pool)
    except EtcdError as error:
        return error
    view: View = printable_view(status_view(state, revision=revision))
    return view


def _picture(view: View | EtcdError, pool: LocalPool) -> RenderableType:
    processes = processes_table(as_json(pool.processes.all))
    if isinstance(view, EtcdError):
        return Group(Text(f"etcd: {view}", style="red"), processes)
    return Group(Text(_line(view, pool), style="bold"), members_table(view["members"]), processes)


def _line(view: View | EtcdError, pool: LocalPool) -> str:
    if isinstance(view, EtcdError):
        return f"etcd: {view}"
    slots = view["slots"]
    members = ", ".join(f"{m['member']} {m['state']} ({m['active']} active)" for m in view["members"])
    line = f"{slots['served']} of {slots['total']} slots served; {members}"
    ailing = [p for p in pool.processes.all if p.state is not State.RUNNING]
    return line + "".join(f"; {p.name} {p.state}: {p.reason}" for p in ailing)
