"""``understudy up``: runs a local pool until it is stopped, and shows its state."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from understudy.deploy.common.console_style import Terminal
from understudy.deploy.common.layout import Layout
from understudy.deploy.common.printable import printable_view
from understudy.deploy.inspect.member_views import View
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.inspect.views import failovers_view, status_view
from understudy.deploy.local.distant_pools import DistantPools, home_lines
from understudy.deploy.local.linked_pool import WITNESS, LinkedPool
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.deploy.local.processes import as_json
from understudy.deploy.local.several_pools import layouts_of, request_command
from understudy.deploy.local.site_networks import site_network
from understudy.deploy.local.up_view import (
    Failovers,
    Now,
    addresses,
    display,
    distant_things,
    kill_line,
    state_line,
    things_to_try,
)
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

        async def show(stopping: asyncio.Event) -> None:
            console.print(addresses(pool.layout, pool.settings.specs))
            await _show_until(stopping, [pool], console)

        return await _run(pool, show, console)


async def run_distant(settings: LocalSettings, sites: tuple[str, str]) -> int:
    """Run the pools of two distant sites; otherwise as :func:`run_up`."""
    console = Terminal()
    pools = DistantPools(settings, sites, console.print)

    async def show(stopping: asyncio.Event) -> None:
        for pool in pools.pools:
            console.print(f"site {pool.distant.site}", style="bold")
            console.print(addresses(pool.layout, pool.settings.specs))
        console.print(distant_things([pool.layout for pool in pools.pools], example=not settings.app))
        await _show_until(stopping, pools.pools, console, pools)

    return await _run(pools, show, console)


def _pool(settings: LocalSettings, stack: contextlib.ExitStack, console: Console) -> LocalPool:
    """The pool, not started yet; its networks are gone when the stack is closed."""
    if not settings.links:
        return LocalPool(settings, say=console.print)
    net = stack.enter_context(site_network([*settings.sites, WITNESS], settings.directory))
    return LinkedPool(settings, net, say=console.print)


async def _run(
    pool: LocalPool | DistantPools, show: Callable[[asyncio.Event], Awaitable[None]], console: Console
) -> int:
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
            await show(stopping)
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
    """One of the pools, where it runs, and its failovers since the start. ``which`` names it if it is not alone."""

    runs: LocalPool
    etcd: EtcdClient
    layout: Layout
    spec: PoolSpec
    failovers: Failovers
    which: str


async def _show_until(
    stopping: asyncio.Event, pools: Sequence[LocalPool], console: Console, distant: DistantPools | None = None
) -> None:
    """Show the pools' state until it stops: a live display on a terminal, else one line per change."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(EtcdClient(pool.etcd_endpoints)) for pool in pools]
        watched = [one for pool, client in zip(pools, clients, strict=True) for one in _watched(pool, client)]

        async def home() -> list[str]:
            return await home_lines(distant, clients) if distant is not None else []

        if not console.is_terminal:
            await _print_changes(stopping, console, watched, home)
            return
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while not stopping.is_set():
                shown = [*map(Text, await home()), display(*[await _read(one) for one in watched])]
                live.update(Group(*shown), refresh=True)
                await set_within(stopping, REFRESH_INTERVAL)


def _watched(pool: LocalPool, client: EtcdClient) -> list[_Watched]:
    controls, pools = [place.http for place in pool.layout.controls], layouts_of(pool.layout)
    distant = pool.layout.distant
    which = f"site {distant.site}: " if distant else "pool {}: " if len(pools) > 1 else ""
    return [
        _Watched(pool, client, layout, spec, Failovers(controls), which.format(spec.pool))
        for layout, spec in zip(pools, pool.settings.specs, strict=True)
    ]


async def _print_changes(
    stopping: asyncio.Event,
    console: Console,
    pools: Sequence[_Watched],
    home: Callable[[], Awaitable[list[str]]],
) -> None:
    printed = {}
    for one in pools:
        first = _now(one)
        if not one.layout.distant:
            console.print(things_to_try(first))
        printed[one.which, "kill"] = kill_line(first)
    while not stopping.is_set():
        for line in (await home())[:1]:
            if printed.get(("", "home")) != line:
                console.print(line, soft_wrap=True)
                printed["", "home"] = line
        for one in pools:
            now = await _read(one)
            for what, text in {"state": state_line(now), "kill": kill_line(now)}.items():
                if text and printed.get((one.which, what)) != text:
                    console.print(f"{one.which}{text}", soft_wrap=True)
                    printed[one.which, what] = text
            for text in one.failovers.to_print(now.failovers):
                console.print(f"{one.which}{text}", soft_wrap=True)
        await set_within(stopping, REFRESH_INTERVAL)


def _now(one: _Watched) -> Now:
    """The state without that from etcd."""
    pool, settings = one.runs, one.runs.settings
    others = {member.name for layout in layouts_of(pool.layout) for member in layout.members}
    others -= {member.name for member in one.layout.members}
    return Now(
        one.layout,
        [process for process in as_json(pool.processes.all) if str(process["name"]).partition("/")[0] not in others],
        example=not settings.app,
        tcp=one.spec.tcp is not None,
        use=request_command(one.layout, one.spec) if settings.more else "",
    )


async def _read(one: _Watched) -> Now:
    now = _now(one)
    try:
        state, revision = await read_pool(one.etcd, one.spec.pool)
    except EtcdError as error:
        return replace(now, error=f"etcd: {error}")
    view: View = printable_view(status_view(state, revision=revision))
    rows = printable_view(await one.failovers.latest(failovers_view(state)["failovers"]))
    return replace(now, view=view, failovers=tuple(rows))
