"""What one tenant notices of another one on the same control server and front Envoy: ``make bench-tenants``.

Real processes on loopback: etcd, one ``understudy control --all-pools``, one ``understudy envoy --pools all``, and for
each of two tenants a pool of two sidecars with the example cart. The quiet tenant's clients send requests at a fixed
rate all the time. They are measured in rounds, first ``alone`` while the other tenant does nothing, then ``beside`` it
while

- it sends ten times its requests a second through the Envoy, and ten times its writes a second to a sidecar,
- a spec that nobody can read is written over its own,
- and its members are killed, the second one in the middle of the round.

Writes bench/results/tenants.json and prints a table. All of it shares this machine's cores, so the figures also have in
them that the load generators take CPU from everything else: compare the load average that is printed.

    make bench-tenants, or python -m bench.tenants --seconds 20 --rounds 3
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from bench.sessions import machine, report
from tests.harness.commands import Commands, commands
from tests.harness.etcd import running_etcd
from tests.harness.programs import Program
from tests.harness.waiting import free_port, until
from understudy.deploy.load.history_checker import percentile
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.tenants.keys import TenantKeys
from understudy.statesync.tenants.tenant import Tenant, encode_tenant

RESULTS = Path(__file__).parent / "results" / "tenants.json"
LOUD, QUIET = "loud", "quiet"
MEMBERS = 2
SLOTS = 32
REQUESTS, WRITES = 30, 20
"""The loud tenant's quotas, per second; it sends ten times as many."""
RATE = 40
"""Requests a second of the quiet tenant; half of them write."""
SESSIONS = 50
WARM_UP = 3.0
PATIENT = {"missed_beats": 20, "unanswered_ms": 5000}
"""Nobody is taken for dead because the machine is busy; killed members refuse connections all the same."""


def spec_of(tenant: str, port: int) -> PoolSpec:
    limits = {"requests_per_second": REQUESTS, "writes_per_second": WRITES} if tenant == LOUD else {}
    front = {"port": port, "hosts": [f"{tenant}.example"]}
    return PoolSpec.model_validate(
        {"pool": tenant, "tenant": tenant, "slots": SLOTS, "limits": limits, "front": front, "liveness": PATIENT}
    )


@dataclass
class Member:
    """One sidecar with its application."""

    name: str
    app: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    api: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    peer: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")


class World:
    """Both tenants' pools, and what they share."""

    def __init__(self, shell: Commands, client: EtcdClient) -> None:
        self.shell, self.client = shell, client
        self.apps: dict[str, Program] = {}
        self.port = free_port()
        self.control, self.http = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        self.members = {t: [Member(f"{t}-{n}") for n in range(1, MEMBERS + 1)] for t in (LOUD, QUIET)}

    async def begin(self, etcd: str) -> None:
        """Start everything, and wait until both pools answer at the front Envoy."""
        for tenant in self.members:
            record = Tenant(tenant, pools=1, slots=SLOTS, own=(tenant,))
            await self.client.put(TenantKeys(tenant).record, encode_tenant(record))
            await self.client.put(PoolKeys(tenant).spec, spec_of(tenant, self.port).encode())
        addresses = ("--grpc", self.control, "--http", self.http)
        await self.shell.start("control", "control", "--name", "control-1", "--all-pools", "--etcd", etcd, *addresses)
        for tenant, members in self.members.items():
            for one in members:
                port = one.app.rpartition(":")[2]
                cart = (sys.executable, "-m", "understudy.deploy.examples.cart", "--port", port)
                url = {"UNDERSTUDY_URL": f"http://{one.api}"}
                self.apps[one.name] = Program(one.name, list(cart), self.shell.home / f"{one.name}-app.log", url)
                self.apps[one.name].start()
                places = ("--app", one.app, "--session-api", one.api, "--peer", one.peer)
                name = ("--member", one.name, "--pool", tenant, "--etcd", etcd)
                await self.shell.start(one.name, "sidecar", *name, *places)
        front = ("--node", "front-1", "--pools", "all", "--listen", "127.0.0.1", "--control", self.control)
        await self.shell.start("envoy", "envoy", *front, "--admin", f"127.0.0.1:{free_port()}")
        async with aiohttp.ClientSession() as http:
            for tenant in self.members:
                await until(lambda tenant=tenant: self._answers(http, tenant), 180, f"{tenant} answers")

    async def _answers(self, http: aiohttp.ClientSession, tenant: str) -> bool:
        headers = {"Host": f"{tenant}.example", "X-Session-Id": "first"}
        with contextlib.suppress(aiohttp.ClientError):
            async with http.post(f"{self.url}/cart", json={"sku": "1"}, headers=headers) as answer:
                return answer.ok
        return False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def kill(self, number: int) -> None:
        """``kill -9`` one of the loud tenant's members: its sidecar and its application."""
        name = self.members[LOUD][number].name
        self.apps[name].kill()
        await self.shell.kill(name)


@contextlib.asynccontextmanager
async def world() -> AsyncIterator[World]:
    with tempfile.TemporaryDirectory(prefix="understudy-bench-") as home:
        async with (
            running_etcd() as etcd,
            EtcdClient(etcd.endpoints) as client,
            commands(Path(home)) as shell,
        ):
            here = World(shell, client)
            try:
                await here.begin(etcd.endpoint)
                yield here
            finally:
                for app in here.apps.values():
                    app.kill()


