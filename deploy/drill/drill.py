"""``understudy drill``: breaks a part of a running pool on purpose and tells what its clients noticed.

The course of one drill: refuse unless everything is redundant and in sync, watch, strike, wait, undo, wait until the
pool is as before, judge against the spec's objectives, and mark the failovers that it caused as a drill, in etcd and in
their traces. Whatever happens on the way, Ctrl-C and SIGTERM included, what was done is undone. The rules are in
``conditions``, breaking in ``fault_injectors``, watching in ``measure``, marking in ``record``.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from understudy.deploy.common.errors import DeployError, NegativeAnswer
from understudy.deploy.common.options import Place, TlsOptions
from understudy.deploy.drill.conditions import Facts, Kind, Seen, held, missed, refusals, unfinished, without_successor
from understudy.deploy.drill.fault_injectors import CommandHands, Hands, LocalHands
from understudy.deploy.drill.measure import Blow, EnvoyWatch, LoadWatch, Watch, clients_of
from understudy.deploy.drill.record import Book
from understudy.deploy.inspect.controls import AdminError, ask_control
from understudy.deploy.inspect.query import read_pool, require_pool
from understudy.deploy.inspect.sync import newest_revision, read_sync
from understudy.statesync.etcd.client import EtcdClient, EtcdError
from understudy.statesync.pool.records import Intent
from understudy.statesync.pool.spec import Objectives, PoolSpec
from understudy.statesync.pool.state import PoolState

WHOLE_PATIENCE = 120.0
"""Seconds in which the pool must be as before, after the undoing; brakes and a member that starts slowly included."""
TELL_EVERY = 5.0
DRAIN_PATIENCE = 60.0
WARM_UP = 2.0
CALM_DOWN = 1.0
_LOOK = 0.1


class Refused(NegativeAnswer):
    """The pool is not in a state to be drilled: nothing was touched. Exit code 1."""


@dataclass(frozen=True, slots=True)
class DrillSettings:
    """What to do. ``rate`` 0: the pool's real clients are watched. ``seconds`` is how long a part stays struck."""

    kind: Kind
    member: str = ""
    rate: int = 0
    seconds: float = 5.0
    repeat: int = 1
    url: str = ""
    admin: str = ""
    command: str = ""
    undo: str = ""
    tls: TlsOptions | None = None


@dataclass(frozen=True, slots=True)
class DrillResult:
    """One drill. ``name`` is what was struck; ``traces`` are of the failovers that it caused; ``at`` is wall time."""

    kind: Kind
    name: str
    at: float
    seconds: float
    seen: Seen
    missed: tuple[str, ...]
    traces: tuple[str, ...]


