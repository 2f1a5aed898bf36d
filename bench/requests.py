"""A whole request, with a read and a write of its session: latency, and which process spends how much CPU.

Four systems on loopback, with the same application (bench/request_app.py), three instances of it and one Envoy:

- Redis, WAIT 1: its sessions are in a Redis with a replica; a write waits for the replica.
- Redis, no wait: the same, without ``WAIT``.
- Understudy, sync: ``understudy up``; its sessions are behind the Redis port of its sidecar.
- Understudy, replicas: the same with ``durability: replicas``.

Clients send at a fixed rate, whatever the answers do. ``write``: each request reads and writes its session.
``third``: of three requests, two read and one reads and writes. In each round one system after the other is started,
measured and ended, so that none has to share the machine with the idle work of another.

    make bench-requests, or python -m bench.requests --rates 150 500 --rounds 3
"""

import argparse
import asyncio
import gc
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import aiohttp

from bench.cpu import spent
from bench.failover_systems import Peer
from bench.sessions import machine, median, report
from understudy.deploy.load.history_checker import percentile
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.deploy.local.processes import Program
from understudy.statesync.pool.spec import PoolSpec

RESULTS = Path(__file__).parent / "results" / "requests.json"
MEMBERS = 3
SESSIONS = 200
WARM_UP = 2.0
"""Seconds of requests before those that are measured."""
RATES = (150, 300, 500)
MIXES = {"write": 1, "third": 3}
"""Of so many requests, one writes its session."""


class OverRedis(Peer):
    """Envoy with Maglev, three applications, Redis and its replica."""

    def __init__(self, directory: Path, *, wait: bool) -> None:
        super().__init__("maglev-redis", directory, MEMBERS)
        self._wait = wait

    def _app(self, name: str) -> Program:
        port = self._apps[name].rpartition(":")[2]
        waiting = ("--wait",) if self._wait else ()
        store = f"redis://{self._redis[0]}"
        return Program(
            name=name,
            command=(sys.executable, "-m", "bench.request_app", "--store", store, "--port", port, *waiting),
            log=self._directory / f"{name}.log",
            stage=2,
            env={"PYTHONPATH": str(Path(__file__).parents[1])},
            health=f"http://{self._apps[name]}/healthz",
        )


class OverUnderstudy:
    """``understudy up`` with the application."""

    def __init__(self, directory: Path, durability: str) -> None:
        app = f"{sys.executable} -m bench.request_app"
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        settings = LocalSettings(
            directory=directory,
            spec=PoolSpec(pool="visits", durability=durability),
            members=MEMBERS,
            app=app,
            log_level="warning",
            environment=environment,
        )
        self._pool = LocalPool(settings)
        self.url = self._pool.layout.front_url
        self.processes = self._pool.processes

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.__aexit__()


SYSTEMS: dict[str, Callable[[Path], OverRedis | OverUnderstudy]] = {
    "Redis, WAIT 1": partial(OverRedis, wait=True),
    "Redis, no wait": partial(OverRedis, wait=False),
    "Understudy, sync": partial(OverUnderstudy, durability="sync"),
    "Understudy, replicas": partial(OverUnderstudy, durability="replicas"),
}


class Clients:
    """Send requests to one system at a rate."""

    def __init__(self, http: aiohttp.ClientSession, url: str, rate: int, one_writes_of: int) -> None:
        self._http = http
        self._url = f"{url}/visit"
        self._rate = rate
        self._one_writes_of = one_writes_of
        self.latencies: list[float] = []
        self.failed: Counter[str] = Counter()
        self.late = 0.0

    async def send(self, seconds: float) -> None:
        """Send for so long, and wait for all answers."""
        begin, tasks = time.monotonic(), []
        for number in range(int(seconds * self._rate)):
            due = begin + number / self._rate
            if (rest := due - time.monotonic()) > 0:
                await asyncio.sleep(rest)
            self.late = max(self.late, time.monotonic() - due)
            tasks.append(asyncio.create_task(self._one(number, due)))
        await asyncio.gather(*tasks)

    async def _one(self, number: int, due: float) -> None:
        method = "GET" if number % self._one_writes_of else "POST"
        headers = {"X-Session-Id": f"visitor-{number * 7919 % SESSIONS}"}
        try:
            async with self._http.request(method, self._url, headers=headers) as answer:
                await answer.read()
                if answer.status != 200:
                    self.failed[str(answer.status)] += 1
        except (aiohttp.ClientError, TimeoutError) as error:
            self.failed[type(error).__name__] += 1
        self.latencies.append((time.monotonic() - due) * 1000)


