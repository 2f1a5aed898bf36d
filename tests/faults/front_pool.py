"""A whole local pool behind a hedging Envoy, and what a nemesis does to it: the outermost ground for faults.

Everything runs as its users run it: etcd, a control server, a front Envoy, and members that are an application and a
sidecar each. Packets are lost by iptables rules for single ports, so the process that plays this must be alone in a
network namespace (:func:`enter_private_network`).
"""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import aiohttp

from tests.faults.history import FaultWindow, History
from tests.faults.record_log import RecordLog
from tests.harness import forkserver
from tests.harness.local_pools import killed_at_the_end, settled
from tests.harness.waiting import until
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.local import processes as deploy_processes
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.spec_reader import parse_spec

PRIVATE = "UNDERSTUDY_TEST_PRIVATE_NETWORK"
SPEC = """
pool: lists
slots: 24
copies: {copies}
session_ttl: 3600
takeover: {takeover}
retries: {{hedge: fixed}}
durability: {durability}
durability_rules:
- {{prefix: sync-, durability: sync}}
- {{prefix: async-, durability: async}}
"""
APP = f"{sys.executable} -m tests.faults.lists_app"
PARTS = ("app", "sidecar")


def enter_private_network(module: str) -> str:
    """Start this program anew, alone in a network namespace; returns why that cannot be, '' if it is there already."""
    if os.environ.get(PRIVATE):
        return ""
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "ip", "iptables"))):
        return "needs root, unshare, ip and iptables"
    os.environ[PRIVATE] = "1"
    inside = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh", sys.executable, "-m", module, *sys.argv[1:]]
    os.execvp("unshare", ["unshare", "--net", *inside])
    raise AssertionError("unreachable")


class FrontPool:
    """The pool and the hands that break it."""

    def __init__(self, local: LocalPool, http: aiohttp.ClientSession, etcd: EtcdClient) -> None:
        self.local = local
        self.http = http
        self.etcd = etcd
        self.url = f"http://{local.layout.front.listen}"
        self.members = [place.name for place in local.layout.members]
        self.log = RecordLog(PoolKeys(local.layout.pool))
        self._rules: list[list[str]] = []
        self._frozen: list[int] = []

    async def follow(self) -> None:
        """Record what etcd says of the pool, and when sidecars end, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.log.follow_ends(lambda: {m: self._sidecar(m) for m in self.members}))
            async for batch in self.etcd.watch([prefix_range(prefix) for prefix in self.log.prefixes], 1):
                for event in batch.events:
                    if event.kv.value:
                        self.log.note(event.kv)

    def _sidecar(self, member: str) -> int:
        """The process of a member's sidecar; 0 if none runs."""
        return self.local.processes[f"{member}/sidecar"].pid

    def signal(self, process: str, number: signal.Signals) -> None:
        """Send a signal to one process of the pool, if it runs."""
        pid = self.local.processes[process].pid
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                if number is signal.SIGSTOP:
                    self._frozen.append(pid)

    def drop(self, port: int, *ways: str) -> None:
        """Lose all packets to (``dport``) or from (``sport``) a port."""
        for way in ways:
            rule = ["INPUT", "-p", "tcp", f"--{way}", str(port), "-j", "DROP"]
            subprocess.run(["iptables", "-w", "-I", *rule], check=True)
            self._rules.append(rule)

    def _let_packets_through(self) -> None:
        while self._rules:
            subprocess.run(["iptables", "-w", "-D", *self._rules.pop()], check=True)

    async def slow(self, member: str, share: float, least: float = 0.2, most: float = 3.0) -> None:
        """Tell an application to be slow; one that does not answer stays as it is."""
        place = next(place for place in self.local.layout.members if place.name == member)
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            told = {"share": share, "least": least, "most": most}
            async with self.http.post(f"http://{place.app}/slow", json=told, timeout=aiohttp.ClientTimeout(total=5)):
                pass

    def port(self, member: str, part: str) -> int:
        """A port of a member: of its ``app``, ``session_api`` or ``peer``."""
        place = next(place for place in self.local.layout.members if place.name == member)
        return int(getattr(place, part).rpartition(":")[2])

    async def heal(self) -> None:
        """Undo everything that does not come back by itself."""
        self._let_packets_through()
        while self._frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._frozen.pop(), signal.SIGCONT)
        await asyncio.gather(*(self.slow(member, 0.0) for member in self.members))

    async def whole(self) -> bool:
        """Whether every process runs and every slot is owned by a living member."""
        state, _ = await read_pool(self.etcd, self.local.layout.pool)
        running = all(process.state == "running" for process in self.local.processes.all)
        owners = {at.record.active for at in state.owners.values()}
        return running and set(state.members) == set(self.members) and owners <= set(self.members)


