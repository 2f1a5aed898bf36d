"""Does harm to a pool: one fault after the other, sometimes two at once, in an order that a seed decides.

Each fault is an async context: in force inside the block, healed at its end. What happened, to whom and when goes into
the history. Signals and cables need no privileges; packets that are lost need namespaces, clocks need libfaketime.
"""

import asyncio
import contextlib
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from tests.faults.history import FaultWindow, History
from tests.faults.pool import FaultPool, FaultProgram
from tests.harness.cable import Cable, Way
from tests.harness.etcd_gate import SaveFault
from understudy.statesync.etcd.client import EtcdError
from understudy.statesync.testing.crash_points import VARIABLE, CrashPoint


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault. ``shortest`` and ``longest`` are seconds; ``weight`` is how often it is drawn.

    ``needs`` is what a pool must offer for it (``FaultPool.offers``), '' if signals are enough. A ``whole`` fault lasts
    its time although the round's is over. ``beside`` a fault others go on, as if it were none.
    """

    name: str
    shortest: float
    longest: float
    weight: float
    inject: Callable[["Harm"], AbstractAsyncContextManager[tuple[str, ...]]]
    needs: str = ""
    whole: bool = False
    beside: bool = False


@dataclass
class Harm:
    """What a fault works with: the pool, and the draws of the nemesis."""

    pool: FaultPool
    draw: random.Random

    def member(self) -> FaultProgram:
        """Some member that runs."""
        running = [member for member in self.pool.members.values() if member.runs]
        return self.draw.choice(running or list(self.pool.members.values()))


@contextlib.asynccontextmanager
async def killed_member(harm: Harm) -> AsyncIterator[tuple[str, ...]]:
    """``kill -9`` of a sidecar, and a fresh start."""
    member = harm.member()
    member.kill()
    try:
        yield (member.name,)
    finally:
        if not member.runs:
            member.start()


@contextlib.asynccontextmanager
async def killed_members(harm: Harm) -> AsyncIterator[tuple[str, ...]]:
    """``kill -9`` of all sidecars but one at once."""
    names = harm.draw.sample(harm.pool.names, len(harm.pool.names) - 1)
    for name in names:
        harm.pool.members[name].kill()
    try:
        yield tuple(names)
    finally:
        for name in names:
            if not harm.pool.members[name].runs:
                harm.pool.members[name].start()


@contextlib.asynccontextmanager
async def crashing_member(harm: Harm) -> AsyncIterator[tuple[str, ...]]:
    """A sidecar that ends itself at one of its named points; started afresh, and without that, at the end."""
    member = harm.member()
    point = harm.draw.choice(list(CrashPoint))
    member.kill()
    member.start(**{VARIABLE: f"{point}:{harm.draw.randint(1, 12)}"})
    try:
        yield (member.name,)
    finally:
        member.kill()
        member.start()


@contextlib.asynccontextmanager
async def paused_member(harm: Harm) -> AsyncIterator[tuple[str, ...]]:
    """SIGSTOP of a sidecar, SIGCONT at the end."""
    member = harm.member()
    member.signal(signal.SIGSTOP)
    try:
        yield (member.name,)
    finally:
        member.signal(signal.SIGCONT)


@contextlib.asynccontextmanager
async def drained_member(harm: Harm) -> AsyncIterator[tuple[str, ...]]:
    """SIGTERM: the sidecar hands its slots over and ends; it is started again."""
    member = harm.member()
    member.signal(signal.SIGTERM)
    try:
        yield (member.name,)
    finally:
        await _ended(member)
        member.start()


async def _ended(member: FaultProgram) -> None:
    if member.process is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(member.process.wait, 10)
    member.kill()


@contextlib.asynccontextmanager
async def _harmed(cables: list[tuple[Cable, str]], how: str) -> AsyncIterator[None]:
    for cable, source in cables:
        match how:
            case "reset":
                cable.reset(source)
            case "slow":
                cable.delay = 0.1
            case "very slow":
                cable.delay = 0.4
            case _:
                cable.cut(Way[how.upper()], source)
    try:
        yield
    finally:
        for cable, source in cables:
            cable.delay = 0.0
            cable.mend(source)


def etcd_cut(how: str) -> Callable[[Harm], AbstractAsyncContextManager[tuple[str, ...]]]:
    """A member's way to etcd is cut (both ways, requests, answers), reset, or slow."""

    @contextlib.asynccontextmanager
    async def inject(harm: Harm) -> AsyncIterator[tuple[str, ...]]:
        member = harm.member()
        async with _harmed([(cable, "") for cable in member.to_etcd], how):
            yield (member.name,)

    return inject


