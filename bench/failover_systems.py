"""The six systems of bench/failover.py: how they are started, struck and mended. All on loopback.

The peers share one class: four applications, perhaps Redis with a replica, and one proxy. Understudy is its own local
pool. ``whole`` tells when a system is as before an event, by its own word: the proxy's health view, or the slot table.
"""

import asyncio
import csv
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import aiohttp

from bench.failover_proxies import WORKERS, envoy_config, haproxy_config
from understudy.deploy.inspect.converged import not_converged
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.deploy.local.ports import PortPicker
from understudy.deploy.local.processes import Processes, Program
from understudy.proxy.front.binary import find_envoy
from understudy.proxy.ownership.drain import LINGER
from understudy.statesync.etcd.client import EtcdClient, EtcdError
from understudy.statesync.pool.records import Intent
from understudy.statesync.pool.spec import PoolSpec

MEMBERS = 4
TITLES = {
    "maglev": "(a) Envoy Maglev, state in memory",
    "maglev-redis": "(b) Envoy Maglev + Redis",
    "cookie-redis": "(c) Envoy stateful_session + Redis",
    "haproxy-redis": "(d) HAProxy stick table + Redis",
    "understudy": "(e) Understudy, `sync`",
    "understudy-replicas": "(f) Understudy, `replicas`",
}
DRAIN_LOOK = 0.1
DRAIN_PATIENCE = 10.0


class System(Protocol):
    """One system under test. Use as an async context manager."""

    own_key: bool
    members: tuple[str, ...]
    url: str
    processes: Processes

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *_: object) -> None: ...
    def pids(self, member: str) -> list[int]: ...
    def kill(self, member: str, part: str = "") -> None: ...
    async def end(self, member: str) -> None: ...
    async def start_again(self, member: str, part: str = "") -> None: ...
    async def drain(self, member: str) -> None: ...
    async def undrain(self, member: str) -> None: ...
    async def whole(self) -> bool: ...


def freeze(system: System, member: str) -> None:
    for pid in system.pids(member):
        os.kill(pid, signal.SIGSTOP)


def thaw(system: System, member: str) -> None:
    for pid in system.pids(member):
        os.kill(pid, signal.SIGCONT)