class Drill:
    """Drills of one pool, one after the other."""

    def __init__(self, settings: DrillSettings, place: Place, etcd: EtcdClient, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._place = place
        self._etcd = etcd
        self._say = say
        self._hands = self._choose_hands()
        self._drained: str = ""

    def _choose_hands(self) -> Hands:
        settings, place = self._settings, self._place
        if settings.command:
            if settings.kind is Kind.FREEZE and not settings.undo:
                raise DeployError("--command that freezes needs --undo, the command that lets it run again")
            return CommandHands(settings.command, settings.undo)
        if place.layout is not None:
            return LocalHands(place.directory, place.layout)
        if settings.kind is Kind.DRAIN:
            return CommandHands("")
        raise DeployError(
            f"pool {place.pool} was not started by 'understudy up' from this directory: say how to do it there, "
            "such as --command 'kubectl delete pod {name} --grace-period=0 --force' (drain needs no command)"
        )

    def _watch(self, spec: PoolSpec) -> Watch:
        settings, layout = self._settings, self._place.layout
        if spec.tcp and not settings.rate:
            raise DeployError("a tcp pool has no requests that Envoy could count: bring clients (--load N)")
        if settings.rate:
            url = settings.url or (layout.front_url if layout else "")
            if not url:
                raise DeployError("--load needs --url, the address where clients of the pool come in")
            return LoadWatch(clients_of(spec, url, settings.rate))
        admin = settings.admin or (layout.front.admin if layout else "")
        if not admin:
            raise DeployError(
                "nobody watches the clients: name the front Envoy's admin interface (--admin), "
                "or bring clients (--load N --url URL)"
            )
        return EnvoyWatch(admin, self._place.pool)

    async def run(self, number: int) -> DrillResult:
        """Do it once; ``number`` counts from 0. Raises :class:`Refused` before anything was touched."""
        if number:
            await self._until(self._refusals, "the pool can be drilled again")
        reasons = await self._refusals()
        if reasons:
            raise Refused(f"the drill is refused, nothing was touched:\n{reasons}")
        state = await self._state()
        name = await self._target(state, number)
        watch = self._watch(require_pool(state, self._place.etcd))
        try:
            await watch.start()
            self._say(f"steady for {WARM_UP:g} s")
            await asyncio.sleep(WARM_UP)
            return await self._strike(name, state, watch)
        finally:
            await watch.close()

    async def _strike(self, name: str, before: PoolState, watch: Watch) -> DrillResult:
        settings, at = self._settings, time.time()
        struck = time.monotonic()
        try:
            boots = await self._blow(name, before)
            if settings.kind is not Kind.ROLLING:
                self._say(f"waiting {settings.seconds:g} s")
                await asyncio.sleep(settings.seconds)
        finally:
            mended = time.monotonic()
            await self._undo()
        self._say("waiting until the pool is as before")
        successor = await self._until_whole(before, boots)
        await asyncio.sleep(CALM_DOWN)
        took = time.monotonic() - struck
        kind = settings.kind
        if kind is Kind.KILL:
            mended = struck  # its supervisor starts it again at once
        seen = await watch.finish(Blow(kind, name, struck, mended))
        return await self._judge(name, successor, before, at, took, seen)

    async def _blow(self, name: str, before: PoolState) -> dict[str, str]:
        """Strike; returns the boot ids of members that must not be seen again."""
        kind, hands = self._settings.kind, self._hands
        self._say(f"{kind} {name}")
        if kind is Kind.FREEZE:
            await hands.freeze(name)
        elif kind is Kind.DRAIN:
            await self._drain(name)
        elif kind is Kind.ROLLING:
            return await self._roll(before)
        else:
            await hands.kill(name)
        boots = {member: at.record.boot for member, at in before.members.items()}
        return {name: boots[name]} if kind is Kind.KILL else {}

    async def _drain(self, member: str) -> None:
        """Put the intent, with an end of its own in case we are killed, and wait until the member owns nothing."""
        now = time.time()
        until = now + DRAIN_PATIENCE + self._settings.seconds + WHOLE_PATIENCE
        self._drained = member
        await self._etcd.put((await self._state()).keys.intent(member), Intent(member, until, now).encode())

        async def owns() -> str:
            count = held(await self._state()).get(member, 0)
            return f"{member} still owns {count} slots" if count else ""

        await self._until(owns, f"{member} has handed its slots over", DRAIN_PATIENCE)

    async def _roll(self, before: PoolState) -> dict[str, str]:
        """Drain, restart and bring back each member, one at a time."""
        done: dict[str, str] = {}
        for member in sorted(before.members):
            self._say(f"{member}: drain, restart, bring back")
            await self._drain(member)
            await self._hands.restart(member)
            done[member] = before.members[member].record.boot

            async def back(member: str = member) -> str:
                at = (await self._state()).members.get(member)
                return f"{member} is not back" if at is None or at.record.boot == done[member] else ""

            await self._until(back, f"{member} has started again")
            await self._undo()
            await self._until_whole(before, done)
        return done

    async def _undo(self) -> None:
        """Bring back into service what this drill took out. Safe to repeat."""
        await self._hands.mend()
        if self._drained:
            await self._etcd.delete((await self._state()).keys.intent(self._drained))
            self._drained = ""

    async def _target(self, state: PoolState, number: int) -> str:
        """What to strike: the member asked for, or each in turn; else the leader of the control servers or of etcd."""
        kind, wanted = self._settings.kind, self._settings.member
        if wanted and wanted not in state.members:
            raise NegativeAnswer(
                f"pool {state.keys.pool} has no member {wanted!r}; its members are {', '.join(sorted(state.members))}"
            )
        if kind.of_a_member:
            names = sorted(state.members)
            return wanted or names[number % len(names)]
        if kind is Kind.ROLLING:
            return "all members"
        return await self._leader(state)

    async def _leader(self, state: PoolState) -> str:
        """Who leads at the moment: the control server, or the etcd endpoint, by the kind of drill; empty for nobody."""
        if self._settings.kind is Kind.CONTROL:
            return state.leader.record if state.leader else ""
        return next((status.endpoint for status in await self._etcd.status() if status.leader), "")

    async def _until_whole(self, before: PoolState, boots: dict[str, str]) -> str:
        """Wait until all is as before; returns the leader of what was struck, if that has leaders."""
        shares = held(before)

        async def short() -> str:
            state = await self._state()
            absent = sorted(set(before.controls) - set(state.controls))
            if absent or state.leader is None:
                return f"control server {', '.join(absent) or 'leader'} is not back"
            if self._settings.kind is Kind.CONTROL and (unled := without_successor(before, state)):
                return unled
            if self._settings.kind is Kind.ETCD_LEADER:
                silent = [status.endpoint for status in await self._etcd.status() if status.errors]
                if silent:
                    return f"etcd at {', '.join(silent)} is not back"
            return unfinished(state, shares, boots)

        await self._until(short, "the pool is as before")
        return await self._leader(await self._state()) if self._settings.kind.of_a_leader else ""

    async def _until(self, reason: Callable[[], Awaitable[str]], what: str, patience: float = WHOLE_PATIENCE) -> None:
        """Wait until ``reason()`` is empty; raises :class:`NegativeAnswer` (exit code 1) with the last one."""
        last, next_word = "", time.monotonic() + TELL_EVERY
        try:
            async with asyncio.timeout(patience):
                while True:
                    try:
                        last = await reason()
                    except EtcdError as error:
                        last = str(error)
                    if not last:
                        return
                    if time.monotonic() >= next_word:
                        self._say(f"  not yet: {last}")
                        next_word += TELL_EVERY
                    await asyncio.sleep(_LOOK)
        except TimeoutError:
            raise NegativeAnswer(f"not within {patience:g} s: {what} ({last}); see 'understudy status'") from None

    async def _state(self) -> PoolState:
        state, _ = await read_pool(self._etcd, self._place.pool)
        return state

    async def _refusals(self) -> str:
        """Why the drill may not begin, one reason a line."""
        state = await self._state()
        require_pool(state, self._place.etcd)
        brakes = []
        leader = state.controls.get(state.leader.record) if state.leader else None
        if leader is not None:
            try:
                status = await ask_control(leader.record.http, "/v1/status")
                brakes = [f"{brake['why']} (for {brake['seconds']:g} s)" for brake in status["brakes"]]
            except AdminError as error:
                brakes = [f"the leading control server does not say: {error}"]
        sync = await read_sync(state, await newest_revision(self._etcd, state), self._settings.tls)
        facts = Facts(state, sync, brakes, await self._etcd.status(), time.time())
        return "\n".join(refusals(facts, self._settings.kind))

    async def _judge(
        self, name: str, successor: str, before: PoolState, at: float, took: float, seen: Seen
    ) -> DrillResult:
        state, kind = await self._state(), self._settings.kind
        book = Book(self._etcd, state, kind, self._settings.tls)
        caused = book.caused(before, name)
        if not caused and kind.of_a_leader:
            caused = [book.change_of_leader(name, successor, at)]
        seen = replace(seen, took_ms=await book.slowest(caused))
        wanted = state.spec.record.objectives if state.spec else Objectives()
        faults = tuple(missed(seen, wanted))
        await book.mark(caused)
        await book.record(caused, seen, faults, at)
        return DrillResult(kind, name, at, took, seen, faults, tuple(dict.fromkeys(part.trace for part in caused)))
