"""The drill ``site-take-over``: the larger of two sites without a third is lost, and the other one takes over.

Everything of the larger site is killed and kept down, so etcd has no majority. Then the other member of etcd is
stopped, the steps of ``understudy site take-over`` run on its data, and it starts again. At the end the lost members of
etcd are added with no data, and the site starts. What clients lost is compared with the estimate.
"""

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from understudy.deploy.common.errors import DeployError, NegativeAnswer
from understudy.deploy.common.options import PoolLocation
from understudy.deploy.drill.conditions import (
    ClientView,
    TakeOverFigures,
    durability_of,
    members_of_site,
)
from understudy.deploy.drill.drill import COOL_DOWN, Drill, to_its_end
from understudy.deploy.drill.lost_site import LostSite
from understudy.deploy.drill.measure import ClientMeasure, InjectedFault, LoadMeasure
from understudy.deploy.drill.record import DrillRecorder
from understudy.deploy.drill.settings import DrillResult, DrillSettings
from understudy.deploy.local.etcd_join import LocalEtcd, joined
from understudy.deploy.local.local_pool import find_etcd
from understudy.deploy.operate.lone_etcd import EtcdData
from understudy.deploy.operate.site_take_over import Estimate, Login, check, estimate, take_over
from understudy.statesync.audit.entry import Actor
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.state import PoolState


