"""The Redis port beside Redis: ``make bench-redis``. Writes bench/results/redis.json and prints a table.

One client process sends the same commands to a real Redis and to a sidecar, in turns. ``--redis-url`` names a port that
runs already. Otherwise the bench starts a sidecar, its standby and an etcd that syncs its log to disk. Beside the times
stands the CPU that each process took, from /proc. docs/benchmarks.md tells what came out and why.
"""

import argparse
import contextlib
import importlib.metadata
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from bench.cpu import cpu_ms
from bench.sessions import ETCD, ONE, child, machine, median, pool_of, redis_pair, report
from bench.xds import Child
from tests.harness.etcd import EtcdServer, running_etcd
from tests.harness.sidecars import MemberProcesses, SidecarPool
from tests.harness.waiting import free_port, until
from understudy.proxy.sidecar.settings import SidecarSettings
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.records import SyncRecord

RESULTS = Path(__file__).parents[1] / "bench/results/redis.json"
KEYS = 12_800
"""A multiple of what all connections of each shape send at a time, so that every key is written."""
SHAPES = ((1, 1), (16, 1), (50, 1), (1, 16), (50, 16))
"""Connections, and commands that each has under way."""


@dataclass(frozen=True)
class System:
    """What is measured: where it listens, its processes, and the commands that it is asked for.

    ``client`` is the name that its clients give themselves. With ``wait``, each batch of writes ends with ``WAIT 1``.
    """

    name: str
    url: str
    processes: Mapping[str, int] = field(default_factory=dict)
    commands: Sequence[str] = ("GET", "SET")
    client: str = ""
    wait: bool = False


# -- what is measured --


def pid_at(port: int) -> int:
    """The process that listens at a port of this machine."""
    inodes = {
        line.split()[9]
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].rpartition(":")[2], 16) == port
    }
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if str(link.readlink())[8:-1] in inodes:
                return int(link.parts[2])
    return 0


def peers(port: int) -> Iterator[System]:
    """Redis with one replica: as most use it, and waiting for the replica at each write."""
    if port:
        replica = next((at for at in _replicas_of(port) if at), 0)
        processes = {"redis": pid_at(port), **({"its replica": pid_at(replica)} if replica else {})}
        yield System("Redis", f"127.0.0.1:{port}", processes)
        yield System("Redis, WAIT 1", f"127.0.0.1:{port}", processes, ("SET",), wait=True)


def _replicas_of(port: int) -> Iterator[int]:
    with socket.create_connection(("127.0.0.1", port), 2) as wire:
        wire.sendall(b"INFO replication\r\n")
        text = wire.recv(65536).decode()
    for line in text.splitlines():
        if line.startswith("slave") and "port=" in line:
            yield int(line.partition("port=")[2].partition(",")[0])


def ours(url: str, processes: Mapping[str, int]) -> Iterator[System]:
    """The Redis port, with both kinds of durability."""
    yield System("ours", url, processes)
    yield System("ours, async", url, processes, ("SET",), client="understudy:durability=async")


@asynccontextmanager
async def sidecars() -> AsyncIterator[list[System]]:
    """A sidecar that owns every slot, and its standby; nothing if sidecars have no Redis port yet."""
    if "redis" not in {each.name for each in fields(SidecarSettings)}:
        yield []
        return
    async with (
        running_etcd(arguments=ETCD) as etcd,
        two_sidecars(etcd, "bench", "sync") as (url, processes),
        two_sidecars(etcd, "bench-replicas", "replicas") as (replicas_url, replicas_processes),
    ):
        replicas = System("ours, replicas", replicas_url, replicas_processes, ("SET",))
        yield [*ours(url, processes), replicas]


@asynccontextmanager
async def two_sidecars(etcd: EtcdServer, name: str, durability: str) -> AsyncIterator[tuple[str, dict[str, int]]]:
    """Two sidecars, one of which owns all slots: where its Redis port is, and the processes that take part."""
    async with pool_of(etcd, name, durability=durability) as pool:
        ports = {member: f"127.0.0.1:{free_port()}" for member in ("a", "b")}
        pool._command = lambda member, endpoint: _command(pool, member, endpoint, ports[member.member])
        await pool.start(*ports)
        await pool.settle(*ONE)
        await until(lambda: _answers(ports["a"]), 20, "the Redis port answers")
        if durability == "replicas":
            await until(lambda: _two_copies(pool), 20, "every slot has two copies")
        pids = {f"sidecar {member}": pool.members[member].sidecar.pid for member in ports}
        yield ports["a"], {**pids, "etcd": pid_at(int(etcd.endpoint.rpartition(":")[2]))}


async def _two_copies(pool: SidecarPool) -> bool:
    found = await pool.client.range(prefix_range(pool.keys.sync_sets))
    records = [SyncRecord.decode(kv.value) for kv in found.kvs]
    return len(records) == pool.spec.slots and all(record.memory for record in records)


