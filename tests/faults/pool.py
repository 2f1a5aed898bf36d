"""A pool under test: real etcd, real control servers, real sidecars, and a cable between any two of them to be cut.

Each sidecar reaches etcd through a cable of its own, and its peer port is advertised as a cable that tells its callers
apart by the process behind the connection, so that any pair can be cut in either direction. Where that is asked for,
a gate between the sidecars and etcd can make saves of sessions fail. A health responder stands
for each application: these tests are about what happens below them. ``namespaces.py`` has another ground for all this.
"""

import asyncio
import contextlib
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web

from tests.faults.history import OwnerChange, ProcessSeen, SyncChange
from tests.faults.record_log import RecordLog
from tests.harness.cable import Cable, cable_to
from tests.harness.clock import WallClock
from tests.harness.etcd import EtcdServer
from tests.harness.etcd_gate import EtcdGate, etcd_gate
from tests.harness.http_app import http_app
from tests.harness.netns import Network
from tests.harness.places import ROOT
from tests.harness.processes import bound_to
from tests.harness.programs import Program
from tests.harness.records import PoolRecords
from tests.harness.sidecars import sidecar_command
from tests.harness.sockets import has_socket, inode_of_connection
from tests.harness.waiting import free_port, until
from understudy.deploy.inspect.converged import not_converged
from understudy.deploy.inspect.query import read_pool
from understudy.statesync.etcd.client import EtcdClient, Kv
from understudy.statesync.etcd.key_range import KeyRange, prefix_range
from understudy.statesync.pool.records import Lost, Table
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_reader import parse_spec

DEBIAN_ETCD = Path("/usr/bin/etcd")

DRAIN_SECONDS = 5.0
STATUS_TIMEOUT = 10.0
SILENCES = ("silent", "its process has stopped")
"""What causes say of a member that did not answer in time."""