class Peer:
    """(a) to (d)."""

    own_key = True

    def __init__(self, name: str, directory: Path, members: int = MEMBERS) -> None:
        self._proxy = "haproxy" if name.startswith("haproxy") else "envoy"
        self._sticky = "cookie" if name.startswith("cookie") else "hash"
        self._with_redis = name.endswith("redis")
        self._directory = directory
        ports = self._ports = PortPicker()
        self.members = tuple(f"app-{number}" for number in range(1, members + 1))
        self._apps = {name: ports.pick() for name in self.members}
        self._listen, self._admin, self._peer_listen = ports.pick(), ports.pick(), ports.pick()
        self._peers = {"one": ports.pick(), "two": ports.pick()}
        self._redis = (ports.pick(), ports.pick())
        self.url = f"http://{self._listen}"
        self.processes = Processes()
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        await self.processes.__aenter__()
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1))
        try:
            if self._with_redis:
                await self.processes.start(*self._redis_programs())
                await asyncio.sleep(1.5)  # the replica's first copy
            await self.processes.start(*(self._app(name) for name in self.members))
            await self.processes.start(*self._proxy_programs())
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.processes.__aexit__()
        self._ports.close()
        if self._http is not None:
            await self._http.close()

    def pids(self, member: str) -> list[int]:
        return [self.processes[member].pid]

    def kill(self, member: str, part: str = "") -> None:  # noqa: ARG002 - it has no parts
        self.processes.kill(member)

    async def end(self, member: str) -> None:
        await self.processes.terminate(member)

    async def start_again(self, member: str, part: str = "") -> None:  # noqa: ARG002 - as above
        await self.processes.start_again(member)

    async def drain(self, member: str) -> None:
        """As the proxy's documentation says; returns when the proxy sends it nothing and it has answered everything.

        Envoy: the member fails its checks. HAProxy: ``maint`` on the admin socket; after ``drain`` it would still be
        sent the sessions that stick to it, and never be without.
        """
        if self._proxy == "haproxy":
            await self._order(f"set server apps/{member} state maint")
        else:
            os.kill(self.processes[member].pid, signal.SIGUSR1)
        give_up = time.monotonic() + DRAIN_PATIENCE
        out = False
        while time.monotonic() < give_up:
            away, busy = await self._seen_of(member)
            if away and out and not busy:
                return
            out = away  # the workers hear of it after the thread that tells us
            await asyncio.sleep(DRAIN_LOOK)
        raise RuntimeError(f"{member} does not drain: its proxy says {'away' if away else 'in use'}, busy {busy}")

    async def undrain(self, member: str) -> None:
        if self._proxy == "haproxy":
            await self._order(f"set server apps/{member} state ready")
        else:
            os.kill(self.processes[member].pid, signal.SIGUSR2)

    async def whole(self) -> bool:
        if self._proxy == "haproxy":
            rows = await self._haproxy_stat()
            return all(rows[name]["status"] == "UP" for name in self.members)
        assert self._http is not None
        wanted = "cluster.apps.(membership_healthy|outlier_detection.ejections_active)$"
        async with self._http.get(f"http://{self._admin}/stats", params={"filter": wanted}) as answer:
            found = dict(line.split(": ") for line in (await answer.text()).splitlines())
        ejected = found["cluster.apps.outlier_detection.ejections_active"]
        return (found["cluster.apps.membership_healthy"], ejected) == (str(len(self.members)), "0")

    async def _seen_of(self, member: str) -> tuple[bool, int]:
        """Whether the proxy has taken the member out of use, and how many requests to it are under way."""
        if self._proxy == "haproxy":
            row = (await self._haproxy_stat())[member]
            return row["status"].startswith("MAINT"), int(row["scur"])
        assert self._http is not None
        async with self._http.get(f"http://{self._admin}/clusters") as answer:
            lines = (await answer.text()).splitlines()
        begin = f"apps::{self._apps[member]}::"
        found = dict(line.removeprefix(begin).split("::") for line in lines if line.startswith(begin))
        return "/failed_active_hc" in found["health_flags"], int(found["rq_active"])

    async def _haproxy_stat(self) -> dict[str, dict[str, str]]:
        """``show stat`` of the applications' servers, by server and by the names in its first line."""
        titles, *rows = csv.reader((await self._order("show stat")).removeprefix("# ").splitlines())
        stats = [dict(zip(titles, row, strict=False)) for row in rows]
        return {row["svname"]: row for row in stats if row.get("pxname") == "apps"}

    async def _order(self, line: str) -> str:
        reader, writer = await asyncio.open_unix_connection(str(self._directory / "one.sock"))
        writer.write(f"{line}\n".encode())
        await writer.drain()
        answer = (await reader.read()).decode()
        writer.close()
        return answer

    def _app(self, name: str) -> Program:
        port = self._apps[name].rsplit(":", 1)[1]
        store = f"redis://{self._redis[0]}" if self._with_redis else "memory"
        return Program(
            name=name,
            command=(sys.executable, "-m", "bench.failover_app", "--store", store, "--name", name, "--port", port),
            log=self._directory / f"{name}.log",
            stage=2,
            env={"PYTHONPATH": str(Path(__file__).parents[1])},
            health=f"http://{self._apps[name]}/healthz",
        )

    def _redis_programs(self) -> list[Program]:
        first, second = (address.rsplit(":", 1)[1] for address in self._redis)
        home = ("--dir", str(self._directory))  # where a replica keeps what it was sent at first
        plain = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0", *home)
        return [
            Program("redis", ("/usr/bin/redis-server", "--port", first, *plain), self._directory / "redis.log", 1),
            Program(
                "replica",
                ("/usr/bin/redis-server", "--port", second, "--replicaof", "127.0.0.1", first, *plain),
                self._directory / "replica.log",
                1,
            ),
        ]

    def _proxy_programs(self) -> list[Program]:
        if self._proxy == "envoy":
            config = self._directory / "envoy.json"
            config.write_text(envoy_config(self._apps, self._listen, self._admin, sticky=self._sticky))
            command = (
                str(find_envoy(os.environ)),
                *("-c", str(config), "--concurrency", str(WORKERS), "--use-dynamic-base-id", "--log-level", "warning"),
            )
            return [Program("envoy", command, self._directory / "envoy.log", 3, health=f"http://{self._admin}/ready")]
        found = []
        for name, listen in (("one", self._listen), ("two", self._peer_listen)):
            config = self._directory / f"{name}.cfg"
            config.write_text(haproxy_config(self._apps, listen, self._peers, str(self._directory / f"{name}.sock")))
            command = ("/usr/sbin/haproxy", "-db", "-L", name, "-f", str(config))
            found.append(Program(f"haproxy-{name}", command, self._directory / f"haproxy-{name}.log", 3))
        return found