def _command(pool: SidecarPool, member: MemberProcesses, etcd: str, redis: str) -> list[str]:
    """A sidecar as users start it, with whatever event loop that brings."""
    return [
        *(sys.executable, "-m", "understudy.deploy.cli", "sidecar", "--member", member.member),
        *("--pool", pool.keys.pool, "--app", member.app, "--etcd", etcd),
        *("--session-api", member.api, "--peer", member.peer, "--redis", redis),
    ]


def _answers(url: str) -> bool:
    host, _, port = url.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), 1) as wire:
            wire.sendall(b"PING\r\n")
            return wire.recv(16) == b"+PONG\r\n"
    except OSError:
        return False


# -- the rounds --


async def one(load: Child, system: System, command: str, shape: tuple[int, int], seconds: float) -> dict[str, Any]:
    """One command in one shape at one system."""
    processes = {**system.processes, "client": load.process.pid}
    before = {name: cpu_ms(pid) for name, pid in processes.items()}
    answer = await load.do(
        "drive",
        url=system.url,
        command=command,
        connections=shape[0],
        depth=shape[1],
        keys=KEYS,
        seconds=seconds,
        name=system.client,
        wait=system.wait,
    )
    spent = {name: cpu_ms(pid) - before[name] for name, pid in processes.items()}
    thousands = max(answer["requests"], 1) / 1000
    return {**answer, "cpu": {name: ms / thousands for name, ms in spent.items()}}


async def measure(systems: Sequence[System], rounds: int, seconds: float) -> dict[str, Any]:
    """Every command in every shape at every system, once per round; every other round in the other order."""
    found: dict[tuple[str, str, tuple[int, int]], list[dict[str, Any]]] = {}
    async with child("bench.redis_load") as load:
        for system in systems:
            await one(load, system, "SET", (50, 16), 0)  # each key once
        for turn in range(rounds):
            for command in ("GET", "SET"):
                for shape in SHAPES:
                    for system in systems if turn % 2 == 0 else systems[::-1]:
                        if command in system.commands:
                            answer = await one(load, system, command, shape, seconds)
                            found.setdefault((command, system.name, shape), []).append(answer)
    return {f"{command} {name} {shape[0]}x{shape[1]}": _row(all_) for (command, name, shape), all_ in found.items()}


def _row(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        **{key: median([each[key] for each in rounds]) for key in ("per_second", "p50", "p99")},
        "cpu_ms_per_1000": {name: median([each["cpu"][name] for each in rounds]) for name in rounds[0]["cpu"]},
        "failed": sum(each["failed"] for each in rounds),
    }


# -- what came out --


def table(results: dict[str, Any]) -> str:
    rows = results["rows"]
    rate_columns = "system | requests/s (least to most) | of Redis | p50 ms | p99 ms"
    lines = [f"| command, connections x pipeline | {rate_columns} | CPU ms per 1,000: servers | by process | failed |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for name, row in sorted(rows.items(), key=lambda item: (item[0].split()[0], item[0].split()[-1], item[0])):
        command, _, rest = name.partition(" ")
        system, _, shape = rest.rpartition(" ")
        redis, rate = rows.get(f"{command} Redis {shape}"), row["per_second"]
        ratio = f"{rate['median'] / redis['per_second']['median']:.2f}" if redis else ""
        cpu = {each: spent["median"] for each, spent in row["cpu_ms_per_1000"].items()}
        servers = sum(ms for each, ms in cpu.items() if each != "client")
        lines.append(
            f"| {command}, {shape} | {system} | {rate['median']:,.0f} ({rate['least']:,.0f} to {rate['most']:,.0f}) "
            f"| {ratio} | {row['p50']['median']:.2f} | {row['p99']['median']:.2f} | {servers:.0f} "
            f"| {', '.join(f'{each} {ms:.0f}' for each, ms in cpu.items())} | {row['failed']} |"
        )
    return "\n".join(lines)


async def run(options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {"machine": {**machine(), "hiredis": importlib.metadata.version("hiredis")}}
    async with contextlib.AsyncExitStack() as stack:
        systems = list(peers(stack.enter_context(redis_pair())))
        if options.redis_url:
            processes = {name: int(pid) for name, _, pid in (each.partition("=") for each in options.pid)}
            systems += ours(options.redis_url.removeprefix("redis://"), processes)
        else:
            systems += await stack.enter_async_context(sidecars())
        results["rows"] = await measure(systems, options.rounds, options.seconds)
    results["machine"]["load_after"] = os.getloadavg()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="duration of each measurement")
    parser.add_argument("--redis-url", default="", help="redis://HOST:PORT or unix:PATH of a sidecar that runs already")
    parser.add_argument("--pid", action="append", default=[], help="NAME=PID of a process whose CPU counts there")
    parser.add_argument("--no-file", action="store_true", help="print only")
    options = parser.parse_args()
    report(run(options), table, None if options.no_file else RESULTS)


if __name__ == "__main__":
    main()