def peer_cut(how: str) -> Callable[[Harm], AbstractAsyncContextManager[tuple[str, ...]]]:
    """What one member sends to another's peer port is cut (both ways, requests, answers), reset, or very slow."""

    @contextlib.asynccontextmanager
    async def inject(harm: Harm) -> AsyncIterator[tuple[str, ...]]:
        caller, callee = harm.draw.sample(list(harm.pool.members.values()), 2)
        assert callee.from_peers is not None
        async with _harmed([(callee.from_peers, caller.name)], how):
            yield (caller.name, callee.name)

    return inject


@contextlib.asynccontextmanager
async def isolated_member(harm: Harm) -> AsyncIterator[tuple[str, ...]]:
    """A member is cut off from etcd and from all peers, but not from its application."""
    member = harm.member()
    others = [other for other in harm.pool.members.values() if other is not member]
    cables = [(cable, "") for cable in member.to_etcd]
    cables += [(member.from_peers, "")] if member.from_peers else []
    cables += [(other.from_peers, member.name) for other in others if other.from_peers]
    async with _harmed(cables, "both"):
        yield (member.name,)


@contextlib.asynccontextmanager
async def killed_etcd(harm: Harm) -> AsyncIterator[tuple[str, ...]]:
    """``kill -9`` of an etcd member (the only one, if there is one), and a restart with its data."""
    etcd = harm.draw.choice(harm.pool.etcds)
    etcd.kill()
    try:
        yield ()
    finally:
        etcd.spawn()
        await etcd.ready()


@contextlib.asynccontextmanager
async def killed_etcd_leader(harm: Harm) -> AsyncIterator[tuple[str, ...]]:
    """``kill -9`` of the etcd member that leads."""
    try:
        leader = await harm.pool.leader()
    except LookupError:
        leader = harm.draw.choice(harm.pool.etcds)
    leader.kill()
    try:
        yield ()
    finally:
        leader.spawn()
        await leader.ready()