@dataclass
class Clients:
    """Clients of one tenant at a fixed rate, whatever the answers do."""

    http: aiohttp.ClientSession
    url: str
    host: str
    rate: int
    keys: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    answers: Counter[int] = field(default_factory=Counter)
    late: float = 0.0

    async def send(self, seconds: float) -> None:
        """Send for so long, and wait for all answers."""
        begin, tasks = time.monotonic(), []
        for number in range(int(seconds * self.rate)):
            due = begin + number / self.rate
            if (rest := due - time.monotonic()) > 0:
                await asyncio.sleep(rest)
            self.late = max(self.late, time.monotonic() - due)
            tasks.append(asyncio.create_task(self._one(number, due)))
        await asyncio.gather(*tasks)

    async def _one(self, number: int, due: float) -> None:
        headers = {"Host": self.host}
        if len(self.keys) == SESSIONS:
            headers["X-Session-Id"] = self.keys[number // 2 * 7 % SESSIONS]
        reads = number % 2 and "X-Session-Id" in headers
        method, item = ("GET", None) if reads else ("POST", {"sku": str(number % 5)})
        try:
            async with self.http.request(method, f"{self.url}/cart", json=item, headers=headers) as answer:
                text = await answer.text()
                self.answers[answer.status] += 1
                if answer.ok and len(self.keys) < SESSIONS:
                    self.keys.append(json.loads(text)["session"])
        except (aiohttp.ClientError, TimeoutError):
            self.answers[0] += 1
        self.latencies.append((time.monotonic() - due) * 1000)


async def write_past_quota(url: str, seconds: float) -> Counter[int]:
    """Ten times the writes a second of the loud tenant, to one of its sidecars."""
    answers: Counter[int] = Counter()
    end, pause = time.monotonic() + seconds, 1 / (10 * WRITES)

    async def one(number: int) -> None:
        try:
            async with http.put(f"{url}/v1/sessions/loud-{number % 100}", data=b"x" * 200) as answer:
                await answer.read()
                answers[answer.status] += 1
        except (aiohttp.ClientError, TimeoutError):
            answers[0] += 1

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as http:
        tasks = []
        while time.monotonic() < end:
            tasks.append(asyncio.create_task(one(len(tasks))))
            await asyncio.sleep(pause)
        await asyncio.gather(*tasks)
    return answers


async def be_loud(url: str, api: str, seconds: float) -> None:
    """What the process of the loud tenant's clients does; prints the answers."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as http:
        clients = Clients(http, url, f"{LOUD}.example", 10 * REQUESTS)
        writes, _ = await asyncio.gather(write_past_quota(f"http://{api}", seconds), clients.send(seconds))
    print(f"requests {dict(sorted(clients.answers.items()))}, writes {dict(sorted(writes.items()))}")


async def trouble(here: World, seconds: float) -> str:
    """Everything that the loud tenant does in one round; what its own clients were answered."""
    api = here.members[LOUD][0].api
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.tenants", "--be-loud", here.url, api, str(seconds)),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    await asyncio.sleep(seconds / 4)
    await here.client.put(PoolKeys(LOUD).spec, b'{"pool":"loud","slots":-5')
    await asyncio.sleep(seconds / 4)
    await here.kill(1)
    await asyncio.sleep(seconds / 4)
    await here.kill(0)
    output, _ = await process.communicate()
    return output.decode().strip()


async def one_round(seconds: float) -> dict[str, Any]:
    """The quiet tenant alone, and then beside the loud one."""
    found: dict[str, Any] = {}
    async with world() as here, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as http:
        warm_up = Clients(http, here.url, f"{QUIET}.example", RATE)
        await warm_up.send(WARM_UP)
        for phase in ("alone", "beside"):
            clients = Clients(http, here.url, f"{QUIET}.example", RATE, warm_up.keys)
            before = os.getloadavg()[0]
            if phase == "beside":
                _, found["loud"] = await asyncio.gather(clients.send(seconds), trouble(here, seconds))
            else:
                await clients.send(seconds)
            found[phase] = {
                "requests": sum(clients.answers.values()),
                "failed": sum(count for status, count in clients.answers.items() if not 200 <= status < 300),
                "p50_ms": round(percentile(clients.latencies, 0.5), 1),
                "p99_ms": round(percentile(clients.latencies, 0.99), 1),
                "late_ms": round(clients.late * 1000, 1),
                "load_average": [round(before, 1), round(os.getloadavg()[0], 1)],
            }
    return found


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    rounds = [await one_round(options.seconds) for _ in range(options.rounds)]
    return {
        "machine": machine(),
        "rounds": rounds,
        "failed": sum(one[phase]["failed"] for one in rounds for phase in ("alone", "beside")),
        "p99_ratio": round(statistics.median([one["beside"]["p99_ms"] / one["alone"]["p99_ms"] for one in rounds]), 2),
    }


def table(results: dict[str, Any]) -> str:
    lines = [
        "| round | phase | requests | failed | p50 ms | p99 ms | client late ms | load average |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number, one in enumerate(results["rounds"], 1):
        for phase in ("alone", "beside"):
            row = one[phase]
            load = " to ".join(map(str, row["load_average"]))
            cells = (row["requests"], row["failed"], row["p50_ms"], row["p99_ms"], row["late_ms"], load)
            lines.append(f"| {number} | {phase} | {' | '.join(map(str, cells))} |")
        lines.append(f"the loud tenant's own clients, round {number}: {one['loud']}")
    lines.append(f"p99 beside / alone, median of the rounds: {results['p99_ratio']}; failed: {results['failed']}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each phase")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--be-loud", nargs=3, metavar=("URL", "API", "SECONDS"), help=argparse.SUPPRESS)
    parser.add_argument("--no-file", action="store_true", help="print only")
    options = parser.parse_args()
    if options.be_loud:
        url, api, seconds = options.be_loud
        asyncio.run(be_loud(url, api, float(seconds)))
        return
    report(measure(options), table, None if options.no_file else RESULTS, hide_logs=False)


if __name__ == "__main__":
    main()
