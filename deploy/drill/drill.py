"""``understudy drill``: injects a fault into a running pool and reports what its clients saw.

The steps of a drill: check the conditions, start measuring, inject the fault, wait, undo it, wait until the pool has
recovered, compare with the objectives of the spec, and mark the failovers as a drill in etcd and in their traces. The
fault is always undone, also after Ctrl-C and SIGTERM. ``conditions`` has the rules, ``fault_injectors`` the faults,
``measure`` the measuring and ``record`` the marks.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace

from understudy.deploy.common.errors import DeployError, NegativeAnswer
from understudy.deploy.common.operator import this_operator
from understudy.deploy.common.options import PoolLocation
from understudy.deploy.drill.conditions import (
    ClientView,
    DrillKind,
    PoolSnapshot,
    all_sites,
    durability_of,
    members_of_site,
    missed,
    not_recovered,
    refusals,
    site_refusals,
    site_target,
    slots_by_member,
    without_successor,
)
from understudy.deploy.drill.fault_injectors import CommandInjector, FaultInjector, LocalInjector
from understudy.deploy.drill.link import Link, by_site, link_of, taken
from understudy.deploy.drill.measure import (
    ClientMeasure,
    EnvoyMeasure,
    InjectedFault,
    LoadMeasure,
    ReportedMeasure,
    clients_of,
)
from understudy.deploy.drill.practice import SitePractice
from understudy.deploy.drill.record import DrillRecorder
from understudy.deploy.drill.settings import DrillResult, DrillSettings
from understudy.deploy.inspect.controls import AdminError, ask_control
from understudy.deploy.inspect.query import read_pool, require_pool
from understudy.deploy.inspect.sync import newest_revision, read_sync
from understudy.statesync.audit.entry import Act, Actor
from understudy.statesync.audit.log import OperatorLog
from understudy.statesync.etcd.client import EtcdClient, EtcdError
from understudy.statesync.etcd.settings import address_of
from understudy.statesync.pool.records import Intent
from understudy.statesync.pool.site_copies import lagging_slots
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Objectives
from understudy.statesync.pool.state import PoolState

RECOVERY_TIMEOUT = 120.0
"""Seconds for the pool to recover after the fault is undone. Flap damping and slow starts of members count."""
PROGRESS_INTERVAL = 5.0
DRAIN_TIMEOUT = 60.0
WARM_UP = 2.0
COOL_DOWN = 1.0
POLL_INTERVAL = 0.1
WITNESS = "witness"
"""The name of the witness for commands of the operator."""


class DrillRefused(NegativeAnswer):
    """The pool does not meet the conditions of a drill, and nothing was changed. Exit code 1."""


async def to_its_end(work: Coroutine[None, None, None]) -> None:
    """Wait until the work is done, also if this is cancelled meanwhile."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