@contextlib.asynccontextmanager
async def lost_quorum(harm: Harm) -> AsyncIterator[tuple[str, ...]]:
    """``kill -9`` of so many etcd members that the rest is no majority, and a restart with their data."""
    doomed = harm.draw.sample(harm.pool.etcds, len(harm.pool.etcds) // 2 + 1)
    for etcd in doomed:
        etcd.kill()
    try:
        yield ()
    finally:
        for etcd in doomed:
            etcd.spawn()
        for etcd in doomed:
            await etcd.ready()


@contextlib.asynccontextmanager
async def paused_etcd(harm: Harm) -> AsyncIterator[tuple[str, ...]]:
    """SIGSTOP of an etcd member."""
    etcd = harm.draw.choice(harm.pool.etcds)
    if etcd.process is None:
        yield ()
        return
    etcd.pause()
    try:
        yield ()
    finally:
        etcd.resume()


@contextlib.asynccontextmanager
async def killed_control(harm: Harm) -> AsyncIterator[tuple[str, ...]]:
    """``kill -9`` of a control server."""
    control = harm.draw.choice(harm.pool.controls)
    control.kill()
    try:
        yield ()
    finally:
        control.start()


def control_cut(how: str) -> Callable[[Harm], AbstractAsyncContextManager[tuple[str, ...]]]:
    """A control server's way to etcd is cut (both ways, requests, answers) or reset."""

    @contextlib.asynccontextmanager
    async def inject(harm: Harm) -> AsyncIterator[tuple[str, ...]]:
        control = harm.draw.choice(harm.pool.controls)
        async with _harmed([(cable, "") for cable in control.to_etcd], how):
            yield ()

    return inject


@contextlib.asynccontextmanager
async def paused_control(harm: Harm) -> AsyncIterator[tuple[str, ...]]:
    """SIGSTOP of a control server."""
    control = harm.draw.choice(harm.pool.controls)
    control.signal(signal.SIGSTOP)
    try:
        yield ()
    finally:
        control.signal(signal.SIGCONT)


@contextlib.asynccontextmanager
async def shifted_clock(harm: Harm) -> AsyncIterator[tuple[str, ...]]:
    """The wall clock of a sidecar jumps by minutes or hours, by more than sessions last, and back."""
    member = harm.member()
    assert member.clock is not None
    member.clock.shift(harm.draw.choice((-1, 1)) * harm.draw.uniform(60, 3 * 3600))
    try:
        yield (member.name,)
    finally:
        member.clock.shift(0)


async def _of_one_set(harm: Harm) -> list[FaultProgram]:
    """The members in the sync set of some slot, its active first; some member if there are no sync sets."""
    sets = sorted((await harm.pool.valid_sync_sets()).items())
    if not sets:
        return [harm.member()]
    slot, record = harm.draw.choice(sets)
    owner = await harm.pool.owner(slot)
    names = sorted(record.names & set(harm.pool.names), key=lambda name: (owner is None or name != owner.active, name))
    return [harm.pool.members[name] for name in names]


async def _set_or_any(harm: Harm) -> list[FaultProgram]:
    """The same; some member if etcd does not answer, since another fault keeps it from that."""
    try:
        async with asyncio.timeout(1.0):
            return await _of_one_set(harm)
    except (TimeoutError, EtcdError):
        return [harm.member()]


def killed_set(most: int) -> Callable[[Harm], AbstractAsyncContextManager[tuple[str, ...]]]:
    """``kill -9`` of the active of a slot and of others in its sync set at once, so many of them at the most."""

    @contextlib.asynccontextmanager
    async def inject(harm: Harm) -> AsyncIterator[tuple[str, ...]]:
        doomed = (await _set_or_any(harm))[:most]
        for member in doomed:
            member.signal(signal.SIGKILL)
        for member in doomed:
            member.kill()
        try:
            yield tuple(member.name for member in doomed)
        finally:
            for member in doomed:
                if not member.runs:
                    member.start()

    return inject


@contextlib.asynccontextmanager
async def killed_learner(harm: Harm) -> AsyncIterator[tuple[str, ...]]:
    """A sidecar is killed and started, and killed once more while the sync sets take it in again."""
    member = harm.member()
    member.kill()
    member.start()
    await asyncio.sleep(harm.draw.uniform(0.5, 3.0))
    member.kill()
    try:
        yield (member.name,)
    finally:
        if not member.runs:
            member.start()


@contextlib.asynccontextmanager
async def stuttering_member(harm: Harm) -> AsyncIterator[tuple[str, ...]]:
    """A sidecar that runs a quarter of the time: stopped and let go several times a second."""
    member = harm.member()

    async def stutter() -> None:
        try:
            while True:
                member.signal(signal.SIGSTOP)
                await asyncio.sleep(0.15)
                member.signal(signal.SIGCONT)
                await asyncio.sleep(0.05)
        finally:
            member.signal(signal.SIGCONT)

    stuttering = asyncio.create_task(stutter())
    try:
        yield (member.name,)
    finally:
        stuttering.cancel()
        await asyncio.gather(stuttering, return_exceptions=True)


@contextlib.asynccontextmanager
async def stopped_etcd(harm: Harm) -> AsyncIterator[tuple[str, ...]]:
    """All of etcd ends (SIGTERM) and is started again with its data."""
    for etcd in harm.pool.etcds:
        etcd.stop()
    try:
        yield ()
    finally:
        for etcd in harm.pool.etcds:
            etcd.spawn()
        for etcd in harm.pool.etcds:
            await etcd.ready()


def failing_saves(*, of_all: bool) -> Callable[[Harm], AbstractAsyncContextManager[tuple[str, ...]]]:
    """Saves of sessions of one member or of all fail in one way or another; nothing else does."""

    @contextlib.asynccontextmanager
    async def inject(harm: Harm) -> AsyncIterator[tuple[str, ...]]:
        assert harm.pool.gate is not None
        names = tuple(harm.pool.names) if of_all else (harm.member().name,)
        async with harm.pool.gate.failing(names, harm.draw.choice(list(SaveFault))):
            yield names

    return inject


def network_cut(*, both: bool, reset: bool = False) -> Callable[[Harm], AbstractAsyncContextManager[tuple[str, ...]]]:
    """What one party sends to another, or both send, is dropped or answered with a reset. Any two parties."""

    @contextlib.asynccontextmanager
    async def inject(harm: Harm) -> AsyncIterator[tuple[str, ...]]:
        assert harm.pool.network is not None
        one, other = harm.draw.sample(sorted(harm.pool.network.addresses), 2)
        with harm.pool.network.severed([(one, other), (other, one)] if both else [(one, other)], reset=reset):
            yield tuple(name for name in (one, other) if name in harm.pool.members)

    return inject


@contextlib.asynccontextmanager
async def isolated_party(harm: Harm) -> AsyncIterator[tuple[str, ...]]:
    """A party neither hears the others nor is heard."""
    assert harm.pool.network is not None
    parties = sorted(harm.pool.network.addresses)
    lonely = harm.draw.choice(parties)
    others = [party for party in parties if party != lonely]
    with harm.pool.network.severed([pair for other in others for pair in ((lonely, other), (other, lonely))]):
        yield tuple(name for name in (lonely,) if name in harm.pool.members)


FAULTS = (
    Fault("pause of a sidecar", 0.3, 4.0, 6, paused_member),
    Fault("kill -9 of a sidecar", 0.1, 3.0, 4, killed_member),
    Fault("kill -9 of all sidecars but one", 0.1, 2.0, 1, killed_members),
    Fault("end of a sidecar at a named point", 1.0, 5.0, 3, crashing_member),
    Fault("drain of a sidecar", 0.5, 2.0, 2, drained_member),
    Fault("sidecar cut from etcd", 0.3, 9.0, 3, etcd_cut("both"), needs="cables"),
    Fault("etcd's answers to a sidecar lost", 0.3, 5.0, 3, etcd_cut("answers"), needs="cables"),
    Fault("a sidecar's requests to etcd lost", 0.3, 3.0, 1, etcd_cut("requests"), needs="cables"),
    Fault("etcd connections of a sidecar reset", 0.2, 3.0, 2, etcd_cut("reset"), needs="cables"),
    Fault("etcd slow for a sidecar", 1.0, 4.0, 1, etcd_cut("slow"), needs="cables"),
    Fault("sidecar cut from a peer", 0.3, 4.0, 2, peer_cut("both"), needs="cables"),
    Fault("a peer's answers lost", 0.3, 4.0, 3, peer_cut("answers"), needs="cables"),
    Fault("connections to a peer reset", 0.2, 3.0, 2, peer_cut("reset"), needs="cables"),
    Fault("sidecar isolated", 0.5, 9.0, 4, isolated_member, needs="cables"),
    Fault("kill -9 of etcd", 0.1, 3.0, 2, killed_etcd),
    Fault("kill -9 of etcd's leader", 0.1, 3.0, 1, killed_etcd_leader),
    Fault("loss of etcd's quorum", 0.3, 4.0, 1, lost_quorum),
    Fault("pause of etcd", 0.3, 4.0, 2, paused_etcd),
    Fault("kill -9 of a control server", 0.2, 3.0, 1, killed_control),
    Fault("pause of a control server", 0.5, 4.0, 1, paused_control),
    Fault("control server cut from etcd", 0.5, 8.0, 1, control_cut("both"), needs="cables"),
    Fault("etcd's answers to a control server lost", 0.5, 5.0, 1, control_cut("answers"), needs="cables"),
    Fault("clock of a sidecar shifted", 2.0, 6.0, 2, shifted_clock, needs="clocks"),
    Fault("network cut between two parties", 0.3, 9.0, 5, network_cut(both=True), needs="network"),
    Fault("one-way network cut", 0.3, 9.0, 6, network_cut(both=False), needs="network"),
    Fault("network resets between two parties", 0.2, 4.0, 3, network_cut(both=True, reset=True), needs="network"),
    Fault("one-way network resets", 0.2, 4.0, 3, network_cut(both=False, reset=True), needs="network"),
    Fault("party isolated in the network", 0.5, 9.0, 4, isolated_party, needs="network"),
)

REPLICA_FAULTS = (
    *FAULTS,
    Fault("a peer's requests lost", 0.3, 4.0, 4, peer_cut("requests"), needs="cables"),
    Fault("a very slow peer", 1.0, 4.0, 2, peer_cut("very slow"), needs="cables"),
    Fault("a sidecar that stutters", 1.0, 4.0, 4, stuttering_member),
    Fault("kill -9 of a sidecar that joins", 0.1, 3.0, 4, killed_learner),
    Fault("kill -9 of an active and its standby", 0.1, 3.0, 4, killed_set(2)),
    Fault("kill -9 of a whole sync set", 0.1, 3.0, 1, killed_set(8)),
    Fault("a long stop of etcd", 20.0, 60.0, 2, stopped_etcd, whole=True),
    Fault("etcd stopped for minutes", 120.0, 150.0, 0.25, stopped_etcd, whole=True),
    Fault("saves of one member fail", 8.0, 30.0, 6, failing_saves(of_all=False), needs="gate", beside=True),
    Fault("saves of all members fail", 8.0, 30.0, 5, failing_saves(of_all=True), needs="gate", beside=True),
)
"""Those for pools that replicate between members: the usual ones, and what hits copies and the connections to them."""


class Nemesis:
    """Draws faults and carries them out; ``count`` says how many of each there were."""

    def __init__(self, pool: FaultPool, history: History, seed: str, faults: tuple[Fault, ...] = FAULTS) -> None:
        self._harm = Harm(pool, random.Random(seed))
        self._history = history
        self._faults = [fault for fault in faults if not fault.needs or fault.needs in pool.offers]
        self._busy: set[str] = set()
        self._beside: list[asyncio.Task[None]] = []
        self.count: Counter[str] = Counter()

    async def run(self, seconds: float) -> None:
        """Do harm for about so long; all is healed at the end."""
        draw, give_up = self._harm.draw, time.monotonic() + seconds
        under_way: set[asyncio.Task[None]] = set()
        while time.monotonic() < give_up:
            under_way.add(asyncio.create_task(self._one(give_up)))
            await asyncio.sleep(draw.uniform(0.5, 2.0))
            at_once = 2 if draw.random() < 0.4 else 1
            while len(under_way) >= at_once:
                done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        for task in (*under_way, *self._beside):
            await task

    async def _one(self, give_up: float) -> None:
        draw = self._harm.draw
        fault = draw.choices(self._faults, [fault.weight for fault in self._faults])[0]
        part = next((word for word in ("of etcd", "control server", "saves of") if word in fault.name), fault.name)
        if part in self._busy:
            return
        self._busy.add(part)
        self.count[fault.name] += 1
        length = draw.uniform(fault.shortest, fault.longest)
        if not fault.whole:
            length = min(length, max(give_up - time.monotonic(), 0.2))
        if fault.beside:
            self._beside.append(asyncio.create_task(self._inflict(fault, part, length)))
        else:
            await self._inflict(fault, part, length)

    async def _inflict(self, fault: Fault, part: str, length: float) -> None:
        begin = time.monotonic()
        members: tuple[str, ...] = ()
        try:
            async with fault.inject(self._harm) as members:
                await asyncio.sleep(length)
        finally:
            self._busy.discard(part)
            self._history.faults.append(FaultWindow(fault.name, members, begin, time.monotonic()))
