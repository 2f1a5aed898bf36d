"""``understudy up``: runs a local pool until it is stopped, and shows its state."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from rich.console import Console
from rich.live import Live

from understudy.deploy.common.console_style import Terminal
from understudy.deploy.common.layout import Layout
from understudy.deploy.common.printable import printable_view
from understudy.deploy.inspect.member_views import View
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.inspect.views import failovers_view, status_view
from understudy.deploy.local.linked_pool import WITNESS, LinkedPool
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.deploy.local.processes import as_json
from understudy.deploy.local.several_pools import layouts_of, request_command
from understudy.deploy.local.site_networks import site_network
from understudy.deploy.local.up_view import Failovers, Now, addresses, display, kill_line, state_line, things_to_try
from understudy.statesync.etcd.client import EtcdClient, EtcdError
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.process.services import set_within

T = TypeVar("T")
REFRESH_INTERVAL = 0.5


async def run_up(settings: LocalSettings) -> int:
    """Run the pool until SIGINT or SIGTERM. Returns the exit code. Raises ``DeployError`` if it cannot start."""
    console = Terminal()
    with contextlib.ExitStack() as stack:
        pool = _pool(settings, stack, console)
        return await _run(pool, console)


def _pool(settings: LocalSettings, stack: contextlib.ExitStack, console: Console) -> LocalPool:
    """The pool, not started yet; its networks are gone when the stack is closed."""
    if not settings.links:
        return LocalPool(settings, say=console.print)
    net = stack.enter_context(site_network([*settings.sites, WITNESS], settings.directory))
    return LinkedPool(settings, net, say=console.print)


async def _run(pool: LocalPool, console: Console) -> int:
    async with stop_signal() as stopping:
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
            console.print(addresses(pool.layout, pool.settings.specs))
            await _show_until(stopping, pool, console)
        finally:
            console.print("stopping ...")
            await pool.__aexit__()
    return 0


@contextlib.asynccontextmanager
async def stop_signal() -> AsyncIterator[asyncio.Event]:
    """An event that SIGINT and SIGTERM set while the context is open."""
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    try:
        yield stopping
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


class Interrupted(Exception):
    """The process got SIGINT (Ctrl-C) or SIGTERM."""


async def unless(stopping: asyncio.Event, work: Awaitable[T]) -> T:
    """Wait for ``work``. If the event is set first, cancel it, let it clean up, and raise :class:`Interrupted`."""
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


@dataclass(frozen=True, slots=True)
class _Watched:
    """One of the pools, and its failovers since the start."""

    layout: Layout
    spec: PoolSpec
    failovers: Failovers


async def _show_until(stopping: asyncio.Event, pool: LocalPool, console: Console) -> None:
    """Show the pool's state until it stops: a live display on a terminal, else one line per change."""
    controls = [place.http for place in pool.layout.controls]
    pools = [
        _Watched(layout, spec, Failovers(controls))
        for layout, spec in zip(layouts_of(pool.layout), pool.settings.specs, strict=True)
    ]
    async with EtcdClient(pool.etcd_endpoints) as client:
        if not console.is_terminal:
            await _print_changes(stopping, pool, client, console, pools)
            return
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while not stopping.is_set():
                live.update(display(*[await _read(client, pool, one) for one in pools]), refresh=True)
                await set_within(stopping, REFRESH_INTERVAL)


async def _print_changes(
    stopping: asyncio.Event, pool: LocalPool, client: EtcdClient, console: Console, pools: Sequence[_Watched]
) -> None:
    printed = {}
    for one in pools:
        first = _now(pool, one)
        console.print(things_to_try(first))
        printed[one.spec.pool, "kill"] = kill_line(first)
    while not stopping.is_set():
        for one in pools:
            now = await _read(client, pool, one)
            which = f"pool {one.spec.pool}: " if len(pools) > 1 else ""
            for what, text in {"state": state_line(now), "kill": kill_line(now)}.items():
                if text and printed.get((one.spec.pool, what)) != text:
                    console.print(f"{which}{text}", soft_wrap=True)
                    printed[one.spec.pool, what] = text
            for text in one.failovers.to_print(now.failovers):
                console.print(f"{which}{text}", soft_wrap=True)
        await set_within(stopping, REFRESH_INTERVAL)


def _now(pool: LocalPool, one: _Watched) -> Now:
    """The state without that from etcd."""
    settings = pool.settings
    others = {member.name for layout in layouts_of(pool.layout) for member in layout.members}
    others -= {member.name for member in one.layout.members}
    return Now(
        one.layout,
        [process for process in as_json(pool.processes.all) if str(process["name"]).partition("/")[0] not in others],
        example=not settings.app,
        tcp=one.spec.tcp is not None,
        use=request_command(one.layout, one.spec) if settings.more else "",
    )


async def _read(client: EtcdClient, pool: LocalPool, one: _Watched) -> Now:
    now = _now(pool, one)
    try:
        state, revision = await read_pool(client, one.spec.pool)
    except EtcdError as error:
        return replace(now, error=f"etcd: {error}")
    view: View = printable_view(status_view(state, revision=revision))
    rows = printable_view(await one.failovers.latest(failovers_view(state)["failovers"]))
    return replace(now, view=view, failovers=tuple(rows))