class KilledEtcd(EtcdServer):
    """An etcd that may be killed under load: Debian's 3.4, since 3.5.0 to 3.5.2 are known to lose data then."""

    launcher: Sequence[str] = ()
    """What its command begins with, if that is more than the program."""

    @property
    def client_url(self) -> str:
        """Where it listens for clients."""
        return f"http://{self.endpoint}"

    def spawn(self) -> None:
        """Start the process and return at once."""
        if not DEBIAN_ETCD.exists():
            super().spawn()
            return
        url = self.client_url
        heartbeat, election = self.timing
        command = [
            *(*self.launcher, str(DEBIAN_ETCD)),
            *("--name", self.name, "--data-dir", str(self.home / "data")),
            *("--listen-client-urls", url, "--advertise-client-urls", url),
            *("--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url),
            *("--initial-cluster", self.cluster, "--listen-metrics-urls", f"http://127.0.0.1:{self.metrics_port}"),
            *("--heartbeat-interval", heartbeat, "--election-timeout", election, "--snapshot-count", "5000"),
            *("--logger", "zap", "--log-level", "warn", *self.arguments),
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                bound_to(os.getpid(), command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home
            )


@dataclass(eq=False)
class FaultProgram(Program):
    """A process of the pool, with what faults need.

    ``to_etcd`` are its cables to each etcd. A sidecar also has the address of its session ``api``, the cable of its
    peers, its wall clock if that can be set, and its ``redis`` port if it has one.
    """

    to_etcd: list[Cable] = field(default_factory=list)
    api: str = ""
    from_peers: Cable | None = None
    clock: WallClock | None = None
    redis: str = ""

    def __post_init__(self) -> None:
        self.environment = {"OTEL_SDK_DISABLED": "true", "PYTHONPATH": str(ROOT), **self.environment}

    def option(self, name: str) -> str:
        """The value of an option of its command line."""
        return self.command[self.command.index(name) + 1]


class FaultPool(PoolRecords):
    """Everything that runs, the pool's records, and the test's hands on all of it."""

    def __init__(self, client: EtcdClient, spec: PoolSpec, http: aiohttp.ClientSession, home: Path) -> None:
        super().__init__(client, spec)
        self.name = spec.pool
        self.http = http
        self.home = home
        self.etcds: list[EtcdServer] = []
        self.controls: list[FaultProgram] = []
        self.members: dict[str, FaultProgram] = {}
        self.network: Network | None = None
        self.gate: EtcdGate | None = None
        self.before = ""
        """What each sidecar's program does before anything else."""
        self.sites: Sequence[str] = ()
        self.log = RecordLog(self.keys)
        self.silences: dict[tuple[str, Lost], int] = {}
        """For each time that a table called a member lost by silence: the revision of the first such table."""

    @property
    def owner_changes(self) -> list[OwnerChange]:
        """Every version of every owner record so far."""
        return self.log.owner_changes

    @property
    def sync_changes(self) -> list[SyncChange]:
        """Every version of every sync set so far."""
        return self.log.sync_changes

    @property
    def processes(self) -> list[ProcessSeen]:
        """The processes of members so far."""
        return self.log.processes

    @property
    def names(self) -> list[str]:
        """The members' names."""
        return list(self.members)

    def source_of(self, port: int, relay_port: int) -> str:
        """The member whose connection to a relay leaves from local ``port``; '' if it is none of them."""
        inode = inode_of_connection(port, relay_port)
        for member in self.members.values():
            if inode and member.runs and member.process and has_socket(member.process.pid, inode):
                return member.name
        return ""

    @property
    def offers(self) -> frozenset[str]:
        """What faults can be done with, besides signals: ``cables`` or a ``network``, ``clocks``, and a ``gate``."""
        clocks = {"clocks"} if all(member.clock for member in self.members.values()) else set()
        return frozenset({"network" if self.network else "cables"} | clocks | ({"gate"} if self.gate else set()))

    def takeovers(self, since: int = 0) -> list[OwnerChange]:
        """The recorded changes of owner, from number ``since`` on, that came from a member being called lost.

        Not those by silence: on a busy machine a process may be late with its answer, whatever the test does.
        """
        changes = [change for change in self.owner_changes[since:] if " lost: " in change.cause]
        return [change for change in changes if not _tells_silence(change.cause)]

    def moves(self, since: int) -> list[OwnerChange]:
        """All recorded changes from number ``since`` on, until a member was called lost by silence.

        What a busy machine causes is not the test's, and neither are the moves that follow from it.
        """
        end = self.silence(since) or math.inf
        return [change for change in self.owner_changes[since:] if change.revision < end]

    def silence(self, since: int) -> int:
        """The revision at which a member was first called lost by silence, after change ``since``; 0: none was."""
        before = max((change.revision for change in self.owner_changes[:since]), default=0)
        told = [change.revision for change in self.owner_changes[since:] if _tells_silence(change.cause)]
        told += [revision for revision in self.silences.values() if revision > before]
        return min(told, default=0)

    async def key_at(self, name: str) -> str:
        """A session key in a slot of this member; waits until it owns one."""

        async def owned() -> list[int]:
            return _numbers(await self.status(name))

        return self.key_of(await until(owned, 40, f"{name} owns a slot"))

    def key_of(self, slots: Collection[int]) -> str:
        """A session key in one of these slots."""
        return next(key for key in map(str, range(10_000)) if slot_of(key, self.spec.slots) in slots)

    async def leader(self) -> EtcdServer:
        """The etcd that leads; raises ``LookupError`` while there is none."""
        for etcd in self.etcds:
            if etcd.process is None:
                continue
            async with etcd.client(timeout=1.5) as client:
                if any(status.leader for status in await client.status()):
                    return etcd
        raise LookupError("etcd has no leader")

    async def status(self, name: str) -> dict[str, object]:
        """A member's view of itself; raises ``aiohttp.ClientError`` or ``TimeoutError``."""
        url = f"http://{self.members[name].api}/v1/status"
        async with self.http.get(url, timeout=aiohttp.ClientTimeout(total=STATUS_TIMEOUT)) as answer:
            content: dict[str, object] = await answer.json()
            return content

    def site_of(self, member: str) -> str:
        """The site of a member, by its number; '' without sites."""
        return self.sites[int(member[1:]) % len(self.sites)] if self.sites else ""

    async def settled(self) -> bool:
        """Whether every slot is owned, stably, by a member that runs and knows it, and none waits to be moved."""
        for member in self.members.values():
            if not member.runs:
                member.start()
        owners = await self.owners()
        if await self.table() is None or len(owners) != self.spec.slots:
            return False
        holding = {name: set(_numbers(await self.status(name))) for name in self.names}
        return all(owner.phase == "stable" and slot in holding[owner.active] for slot, owner in owners.items())

    async def at_rest(self) -> bool:
        """Whether it is settled, and every slot is with whom the table wants, some with each member."""
        if not await self.settled():
            return False
        state, _ = await read_pool(self.client, self.name)
        return not not_converged(state, []) and {at.record.active for at in state.owners.values()} == set(self.names)

    async def follow_owners(self) -> None:
        """Record every version of every owner record and sync set, processes, and who is called lost by silence."""
        async with EtcdClient([etcd.endpoint for etcd in self.etcds]) as client:
            ranges = [*map(prefix_range, self.log.prefixes), KeyRange(self.keys.table, f"{self.keys.table}\0")]
            async for batch in client.watch(ranges, 1):
                for event in batch.events:
                    if event.kv.value and event.kv.key == self.keys.table:
                        self._note_silences(event.kv)
                    elif event.kv.value:
                        self.log.note(event.kv)

    async def follow_ends(self) -> None:
        """Record when processes of members end, until cancelled."""
        await self.log.follow_ends(
            lambda: {member.name: member.pid if member.runs else 0 for member in self.members.values()}
        )

    def _note_silences(self, kv: Kv) -> None:
        for entry in Table.decode(kv.value).lost.items():
            if _tells_silence(entry[1].cause):
                self.silences.setdefault(entry, kv.mod_revision)

    async def followed(self) -> bool:
        """Whether :attr:`owner_changes` has come to the owner records as they are now."""
        newest = {change.slot: change.revision for change in self.owner_changes}
        page = await self.client.range(prefix_range(self.keys.owners))
        return newest == {int(kv.key[-5:]): kv.mod_revision for kv in page.kvs}

    def describe(self) -> str:
        """What etcd it is."""
        version = "Debian's 3.4" if DEBIAN_ETCD.exists() else "the embedded 3.5.1"
        return (
            f"{len(self.members)} members, {len(self.controls)} control server(s), {len(self.etcds)} x etcd {version}"
        )


def _tells_silence(cause: str) -> bool:
    return any(silence in cause for silence in SILENCES)


def _numbers(status: dict[str, object]) -> list[int]:
    active = status["active"]
    return [int(slot) for slot in active] if isinstance(active, list) else []


class Ground:
    """Where the processes of a pool run: here all on loopback, with a cable between any two."""

    network: Network | None = None

    async def etcds(
        self, stack: contextlib.AsyncExitStack, count: int, arguments: Sequence[str]
    ) -> Sequence[EtcdServer]:
        """So many etcds, not started yet."""
        return [KilledEtcd(f"etcd{number}", arguments=arguments) for number in range(1, count + 1)]

    async def member(self, pool: "FaultPool", stack: contextlib.AsyncExitStack, name: str) -> FaultProgram:
        """A sidecar, not started yet, and what stands for its application, which runs."""
        api, peer = (f"127.0.0.1:{free_port()}" for _ in range(2))
        ways = [pool.gate.way(name, etcd.endpoint) if pool.gate else etcd.endpoint for etcd in pool.etcds]
        cables = [await stack.enter_async_context(cable_to(way)) for way in ways]
        from_peers = await stack.enter_async_context(cable_to(peer, pool.source_of))
        command = sidecar_command(
            name,
            pool.name,
            before=pool.before,
            drain_seconds=DRAIN_SECONDS,
            app=f"127.0.0.1:{await stack.enter_async_context(http_app(self._answer))}",
            session_api=api,
            peer=peer,
            advertise=from_peers.address,
            etcd=[cable.address for cable in cables],
            site=pool.site_of(name),
        )
        return FaultProgram(name, command, pool.home / f"{name}.log", to_etcd=cables, api=api, from_peers=from_peers)

    async def control(self, pool: "FaultPool", stack: contextlib.AsyncExitStack, name: str) -> FaultProgram:
        """A control server, not started yet."""
        cables = [await stack.enter_async_context(cable_to(etcd.endpoint)) for etcd in pool.etcds]
        grpc, http = (f"127.0.0.1:{free_port()}" for _ in range(2))
        command = control_command(pool, name, "--grpc", grpc, "--http", http, etcds=[c.address for c in cables])
        return FaultProgram(name, command, pool.home / f"{name}.log", to_etcd=cables)

    @staticmethod
    async def _answer(_: web.Request) -> web.Response:
        """What stands for an application: it answers its health path."""
        return web.Response(text="ok")


def control_command(pool: FaultPool, name: str, *flags: str, etcds: Sequence[str]) -> list[str]:
    """How a control server is started."""
    return [
        *(
            sys.executable,
            "-m",
            "understudy.deploy.cli",
            "--log-level",
            "info",
            "control",
            "--name",
            name,
            "--pool",
            pool.name,
        ),
        *("--etcd", ",".join(etcds), *flags),
    ]


async def _start_etcds(
    stack: contextlib.AsyncExitStack, ground: Ground, count: int, arguments: Sequence[str]
) -> list[EtcdServer]:
    etcds = list(await ground.etcds(stack, count, arguments))
    cluster = ",".join(etcd.cluster for etcd in etcds)
    for etcd in etcds:
        stack.callback(etcd.close)
        etcd.cluster, etcd.timing = cluster, ("50", "500")
        etcd.spawn()
    for etcd in etcds:
        await etcd.ready()
    return etcds


@contextlib.asynccontextmanager
async def fault_pool(
    *,
    takeover: str,
    members: int = 3,
    controls: int = 1,
    etcds: int = 1,
    etcd_arguments: Sequence[str] = (),
    slots: int = 24,
    home: Path | None = None,
    ground: Ground | None = None,
    clocks: bool = False,
    traces: bool = False,
    before: str = "",
    more: str = "",
    sites: Sequence[str] = (),
    gate: bool = False,
) -> AsyncIterator[FaultPool]:
    """A pool of its own that has settled; gone at the end of the block. ``home`` keeps the logs.

    With ``traces`` the processes trace what they do. With ``clocks`` the members' wall clocks can be set, which needs
    :data:`~tests.harness.clock.LIBRARY`. ``before`` is what each sidecar's program does first, ``more`` are further
    lines of the spec. Members are on ``sites`` in turn. With ``gate`` sidecars on loopback reach etcd through one.
    Without control servers the test writes the slot table; at first all slots have the members in the order of names.
    """
    async with contextlib.AsyncExitStack() as stack:
        if home is None:
            home = Path(tempfile.mkdtemp(prefix="understudy-faults-"))
            stack.callback(shutil.rmtree, home, ignore_errors=True)
        name = f"faults-{random.SystemRandom().randrange(16**8):08x}"
        spec = parse_spec(f"pool: {name}\nslots: {slots}\ntakeover: {takeover}\n{more}", where="test")
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        http._retry_connection = False  # aiohttp's own silent repeats would be attempts that nobody recorded
        ground = ground or Ground()
        servers = await _start_etcds(stack, ground, etcds, etcd_arguments)
        client = await stack.enter_async_context(EtcdClient([etcd.endpoint for etcd in servers]))
        pool = FaultPool(client, spec, http, home)
        pool.network, pool.etcds, pool.before, pool.sites = ground.network, servers, before, sites
        await pool.apply(spec)
        names = [f"m{number}" for number in range(1, members + 1)]
        if gate:
            endpoints, saved = [etcd.endpoint for etcd in servers], [pool.keys.sessions, pool.keys.requests]
            pool.gate = await stack.enter_async_context(etcd_gate(names, endpoints, saved, home / "etcd-gate.log"))
        for name in names:
            member = await ground.member(pool, stack, name)
            if clocks:
                member.clock = WallClock(home / f"{member.name}.clock")
                member.environment |= member.clock.environment
            pool.members[member.name] = member
        for number in range(1, controls + 1):
            pool.controls.append(await ground.control(pool, stack, f"control-{number}"))
        if not pool.controls:
            await pool.write_table([pool.names])
        for program in (*pool.controls, *pool.members.values()):
            stack.callback(program.kill)
            program.environment |= {"OTEL_SDK_DISABLED": ""} if traces else {}
            program.start()
        served = pool.at_rest if pool.controls else pool.settled
        await until(served, 90, f"the pool is served (logs: {home})", every=0.2)
        following = [asyncio.create_task(pool.follow_owners()), asyncio.create_task(pool.follow_ends())]
        try:
            await until(pool.followed, 40, "the owner records are followed")
            yield pool
        finally:
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)