class TakeOverDrill(Drill):
    """Drills of a local pool on two sites, of which one has most of etcd.

    Raises:
        DeployError: the pool is not such a pool.
    """

    def __init__(
        self,
        settings: DrillSettings,
        place: PoolLocation,
        etcd: EtcdClient,
        say: Callable[[str], None],
        actor: Actor | None = None,
    ) -> None:
        if place.layout is None:
            raise DeployError(
                f"drill {settings.kind} is for a pool that 'understudy up' runs from this directory: it deletes the "
                "data of the lost members of etcd"
            )
        super().__init__(settings, place, etcd, say, actor)
        self._lost = LostSite(place.directory, place.layout)
        self._data = EtcdData(self._lost.data_of(self._lost.left), find_etcd(os.environ))
        self._known: Estimate | None = None
        self._given_up = False

    async def refusals(self) -> str:
        """The reasons why the drill must not start, one per line; '' if it may."""
        reasons = [await super().refusals()]
        if not self._lost.has_control_elsewhere:
            reasons.append(f"site {self._lost.left.site} has no control server ('understudy up --controls 2')")
        silent = [status.endpoint for status in await self._etcd.status() if status.errors]
        if silent:
            reasons.append(f"etcd at {', '.join(silent)} does not answer")
        return "\n".join(filter(None, reasons))

    async def _target(self, state: PoolState, number: int) -> str:
        wanted = await super()._target(state, number) if self._settings.site else self._lost.site
        if wanted != self._lost.site:
            raise NegativeAnswer(f"most of etcd is on site {self._lost.site}, and not on {wanted}")
        return wanted

    async def _drill(self, name: str, before: PoolState, measure: ClientMeasure) -> DrillResult:
        if not isinstance(measure, LoadMeasure):
            raise DeployError(f"drill {self._settings.kind} needs clients of its own: give --load N")
        at, began = time.time(), time.monotonic()
        hit = members_of_site(before, name)
        try:
            figures = await self._lose_and_take_over(measure)
            judged_until = time.monotonic()  # the way back is a step of its own
        finally:
            ended = time.monotonic()
            await to_its_end(self._bring_back())
        self._say("waiting until the pool has recovered")
        await self._until_recovered(before, {member: before.members[member].record.boot for member in hit})
        await asyncio.sleep(COOL_DOWN)
        took = time.monotonic() - began
        seen = await measure.finish(InjectedFault(self._settings.kind, name, began, ended, frozenset(hit)))
        seen = replace(seen, gap=measure.silences(began, judged_until))
        return await self._judged(name, before, at, took, seen, figures)

    async def _lose_and_take_over(self, measure: LoadMeasure) -> TakeOverFigures:
        lost, left, seconds = self._lost, self._lost.left, self._settings.seconds
        self._known, self._given_up = None, False
        self._say(f"{self._settings.kind} {lost.site}: all of it is killed, and stays down")
        lost.kill()
        killed = time.monotonic()
        await self._until(self._majority, "etcd has lost its majority")
        self._say(f"etcd has no majority; waiting {seconds:g} s")
        await asyncio.sleep(seconds)
        accepted = measure.accepted_writes(killed)
        self._say(f"site {left.site} takes over; {accepted} writes were acknowledged without a majority")
        lost.stop_left()
        by_hand = time.monotonic()
        await self._until(self._left_runs, f"{left.name} has ended")
        before = await check(self._data, force=False)
        known = await estimate(self._data, left.site, before, Login(), self._settings.tls)
        self._known = known
        await self._give_up(known)
        lost.release(left.name)
        await self._until(lambda: self._unwell(left), f"{left.name} answers")
        started = time.monotonic()
        await self._until_served(measure)
        return self._figures(known, accepted, started - killed, started - by_hand)

    async def _give_up(self, known: Estimate) -> None:
        await take_over(self._data, self._lost.left.site, known, self._actor, self._settings.why, Login())
        self._given_up = True

    def _figures(self, known: Estimate, accepted: int, without_etcd: float, by_hand: float) -> TakeOverFigures:
        view = next(view for view in known.pools if view["pool"] == self._place.pool)
        loss = view["lost_sites"][self._lost.site]
        slots = loss["from_memory"], loss["from_etcd"], loss["lossy"]
        return TakeOverFigures(without_etcd, by_hand, accepted, *slots, known.missing)

    async def _majority(self) -> str:
        """Why etcd still has a majority; '' if it has none."""
        return "" if await self._unwell(self._lost.left) else f"{self._lost.left.name} still has a leader"

    async def _left_runs(self) -> str:
        """Why the member of etcd that is left has not ended; '' if it has."""
        try:
            self._data.require_stopped()
        except DeployError as error:
            return str(error)
        return ""

    async def _unwell(self, etcd: LocalEtcd) -> str:
        """What a member of etcd, or the client, says is wrong with it; '' for nothing."""
        address = etcd.client.partition("://")[2]
        found = [status for status in await self._etcd.status() if status.endpoint.endswith(address)]
        return "; ".join(error for status in found for error in status.errors) if found else f"{etcd.name} is not known"

    async def _until_served(self, measure: LoadMeasure) -> None:
        """Wait until the site that is left serves all slots, and every client has an answer."""

        async def missing() -> str:
            state = await self._state()
            there = set(members_of_site(state, self._lost.left.site))
            waiting = sum(at.record.active not in there for at in state.owners.values())
            return f"{waiting} slots wait for a member of site {self._lost.left.site}" if waiting else ""

        await self._until(missing, f"site {self._lost.left.site} serves all slots")
        await self._until(
            partial(measure.silent, time.monotonic()), f"clients are served by site {self._lost.left.site}"
        )

    async def _bring_back(self) -> None:
        """Start everything again, wherever the drill was interrupted."""
        lost, left = self._lost, self._lost.left
        if self._known is not None and not self._given_up and self._data.begun.exists():
            await self._give_up(self._known)
        if self._given_up:
            lost.release(left.name)
            await self._until(lambda: self._unwell(left), f"{left.name} answers")
            for etcd in lost.etcds:
                await self._join_again(etcd)
        lost.release()

    async def _join_again(self, etcd: LocalEtcd) -> None:
        self._say(f"{etcd.name} joins again, with no data")
        await self._until(lambda: self._lost.add(etcd), f"{etcd.name} is added to etcd")
        await self._until(lambda: self._unwell(etcd), f"{etcd.name} has joined")
        joined(self._place.directory)

    async def _judged(
        self, name: str, before: PoolState, at: float, took: float, seen: ClientView, figures: TakeOverFigures
    ) -> DrillResult:
        state, kind = await self._state(), self._settings.kind
        recorder = DrillRecorder(self._etcd, state, kind, self._settings.tls)
        caused = recorder.caused(before, members_of_site(before, name))
        caused = caused or [recorder.change_of_leader(name, self._lost.left.site, at)]
        seen = replace(seen, took_ms=await recorder.slowest_ms(caused))
        faults = tuple(missed_by(figures, seen.lost_writes or 0, seen.second_writers or 0, durability_of(state)))
        await recorder.mark(caused)
        await recorder.record(caused, seen, faults, self._settings.command_again(self._place.pool, name), at)
        traces = tuple(dict.fromkeys(part.trace for part in caused))
        return DrillResult(kind, name, at, took, seen, faults, traces, take_over=figures)


def missed_by(figures: TakeOverFigures, lost: int, second_writers: int, durability: str) -> list[str]:
    """What a take-over must not do, and did. Pure.

    ``lost`` are the acknowledged writes that clients missed. Requests fail until an operator has taken over, so the
    objectives for failed requests and times are not those of such a drill. If slots are read from etcd, no number is
    stated that could be compared.
    """
    found = []
    if figures.accepted and durability == "sync":
        found.append(f"sync writes: {figures.accepted} were acknowledged while etcd had no majority (must be 0)")
    if lost and durability != "async" and not (figures.from_etcd or figures.lossy):
        found.append(f"estimate: {lost} writes were lost, and none were expected")
    if second_writers:
        found.append(f"two writers: {second_writers} writes of a replaced owner were acknowledged")
    return found
