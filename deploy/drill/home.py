"""Drills of the home of a pool on two distant sites: a planned move and back, and the loss of the home.

``home-move`` moves the home to the other site and back. No acknowledged write may be lost. ``home-loss`` kills
everything at the home and keeps it down, takes over at the other site, lets the old home come back, and moves the home
back. What the old home counts as lost is compared with the estimate of just before. In both the clients of ``--load``
are sent to the new home as soon as it is the home, as a load balancer would do. At the end the home is where it was.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.layout import read_layout
from understudy.deploy.common.operator import user_name
from understudy.deploy.common.options import PoolLocation
from understudy.deploy.drill.conditions import (
    ClientView,
    DrillKind,
    HomeFigures,
    durability_of,
    not_recovered,
)
from understudy.deploy.drill.drill import COOL_DOWN, WARM_UP, Drill, to_its_end
from understudy.deploy.drill.measure import InjectedFault, LoadMeasure, clients_of
from understudy.deploy.drill.record import DrillRecorder
from understudy.deploy.drill.settings import DrillResult, DrillSettings
from understudy.deploy.inspect.query import connect, read_pool, require_pool
from understudy.deploy.mirror.records import Side
from understudy.deploy.mirror.status import home_view
from understudy.deploy.mirror.switch import Move, Moved, RefusedError, confirm, estimate, take_over
from understudy.statesync.audit.entry import Actor
from understudy.statesync.audit.log import OperatorLog
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.pool.home import UNKNOWN, Home, Role
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.state import PoolState

Say = Callable[[str], None]
MOVES_TRIED = 5
"""How often the move back is tried, if it is refused since the mirror is not ready for it."""


@dataclass(frozen=True, slots=True)
class DrillSite:
    """One of the two sites: its pool, its etcd, and the URL of its front Envoy for clients."""

    place: PoolLocation
    side: Side
    url: str

    async def home(self) -> Home | None:
        """Its home record."""
        at = await self.side.home()
        return at.record if at is not None else None

    async def state(self) -> PoolState:
        """Its pool."""
        state, _ = await read_pool(self.side.client, self.place.pool)
        return state


@asynccontextmanager
async def home_drill(
    settings: DrillSettings, place: PoolLocation, etcd: EtcdClient, say: Say
) -> AsyncIterator["HomeDrill"]:
    """A drill of the pool whose one side is at ``place``. Raises :class:`DeployError` if the other one is not known."""
    own, keys = place.layout, PoolKeys(place.pool)
    name, peer_place = _peer(settings, place)
    there = peer_place.layout
    async with connect(peer_place.etcd) as peer_etcd:
        at = await Side("this site", etcd, keys).home()
        if at is None:
            raise DeployError(f"pool {place.pool} is not part of a pair: 'understudy home pair' makes one")
        url = settings.url or (own.front_url if own else "")
        peer_url = settings.peer_url or (there.front_url if there else settings.url)
        if not url or not peer_url:
            raise DeployError(
                f"drill {settings.kind} needs --url and --peer-url, where clients reach the two sites. With "
                "'understudy up --distant' wait until both sites run"
            )
        here = DrillSite(place, Side(at.record.site, etcd, keys), url)
        other = DrillSite(peer_place, Side(name, peer_etcd, keys), peer_url)
        home, mirror = (here, other) if at.record.role is Role.HOME else (other, here)
        yield HomeDrill(settings, home, mirror, say)


def _peer(settings: DrillSettings, place: PoolLocation) -> tuple[str, PoolLocation]:
    """The name of the other site, and its pool."""
    if settings.peer:
        name, etcd = settings.peer
        return name, PoolLocation(etcd, place.pool, place.directory, None)
    distant = place.layout.distant if place.layout is not None else None
    if distant is None:
        raise DeployError(f"drill {settings.kind} needs --peer, the other site and its etcd")
    directory = Path(distant.peer_directory)
    return distant.peer, PoolLocation(EtcdSettings(distant.peer_etcd), place.pool, directory, read_layout(directory))


class HomeDrill(Drill):
    """Drills of the home. ``home`` is the site that is the home, and is it again at the end."""

    def __init__(
        self, settings: DrillSettings, home: DrillSite, mirror: DrillSite, say: Say, actor: Actor | None = None
    ) -> None:
        super().__init__(settings, home.place, home.side.client, say, actor)
        self._home = home
        self._mirror = mirror
        self._without_home: list[float] = []

    async def run(self, number: int) -> DrillResult:
        """Run one drill; ``number`` counts from 0. Raises ``DrillRefused`` unless its conditions are met."""
        await self._require_ready(number)
        before = await self._home.state(), await self._mirror.state()
        spec = require_pool(before[0], self._home.place.etcd)
        if not self._settings.rate or spec.tcp:
            raise DeployError(f"drill {self._settings.kind} needs clients of its own over HTTP: give --load N")
        measure = LoadMeasure([clients_of(spec, self._home.url, self._settings.rate)], spec.slots)
        try:
            await measure.start()
            self._say(f"measuring for {WARM_UP:g} s")
            await asyncio.sleep(WARM_UP)
            return await self._practise(before, measure)
        finally:
            await measure.close()

    async def refusals(self) -> str:
        """The reasons why the drill must not start, one per line; '' if it may."""
        view = await home_view(self._home.side, self._mirror.side)
        if view["home"] != self._home.side.name or view["degraded"]:
            return "\n".join(view["degraded"]) or f"site {self._home.side.name} is not the home"
        return await super().refusals()

    async def _practise(self, before: tuple[PoolState, PoolState], measure: LoadMeasure) -> DrillResult:
        at, began = time.time(), time.monotonic()
        _, _, loss = await estimate(self._mirror.side)  # what 'home status' says just before
        counted: int | None = None
        self._without_home = []
        lossy = self._settings.kind is DrillKind.HOME_LOSS
        judged_until = None
        try:
            if lossy:
                await self._lose(measure)
            else:
                await self._move(self._home, self._mirror, measure)
            await self._until_served(self._mirror, measure)
            self._say(f"waiting {self._settings.seconds:g} s")
            await asyncio.sleep(self._settings.seconds)
            judged_until = time.monotonic() if lossy else None  # the way back is a planned move
            await self._injector.undo()
            await self._until(self._counted, f"site {self._home.side.name} is the mirror again")
            if lossy:
                now = await self._mirror.home()
                counted = now.lost_writes if now is not None else None
        finally:
            await to_its_end(self._go_back(measure))
        await self._until_served(self._home, measure)
        await asyncio.sleep(COOL_DOWN)
        ended = time.monotonic()
        seen = await measure.finish(InjectedFault(self._settings.kind, self._home.side.name, began, ended))
        seen = replace(seen, gap=measure.silences(began, judged_until or ended))
        figures = HomeFigures(
            loss.seconds, tuple(self._without_home), loss.writes if lossy else None, counted if lossy else None
        )
        faults = missed_by(figures, seen.lost_writes or 0, seen.second_writers or 0, durability_of(before[0]))
        trace = await self._record_both(before, seen, faults, at)
        name, took = self._home.side.name, ended - began
        return DrillResult(self._settings.kind, name, at, took, seen, tuple(faults), (trace,), home=figures)

    async def _lose(self, measure: LoadMeasure) -> None:
        """Kill the home and take over."""
        _, _, loss = await estimate(self._mirror.side)
        self._say(f"{self._settings.kind} {self._home.side.name}")
        await self._injector.kill_home(self._home.side.name)
        killed = time.monotonic()
        log, side = self._log(self._mirror), self._mirror.side
        await take_over(side, None, log, user_name(), self._say, force=False, estimated=loss)
        self._without_home.append(time.monotonic() - killed)
        measure.send_to(self._mirror.url)

    async def _move(self, source: DrillSite, target: DrillSite, measure: LoadMeasure) -> Moved:
        self._say(f"moving the home from {source.side.name} to {target.side.name}")
        logs = self._log(source), self._log(target)
        moved = await Move(source.side, target.side, logs, user_name(), self._say).run(force=False)
        self._without_home.append(moved.seconds)
        measure.send_to(target.url)
        return moved

    async def _go_back(self, measure: LoadMeasure) -> None:
        """Make the home the home again, wherever the drill was interrupted."""
        await self._injector.undo()
        await self._until(self._silent, "both sites answer")
        home, mirror = await self._role(self._home), await self._role(self._mirror)
        if mirror is Role.MIRROR and home is Role.HOME:
            return
        if mirror is Role.MIRROR and home is Role.CLOSING:
            await confirm(self._home.side, self._log(self._home), user_name(), self._settings.why)
            return
        if mirror is not Role.HOME:
            await self._finish_forward()
        for attempt in range(MOVES_TRIED):
            await self._until(self._counted, f"site {self._home.side.name} is the mirror again")
            try:
                await self._move(self._mirror, self._home, measure)
            except RefusedError as error:  # a busy mirror may have fallen behind, or begun to copy anew
                if attempt + 1 == MOVES_TRIED:
                    raise
                self._say(str(error))
            else:
                return

    async def _silent(self) -> str:
        """Why a site has no home record to read; '' if both have one. Raises ``EtcdError``."""
        roles = {site.side.name: await self._role(site) for site in (self._home, self._mirror)}
        return ", ".join(f"site {name} has no home record" for name, role in roles.items() if role is None)

    @staticmethod
    async def _role(site: DrillSite) -> Role | None:
        home = await site.home()
        return home.role if home is not None else None

    async def _finish_forward(self) -> None:
        """Finish a change of the home that was interrupted."""
        source, target = self._home.side, self._mirror.side
        opening = await self._mirror.home()
        if opening is not None and opening.role is Role.OPENING and not opening.planned:
            _, _, loss = await estimate(target)
            await take_over(target, None, self._log(self._mirror), user_name(), self._say, force=True, estimated=loss)
            return
        logs = self._log(self._home), self._log(self._mirror)
        await Move(source, target, logs, user_name(), self._say).run(force=True)

    async def _counted(self) -> str:
        """Why the old home is not yet the mirror of the new one, with all of it; '' if it is."""
        home, mirror = await self._home.home(), await self._mirror.home()
        if mirror is None or mirror.role is not Role.HOME or home is None or home.role is not Role.MIRROR:
            return f"site {self._home.side.name} is {home.role if home else 'nothing'}, and not the mirror"
        if not mirror.planned and mirror.lost_writes == UNKNOWN:
            return "what was lost is not counted yet"
        view = await home_view(self._mirror.side, self._home.side)
        return "; ".join(view["degraded"])

    async def _until_served(self, site: DrillSite, measure: LoadMeasure) -> None:
        """Wait until all slots are served on a site, and every client has an answer of it."""

        async def missing() -> str:
            state = await site.state()
            return not_recovered(state, dict.fromkeys(state.members, 0), {})

        await self._until(missing, f"site {site.side.name} serves all slots")
        await self._until(partial(measure.silent, time.monotonic()), f"clients are served by site {site.side.name}")

    def _log(self, site: DrillSite) -> OperatorLog:
        return OperatorLog(site.side.client, site.side.keys, self._actor, self._settings.why)

    async def _record_both(
        self, before: tuple[PoolState, PoolState], seen: ClientView, faults: Sequence[str], at: float
    ) -> str:
        """Keep the outcome on both sides, and mark what changed hands there; returns the trace."""
        trace = ""
        for site, earlier in zip((self._home, self._mirror), before, strict=True):
            recorder = DrillRecorder(site.side.client, await site.state(), self._settings.kind, self._settings.tls)
            own = recorder.change_of_leader(self._home.side.name, self._mirror.side.name, at)
            await recorder.mark([*recorder.caused(earlier, ()), own])
            again = self._settings.command_again(site.place.pool, self._home.side.name)
            await recorder.record([own], seen, faults, again, at)
            trace = own.trace
        return trace


def missed_by(figures: HomeFigures, lost: int, second_writers: int, durability: str) -> list[str]:
    """What a drill of the home must not do, and did. Pure.

    ``lost`` are the acknowledged writes that its clients missed. Requests are refused while no side is the home, so
    the objectives for failed requests and times are not those of such a drill.
    """
    found = []
    if figures.estimated is None:
        if lost:
            found.append(f"a planned move lost {lost} acknowledged writes (must be 0)")
    elif (worst := max(figures.counted or 0, lost if durability == "sync" else 0)) > figures.estimated:
        found.append(f"estimate: {worst} writes were lost, and at most {figures.estimated} were expected")
    if second_writers:
        found.append(f"two writers: {second_writers} writes of a replaced owner were acknowledged")
    return found
