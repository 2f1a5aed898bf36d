"""``understudy top``: a pool in a terminal, live, until it is ended."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.options import (
    EtcdOptions,
    PoolLocation,
    etcd_options,
    examples,
    locate_pool,
    pool_option,
)

if TYPE_CHECKING:
    from understudy.deploy.console.frame import Frame, Surroundings
    from understudy.statesync.etcd.informer import Informer, InformerBatch
    from understudy.statesync.pool.state import PoolState

LEAST_INTERVAL = 0.25
"""Seconds between two screens: four a second at the most."""
REFRESH_SECONDS = 1.0
ASK_SECONDS = 2.0
"""Seconds between two questions to the control servers about heartbeats, Envoys and requests."""
FIRST_READ_TIMEOUT = 5.0


@click.command(
    epilog=examples(
        "understudy top",
        "understudy top --etcd etcd-0:2379 --pool cart",
    )
)
@pool_option(required=False)
@etcd_options
def top(pool: str | None, etcd: EtcdOptions) -> None:
    """Show a pool live in this terminal: slot map, members, problems, latest failovers. q quits, p pauses.

    The screen follows etcd's watch, so a change of active is shown within half a second. Each screen is at one etcd
    revision. While etcd is silent the screen says for how long.
    """
    if not sys.stdout.isatty():
        raise DeployError("top needs a terminal; in a pipe use 'understudy status --watch'")
    asyncio.run(_top(locate_pool(etcd, pool)))


class Screen:
    """What is shown, from the pool's records and what control servers say."""

    def __init__(self, state: "PoolState") -> None:
        from understudy.deploy.console.frame import Surroundings

        self.state = state
        self.around: Surroundings = Surroundings()
        self.changed = asyncio.Event()
        self.paused = False
        self.quit = False
        self._revision = 0
        self._frame: Frame | None = None
        self._read_at = 0.0

    def on_batch(self, batch: "InformerBatch") -> None:
        """Take in records of etcd."""
        self.state.apply(batch)
        self._revision = max(self._revision, batch.revision)
        self.changed.set()

    def on_key(self, key: str) -> None:
        """A key was pressed."""
        self.quit = self.quit or key in "qQ\x04"
        self.paused = not self.paused if key in "pP " else self.paused
        self.changed.set()

    def frame(self) -> "tuple[Frame, float]":
        """The frame to show, and when it was made (wall time); while the screen is paused that of before."""
        from understudy.deploy.console.frame import frame_of

        if self._frame is None or not self.paused:
            self._read_at = time.time()
            self._frame = frame_of(self.state, self._revision, self._read_at, self.around)
        return self._frame, self._read_at


async def _top(place: PoolLocation) -> None:
    from understudy.deploy.inspect.query import connect, require_pool
    from understudy.statesync.etcd.informer import Informer
    from understudy.statesync.pool.keys import PoolKeys
    from understudy.statesync.pool.state import PoolState

    screen = Screen(PoolState(PoolKeys(place.pool)))
    async with connect(place.etcd) as client:
        informer = Informer(client, screen.state.keys.records, screen.on_batch)
        following = asyncio.create_task(informer.run())
        asking = asyncio.create_task(_keep_asking(screen, place.pool, informer.synced))
        try:
            try:
                async with asyncio.timeout(FIRST_READ_TIMEOUT):
                    await informer.synced.wait()
            except TimeoutError:
                where = ", ".join(place.etcd.endpoints)
                raise DeployError(f"etcd does not answer at {where}: {informer.trouble or 'no answer'}") from None
            require_pool(screen.state, place.etcd)
            with _keys(screen):
                await _draw(screen, informer)
        finally:
            for task in (following, asking):
                task.cancel()
            await asyncio.gather(following, asking, return_exceptions=True)


async def _draw(screen: Screen, informer: "Informer") -> None:
    """Draw until q, Ctrl-C or SIGTERM."""
    from rich.live import Live

    from understudy.deploy.common.console_style import Terminal
    from understudy.deploy.console.terminal import Currency
    from understudy.deploy.console.terminal import screen as draw
    from understudy.deploy.local.up import stop_signal
    from understudy.statesync.etcd.informer import OUTAGE_AFTER

    async with stop_signal() as stopping:
        with Live(console=Terminal(), screen=True, auto_refresh=False, vertical_overflow="crop") as live:
            while not (screen.quit or stopping.is_set()):
                screen.changed.clear()
                frame, read_at = screen.frame()
                silent = informer.silent_for if informer.silent_for > OUTAGE_AFTER else 0.0
                currency = Currency(read_at, silent, informer.trouble, screen.paused)
                live.update(draw(frame, currency, live.console.width), refresh=True)
                await _either(stopping, screen.changed)


async def _either(stopping: asyncio.Event, changed: asyncio.Event) -> None:
    """Wait for the end, or for a change, at least for :data:`LEAST_INTERVAL` and at most a second."""
    from understudy.statesync.process.services import set_within

    await set_within(stopping, LEAST_INTERVAL)
    await set_within(changed, REFRESH_SECONDS)


async def _keep_asking(screen: Screen, pool: str, known: asyncio.Event) -> None:
    """Ask control servers from time to time, once they are ``known``."""
    await known.wait()
    while True:
        screen.around = await _ask(screen.state, pool)
        screen.changed.set()
        await asyncio.sleep(ASK_SECONDS)


async def _ask(state: "PoolState", pool: str) -> "Surroundings":
    """What control servers say beside etcd. One that does not answer is left out."""
    from understudy.deploy.console.frame import Surroundings
    from understudy.deploy.console.measured import Measured
    from understudy.deploy.console.traffic import added, recent_rate
    from understudy.deploy.inspect.controls import ask_controls
    from understudy.deploy.inspect.envoys import read_envoys
    from understudy.deploy.inspect.fronts import front_warnings, read_fronts
    from understudy.deploy.inspect.load import load_by_member
    from understudy.deploy.inspect.member_views import heard_by
    from understudy.deploy.inspect.traces import read_durations
    from understudy.xds.control.admin import MOST_LISTED

    controls = {name: at.record.http for name, at in state.controls.items()}
    if not controls:
        return Surroundings()
    envoys, fronts, statuses, series = await asyncio.gather(
        read_envoys(controls, pool),
        read_fronts(controls, pool),
        ask_controls(controls.values(), "/v1/status", pool),
        ask_controls(controls.values(), "/v1/traffic", pool),
    )
    took: dict[str, Measured] = {}
    with contextlib.suppress(DeployError):
        durations = await read_durations(list(controls.values()), MOST_LISTED) if state.failovers else {}
        took = {trace: Measured(ms) for trace, ms in durations.items()}
    rate = recent_rate(added(series))
    warnings, load = list(front_warnings(fronts)), load_by_member(statuses)
    return Surroundings(heard_by(statuses), envoys, fronts, took, warnings, load=load, per_second=rate)


@contextlib.contextmanager
def _keys(screen: Screen) -> Iterator[None]:
    """Hand single keys to the screen, without waiting for Enter and without showing them (termios(3), cbreak)."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    loop = asyncio.get_running_loop()
    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, lambda: screen.on_key(sys.stdin.read(1)))
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