class Drill:
    """Drills of one pool, one after another.

    Args:
        settings: the options.
        place: the pool and its etcd.
        etcd: a client of this etcd.
        say: called with what is going on, in a few words.
        actor: who drills, for the audit log; without it the user of this process.

    Raises:
        DeployError: the options do not say how to inject the fault.
    """

    def __init__(
        self,
        settings: DrillSettings,
        place: PoolLocation,
        etcd: EtcdClient,
        say: Callable[[str], None],
        actor: Actor | None = None,
    ) -> None:
        self._settings = settings
        self._place = place
        self._etcd = etcd
        self._say = say
        self._actor = actor or this_operator("drill", place.etcd)
        self._injector = self._choose_injector()
        self._drained: str = ""
        self._practice = SitePractice(settings, etcd, self._actor) if settings.kind is DrillKind.SITE_OFFLINE else None

    def _choose_injector(self) -> FaultInjector:
        settings, place = self._settings, self._place
        if settings.command:
            lasting = settings.kind in (DrillKind.FREEZE, DrillKind.LINK, DrillKind.HOME_LOSS)
            if (lasting or settings.kind.of_the_witness) and not settings.undo:
                raise DeployError(f"drill {settings.kind} with --command also needs --undo, the command that undoes it")
            return CommandInjector(settings.command, settings.undo)
        if place.layout is not None:
            return LocalInjector(place.directory, place.layout)
        if settings.kind in (DrillKind.DRAIN, DrillKind.SITE_OFFLINE, DrillKind.HOME_MOVE):
            return CommandInjector("")
        raise DeployError(
            f"pool {place.pool} was not started by 'understudy up' from this directory: give the command that injects "
            "the fault, such as --command 'kubectl delete pod {name} --grace-period=0 --force' (drain and site-offline "
            "need none)"
        )

    def _measure(self, spec: PoolSpec, state: PoolState) -> ClientMeasure:
        settings, layout = self._settings, self._place.layout
        if spec.tcp and not settings.rate:
            raise DeployError("Envoy counts no requests in a TCP pool: use own clients (--load N)")
        if settings.rate:
            urls = self._urls()
            if not urls:
                raise DeployError("--load needs --url, the URL of the front Envoy for clients")
            rate = max(1, settings.rate // len(urls))
            return LoadMeasure([clients_of(spec, url, rate) for url in urls], spec.slots)
        admin = settings.admin or (layout.front.admin if layout else "")
        if admin:
            return EnvoyMeasure(admin, self._place.pool)
        controls = {name: at.record.http for name, at in state.controls.items()}
        return ReportedMeasure(controls, self._place.pool)

    def _urls(self) -> list[str]:
        """Where the clients come in: at one front Envoy, or at that of each site."""
        settings, layout = self._settings, self._place.layout
        if settings.url or layout is None:
            return [settings.url] if settings.url else []
        everywhere = settings.kind.of_a_link or settings.kind is DrillKind.ALL_SITES
        fronts = layout.site_fronts if everywhere else ()
        return [layout.front_url, *(f"http://{front.listen}" for front in fronts)]

    async def _require_ready(self, number: int) -> None:
        """Raise :class:`DrillRefused` unless the conditions are met; after an earlier drill, wait for them first."""
        if number:
            await self._until(self.refusals, "the pool is ready for the next drill")
        reasons = await self.refusals()
        if reasons:
            raise DrillRefused(f"the drill is refused, nothing was changed:\n{reasons}")

    async def run(self, number: int) -> DrillResult:
        """Run one drill; ``number`` counts from 0. Raises :class:`DrillRefused` unless its conditions are met."""
        await self._require_ready(number)
        state = await self._state()
        name = await self._target(state, number)
        if self._settings.kind.kills_a_site and (reasons := "\n".join(site_refusals(state, name))):
            raise DrillRefused(f"the drill is refused, nothing was changed:\n{reasons}")
        if self._practice is not None:
            await self._practice.require_allowed(state, name)
        measure = self._measure(require_pool(state, self._place.etcd), state)
        try:
            await measure.start()
            self._say(f"measuring for {WARM_UP:g} s")
            await asyncio.sleep(WARM_UP)
            return await self._drill(name, state, measure)
        except BaseException:
            if self._practice is not None and self._practice.site:
                await self._practice.store(state, None)
            raise
        finally:
            await measure.close()

    async def _drill(self, name: str, before: PoolState, measure: ClientMeasure) -> DrillResult:
        settings, at = self._settings, time.time()
        began = time.monotonic()
        try:
            boots = await self._inject(name, before)
            if self._practice is not None:
                await self._practice.hold(before, self._state, measure)
            elif settings.kind is not DrillKind.ROLLING:
                self._say(f"waiting {settings.seconds:g} s")
                await asyncio.sleep(settings.seconds)
        finally:
            ended = time.monotonic()
            await self._undo()
        mended = time.monotonic()
        if self._practice is not None:
            self._say(f"{self._practice.why or 'all is well'}: site {name} is in service again")
            await self._practice.await_return(before, self._state)
        self._say("waiting until the pool has recovered")
        successor = await self._until_recovered(before, boots)
        await asyncio.sleep(COOL_DOWN)
        took = time.monotonic() - began
        kind = settings.kind
        if (kind.kills_members or kind.of_a_part) and not self._kept_down:
            ended = began  # the supervisor starts it again at once
        seen = await measure.finish(InjectedFault(kind, name, began, ended, await self._hit(name, before)))
        if kind.stops_service and isinstance(measure, LoadMeasure):
            since = began if kind is DrillKind.ALL_SITES else mended
            seen = replace(seen, gap=measure.silences(since, time.monotonic(), since=since))
        return await self._finish(name, successor, before, at, took, seen)

    @property
    def _kept_down(self) -> bool:
        """Whether what was killed stays down until the fault is undone."""
        return self._settings.kind.of_a_part and bool(self._settings.undo or not self._settings.command)

    async def _hit(self, name: str, before: PoolState) -> frozenset[str]:
        """The members that were hit, if they are not the target: those of the site, or those that lost slots."""
        kind = self._settings.kind
        if kind.of_a_site or kind is DrillKind.ALL_SITES:
            return frozenset(self._members(name, before))
        return frozenset(taken(await self._state(), before)) if kind.keeps_slots else frozenset()

    async def _inject(self, name: str, before: PoolState) -> dict[str, str]:
        """Inject the fault. Returns the boot ids of the members that it restarts."""
        kind, injector = self._settings.kind, self._injector
        self._say(f"{kind} {name}")
        if kind is DrillKind.FREEZE:
            await injector.freeze(name)
        elif kind is DrillKind.DRAIN:
            await self._drain(name)
        elif self._practice is not None:
            await self._practice.begin(before, name)
        elif kind is DrillKind.ROLLING:
            return await self._roll(before)
        elif kind is DrillKind.SITE:
            await injector.kill_site(name, members_of_site(before, name))
        elif kind.of_a_link:
            await self._cut(name)
        elif kind is DrillKind.WITNESS:
            await injector.keep_away(name)
        elif kind is DrillKind.ALL_SITES:
            await injector.kill_all(name, sorted(before.members))
        elif kind.of_a_part:
            await injector.kill_part(name, str(kind))
        else:
            await injector.kill(name)
        hit = self._members(name, before) if kind.kills_members else ()
        return {member: before.members[member].record.boot for member in hit}

    async def _cut(self, name: str) -> None:
        """Cut a link, and take the witness away too if the drill is about both."""
        link = Link(name, both=not self._settings.one_way)
        if self._settings.kind is DrillKind.LINK_WITNESS:
            await self._injector.cut_without(self._witness(), *link.directions[0])
            return
        for source, target in link.directions:
            await self._injector.cut(source, target)

    async def _drain(self, member: str) -> None:
        """Drain a member, with a time limit in case this process is killed, and wait until it owns no slots."""
        now = time.time()
        until = now + DRAIN_TIMEOUT + self._settings.seconds + RECOVERY_TIMEOUT
        self._drained = member
        keys = (await self._state()).keys
        act = Act(f"drain {member}", why=self._settings.why, undo=f"understudy undrain {member} --pool {keys.pool}")
        log = OperatorLog(self._etcd, keys, self._actor)
        intent = Intent(member, until, now, drill=self._actor.who or "somebody")
        await log.put(act, keys.intent(member), intent.encode())

        async def owns() -> str:
            count = slots_by_member(await self._state()).get(member, 0)
            return f"{member} still owns {count} slots" if count else ""

        await self._until(owns, f"{member} has handed its slots over", DRAIN_TIMEOUT)

    async def _roll(self, before: PoolState) -> dict[str, str]:
        """Drain, restart and undrain each member, one after another."""
        done: dict[str, str] = {}
        for member in sorted(before.members):
            self._say(f"{member}: drain, restart, undrain")
            await self._drain(member)
            await self._injector.restart(member)
            done[member] = before.members[member].record.boot

            async def back(member: str = member) -> str:
                at = (await self._state()).members.get(member)
                return f"{member} is not back" if at is None or at.record.boot == done[member] else ""

            await self._until(back, f"{member} has started again")
            await self._undo()
            await self._until_recovered(before, done)
        return done

    async def _undo(self) -> None:
        """Undo the fault and the drain. Safe to repeat."""
        await self._injector.undo()
        if self._practice is not None:
            await self._practice.undo(await self._state())
        if self._drained:
            keys = (await self._state()).keys
            log = OperatorLog(self._etcd, keys, self._actor)
            await log.delete(Act(f"undrain {self._drained}", why=self._settings.why), keys.intent(self._drained))
            self._drained = ""

    async def _target(self, state: PoolState, number: int) -> str:
        """The target: the given member, or each member in turn; else the leader of the control servers or of etcd."""
        kind, wanted = self._settings.kind, self._settings.member
        if wanted and wanted not in state.members:
            raise NegativeAnswer(
                f"pool {state.keys.pool} has no member {wanted!r}; its members are {', '.join(sorted(state.members))}"
            )
        if kind.of_a_member:
            names = sorted(state.members)
            return wanted or names[number % len(names)]
        if kind is DrillKind.ROLLING:
            return "all members"
        if kind.of_a_site:
            return site_target(state, self._settings.site, number)
        if kind is DrillKind.ALL_SITES:
            return all_sites(state)
        if kind.of_a_link:
            return link_of(state, self._settings.link, number)
        return self._witness() if kind is DrillKind.WITNESS else await self._leader(state)

    def _witness(self) -> str:
        """The endpoint of the witness in a local pool; elsewhere the command knows it."""
        layout = self._place.layout
        return address_of(layout.witness) if layout is not None and layout.witness else WITNESS

    async def _leader(self, state: PoolState) -> str:
        """The present leader of the control servers, or of etcd (its endpoint), by the kind of drill; '' for none."""
        if self._settings.kind is DrillKind.CONTROL:
            return state.leader.record if state.leader else ""
        return next((status.endpoint for status in await self._etcd.status() if status.leader), "")

    async def _until_recovered(self, before: PoolState, boots: dict[str, str]) -> str:
        """Wait until the pool has recovered. Returns the new leader, if the drill hit a leader."""
        shares = slots_by_member(before)

        async def missing() -> str:
            state = await self._state()
            absent = sorted(set(before.controls) - set(state.controls))
            if absent or state.leader is None:
                return f"control server {', '.join(absent) or 'leader'} is not back"
            if self._settings.kind is DrillKind.CONTROL and (unled := without_successor(before, state)):
                return unled
            if self._settings.kind.kills_etcd:
                silent = [status.endpoint for status in await self._etcd.status() if status.errors]
                if silent:
                    return f"etcd at {', '.join(silent)} is not back"
            return not_recovered(state, shares, boots) or await self._out_of_sync(state)

        await self._until(missing, "the pool has recovered")
        return await self._leader(await self._state()) if self._settings.kind.of_a_leader else ""

    async def _out_of_sync(self, state: PoolState) -> str:
        """After a cut link: which member is not in sync, or that copies are on one site only; '' if all is well."""
        if not (self._settings.kind.of_a_link or self._settings.kind is DrillKind.ALL_SITES):
            return ""
        if late := lagging_slots(state):
            return f"{len(late)} slots have current copies on one site only"
        sync = await read_sync(state, newest_revision(state), self._settings.tls)
        return next((f"{row['member']}: {row['reason']}" for row in sync["members"] if not row["in_sync"]), "")

    async def _until(self, reason: Callable[[], Awaitable[str]], what: str, timeout: float = RECOVERY_TIMEOUT) -> None:
        """Wait until ``reason()`` is empty. Raises :class:`NegativeAnswer` with the last reason at the timeout."""
        last, next_report = "", time.monotonic() + PROGRESS_INTERVAL
        try:
            async with asyncio.timeout(timeout):
                while True:
                    try:
                        last = await reason()
                    except EtcdError as error:
                        last = str(error)
                    if not last:
                        return
                    if time.monotonic() >= next_report:
                        self._say(f"  not yet: {last}")
                        next_report += PROGRESS_INTERVAL
                    await asyncio.sleep(POLL_INTERVAL)
        except TimeoutError:
            raise NegativeAnswer(
                f"timeout after {timeout:g} s, before {what}: {last}; see 'understudy status'"
            ) from None

    async def _state(self) -> PoolState:
        state, _ = await read_pool(self._etcd, self._place.pool)
        return state

    async def refusals(self) -> str:
        """The reasons why the drill must not start, one per line; '' if it may."""
        state = await self._state()
        require_pool(state, self._place.etcd)
        holds = []
        leader = state.controls.get(state.leader.record) if state.leader else None
        if leader is not None:
            try:
                status = await ask_control(leader.record.http, "/v1/status", state.keys.pool)
                holds = [f"{hold['why']} (for {hold['seconds']:g} s)" for hold in status["brakes"]]
            except AdminError as error:
                holds = [f"the leading control server does not answer: {error}"]
        sync = await read_sync(state, newest_revision(state), self._settings.tls)
        snapshot = PoolSnapshot(state, sync, holds, await self._etcd.status(), time.time())
        return "\n".join([*refusals(snapshot, self._settings.kind), *self._not_here()])

    def _not_here(self) -> list[str]:
        """What the local pool lacks for such a drill. Of other pools the command knows it."""
        layout, kind, found = self._place.layout, self._settings.kind, list[str]()
        if layout is None or self._settings.command:
            return found
        if kind.of_the_witness and not layout.witness:
            found.append(
                "no single member of etcd is on no site, so there is no witness ('understudy up --sites east,west "
                "--etcds 3')"
            )
        if kind is DrillKind.LINK_WITNESS and not layout.networks:
            found.append("the sites have no networks that could be cut ('understudy up --sites ... --links')")
        return found

    async def _finish(
        self, name: str, successor: str, before: PoolState, at: float, took: float, seen: ClientView
    ) -> DrillResult:
        state, kind = await self._state(), self._settings.kind
        recorder = DrillRecorder(self._etcd, state, kind, self._settings.tls)
        caused = recorder.caused(before, self._members(name, before))
        seen, lost = replace(seen, took_ms=await recorder.slowest_ms(caused)), dict[str, int]()
        if kind.of_the_pool or (not caused and (kind.of_a_leader or kind.of_a_link)):
            caused = [recorder.change_of_leader(name, successor, at), *caused]
        if kind.keeps_slots:
            lost = by_site(taken(state, before), before)
            # Requests across a cut link wait until it is whole.
            seen = replace(seen, needless_moves=sum(lost.values()), judge_waits=not kind.of_a_link)
        wanted = state.spec.record.objectives if state.spec else Objectives()
        faults = tuple(missed(seen, wanted, durability_of(state), judge_service=not kind.stops_service))
        if self._practice is not None:
            faults = self._practice.judge(faults)
            await self._practice.store(state, seen)
        await recorder.mark(caused)
        again = self._settings.command_again(self._place.pool, name)
        await recorder.record(caused, seen, faults, again, at)
        traces = tuple(dict.fromkeys(part.trace for part in caused))
        outcome, why = (self._practice.outcome, self._practice.why) if self._practice is not None else (None, "")
        return DrillResult(kind, name, at, took, seen, faults, traces, lost, outcome, why)

    def _members(self, name: str, before: PoolState) -> list[str]:
        """The members that failovers by this drill are about."""
        kind = self._settings.kind
        if kind is DrillKind.WITNESS:
            return sorted(before.members)
        if kind.of_a_link or kind.of_a_site or kind is DrillKind.ALL_SITES:
            return [member for site in name.split(",") for member in members_of_site(before, site)]
        return [name]