Fault = Callable[["FrontPool", str], Awaitable[None]]


def _freeze(*parts: str) -> Fault:
    async def freeze(pool: FrontPool, member: str) -> None:
        for part in parts:
            pool.signal(f"{member}/{part}", signal.SIGSTOP)

    return freeze


def _kill(*parts: str) -> Fault:
    async def kill(pool: FrontPool, member: str) -> None:
        for part in parts:
            pool.signal(f"{member}/{part}", signal.SIGKILL)

    return kill


def _cut(part: str, *ways: str) -> Fault:
    async def cut(pool: FrontPool, member: str) -> None:
        pool.drop(pool.port(member, part), *ways)

    return cut


async def _slow(pool: FrontPool, member: str) -> None:
    await pool.slow(member, 0.5)


async def _all_slow(pool: FrontPool, member: str) -> None:
    await asyncio.gather(*(pool.slow(each, 0.3) for each in pool.members))


async def _freeze_etcd(pool: FrontPool, member: str) -> None:
    pool.signal("etcd", signal.SIGSTOP)


async def _kill_two(pool: FrontPool, member: str) -> None:
    other = next(name for name in pool.members if name != member)
    for name in (member, other):
        await _kill(*PARTS)(pool, name)


FAULTS: dict[str, Fault] = {
    "freeze application": _freeze("app"),
    "freeze sidecar": _freeze("sidecar"),
    "freeze member": _freeze(*PARTS),
    "kill application": _kill("app"),
    "kill sidecar": _kill("sidecar"),
    "kill member": _kill(*PARTS),
    "slow application": _slow,
    "slow applications": _all_slow,
    "cut application off": _cut("app", "dport", "sport"),
    "lose requests to application": _cut("app", "dport"),
    "lose answers of application": _cut("app", "sport"),
    "cut application from sidecar": _cut("session_api", "dport", "sport"),
    "lose answers of sidecar": _cut("session_api", "sport"),
    "cut sidecar from peers": _cut("peer", "dport", "sport"),
    "freeze etcd": _freeze_etcd,
    "kill two members": _kill_two,
}


class FrontNemesis:
    """Does harm in an order drawn from a seed, one fault at a time or two."""

    def __init__(self, pool: FrontPool, history: History, seed: str, only: Sequence[str] = ()) -> None:
        self._pool = pool
        self._history = history
        self._random = random.Random(seed)
        self._names = list(only or FAULTS)
        self.count: Counter[str] = Counter()

    async def run(self, seconds: float) -> None:
        """Do harm for so long; everything is healed at the end."""
        over = time.monotonic() + seconds
        while time.monotonic() < over:
            begin = time.monotonic()
            member = self._random.choice(self._pool.members)
            names = [self._random.choice(self._names) for _ in range(self._random.choice((1, 1, 2)))]
            for name in names:
                self.count[name] += 1
                await FAULTS[name](self._pool, member)
            await asyncio.sleep(self._random.uniform(0.5, 4.0))
            await self._pool.heal()
            end = time.monotonic()
            self._history.faults += [FaultWindow(name, (member,), begin, end) for name in names]
            await asyncio.sleep(self._random.uniform(0.3, 2.0))


@contextlib.asynccontextmanager
async def front_pool(
    directory: Path, *, takeover: str, stamps: bool, durability: str = "sync"
) -> AsyncIterator[FrontPool]:
    """A pool of three members that has settled; gone at the end of the block. Logs stay in ``directory``."""
    # With two copies, two deaths at once are a loss.
    copies = 2 if durability == "replicas" else 3
    spec = parse_spec(SPEC.format(takeover=takeover, durability=durability, copies=copies), where="test")
    environment = {**os.environ, "STAMPS": "on" if stamps else "off", "OTEL_SDK_DISABLED": "true"}
    os.environ.update(environment)
    settings = LocalSettings(directory=directory, spec=spec, app=APP, environment=environment)
    connector = aiohttp.TCPConnector(limit=0)
    forkserver.start()
    deploy_processes.tethered = forkserver.forked_program  # for good: this process has no other purpose
    async with (
        aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as http,
        LocalPool(settings) as local,
        EtcdClient(local.layout.etcd) as etcd,
        killed_at_the_end(local),
    ):
        http._retry_connection = False
        pool = FrontPool(local, http, etcd)
        await settled(local.layout, etcd)
        following = asyncio.create_task(pool.follow())
        try:
            yield pool
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await pool.heal()


async def await_whole(pool: FrontPool, seconds: float) -> None:
    """Wait until the pool is whole and at rest again."""
    await until(pool.whole, seconds, "the pool is whole again", every=0.5)
    await settled(pool.local.layout, pool.etcd)