async def measure(system: OverRedis | OverUnderstudy, rate: int, mix: str, seconds: float) -> dict[str, Any]:
    """One cell of the table, in one round."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=20)) as http:
        await Clients(http, system.url, rate, MIXES[mix]).send(WARM_UP)
        clients = Clients(http, system.url, rate, MIXES[mix])
        gc.collect()
        gc.disable()
        before = spent(system.processes)
        await clients.send(seconds)
        used = spent(system.processes) - before
        gc.enable()
    count = len(clients.latencies)
    return {
        "p50": percentile(clients.latencies, 0.5),
        "p99": percentile(clients.latencies, 0.99),
        "failed": sum(clients.failed.values()),
        "late_ms": clients.late * 1000,
        "cpu": {kind: ms * 1000 / count for kind, ms in sorted(used.items())},
    }


def combined(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    kinds = sorted({kind for each in rounds for kind in each["cpu"]})
    return {
        "p50_ms": median([each["p50"] for each in rounds]),
        "p99_ms": median([each["p99"] for each in rounds]),
        "late_ms": median([each["late_ms"] for each in rounds]),
        "failed": sum(each["failed"] for each in rounds),
        "cpu_ms_per_1000": {kind: median([each["cpu"].get(kind, 0.0) for each in rounds]) for kind in kinds},
    }


async def run(options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {"machine": machine(), "rows": {}}
    cells = [(rate, mix) for rate in options.rates for mix in MIXES]
    found: dict[tuple[int, str], dict[str, list[dict[str, Any]]]] = {
        cell: {name: [] for name in SYSTEMS} for cell in cells
    }
    for _ in range(options.rounds):
        for name, make in SYSTEMS.items():
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
                async with make(Path(directory)) as system:
                    for rate, mix in cells:
                        one = await measure(system, rate, mix, options.seconds)
                        found[rate, mix][name].append(one)
                        print(f"   {rate}/s {mix} {name}: {one}", file=sys.stderr)
    for (rate, mix), systems in found.items():
        results["rows"][f"{rate} {mix}"] = {name: combined(rounds) for name, rounds in systems.items()}
    results["machine"]["load_after"] = os.getloadavg()
    return results


def table(results: dict[str, Any]) -> str:
    """As Markdown; ratios are to Redis with ``WAIT 1``."""
    columns = "requests/s, mix | system | p50 ms | of Redis | p99 ms | of Redis | failed | CPU ms per 1,000 requests"
    lines = [f"| {columns} |", "|---|---|---|---|---|---|---|---|"]
    for row, found in results["rows"].items():
        base = found["Redis, WAIT 1"]
        for name, one in found.items():
            p50, p99 = one["p50_ms"]["median"], one["p99_ms"]["median"]
            cpu = {kind: ms["median"] for kind, ms in one["cpu_ms_per_1000"].items()}
            rest = sum(ms for kind, ms in cpu.items() if kind != "app")
            shown = ", ".join(f"{kind} {ms:.0f}" for kind, ms in cpu.items())
            lines.append(
                f"| {row.replace(' ', ', ')} | {name} | {p50:.2f} | {p50 / base['p50_ms']['median']:.2f} "
                f"| {p99:.1f} | {p99 / base['p99_ms']['median']:.2f} | {one['failed']} "
                f"| {rest:.0f} without the application ({shown}) |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=int, nargs="+", default=RATES, metavar="PER_SECOND")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6, help="duration of each round")
    parser.add_argument("--no-file", action="store_true", help="print only")
    options = parser.parse_args()
    report(run(options), table, None if options.no_file else RESULTS, hide_logs=False)


if __name__ == "__main__":
    main()