class Understudy:
    """(e) and (f): the local pool; ``etcds`` 3 where etcd's leader is to be lost."""

    own_key = False

    def __init__(self, directory: Path, durability: Literal["sync", "replicas"] = "sync", etcds: int = 1) -> None:
        settings = LocalSettings(
            directory=directory,
            spec=PoolSpec(pool="cart", durability=durability),
            members=MEMBERS,
            etcds=etcds,
            log_level="warning",
            environment={**os.environ, "UNDERSTUDY_ETCD_BINARY": "/usr/bin/etcd"},
        )
        self.pool = LocalPool(settings)
        self.processes = self.pool.processes
        self.members = tuple(place.name for place in self.pool.layout.members)
        self.url = self.pool.layout.front_url
        self._etcd: EtcdClient | None = None
        self._status = {place.name: f"http://{place.session_api}/v1/status" for place in self.pool.layout.members}
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        await self.pool.__aenter__()
        self._etcd = EtcdClient(self.pool.etcd_endpoints)
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._etcd is not None:
            await self._etcd.close()
        if self._http is not None:
            await self._http.close()
        await self.pool.__aexit__()

    @property
    def etcd(self) -> EtcdClient:
        assert self._etcd is not None
        return self._etcd

    def pids(self, member: str) -> list[int]:
        return [self.pool.processes[name].pid for name in self._names(member)]

    def kill(self, member: str, part: str = "") -> None:
        self.pool.processes.kill(*self._names(member, part))

    async def end(self, member: str) -> None:
        await self.pool.processes.terminate(*self._names(member))

    async def start_again(self, member: str, part: str = "") -> None:
        await self.pool.processes.start_again(*self._names(member, part))

    async def drain(self, member: str) -> None:
        """As ``understudy drain`` does, but the member is asked what it still serves.

        To read and decode all owner records takes 9 ms, in the process of the clients.
        """
        assert self._http is not None
        await self.etcd.put(f"/understudy/v1/cart/admin/{member}", Intent(member, 0.0, 0.0).encode())
        give_up = time.monotonic() + DRAIN_PATIENCE
        while time.monotonic() < give_up:
            await asyncio.sleep(DRAIN_LOOK)
            async with self._http.get(self._status[member]) as answer:
                if not (await answer.json())["active"]:
                    await asyncio.sleep(LINGER)
                    return
        raise RuntimeError(f"{member} does not drain")

    async def undrain(self, member: str) -> None:
        await self.etcd.delete(f"/understudy/v1/cart/admin/{member}")

    async def whole(self) -> bool:
        try:
            state, _ = await read_pool(self.etcd, "cart")
        except EtcdError:
            return False
        held: dict[str, int] = {}
        for at in state.owners.values():
            held[at.record.active] = held.get(at.record.active, 0) + 1
        # A fair share is one slot to either side of the exact one.
        fair = all(held.get(name, 0) >= 256 // MEMBERS - 1 for name in self.members)
        return fair and not not_converged(state, []) and all(name in state.members for name in self.members)

    async def etcd_leader(self) -> str:
        """The process name of etcd's leader."""
        leader = next(status.endpoint for status in await self.etcd.status() if status.leader)
        addresses = [url.partition("://")[2] for url in self.pool.layout.etcd]
        return self.pool.layout.etcd_names[addresses.index(leader.partition("://")[2] or leader)]

    def _names(self, member: str, part: str = "") -> tuple[str, ...]:
        return (f"{member}/{part}",) if part else self.pool.member_processes(member)


def make(name: str, directory: Path, scenario: str) -> Any:
    if name.startswith("understudy"):
        etcds = 3 if scenario == "etcd-leader" else 1
        return Understudy(directory, "replicas" if name.endswith("replicas") else "sync", etcds)
    return Peer(name, directory)
