"""Members that move away before they fail: ``make bench-predictive``. Writes bench/results/predictive.json.

Two questions, each asked of a real local pool with a front Envoy, whose members have a memory limit by a control group:

* An application leaks until the kernel kills it. What do clients see with ``predictive: move``, and with ``warn``?
* Ordinary noise for ``--minutes``: a garbage collector, steps, page cache that fills the group, and load. Does any
  member move, or is any forecast critical?

Needs root and a writable memory controller.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.harness.memory_limit import memory_limit, unable
from tests.harness.waiting import until
from understudy.deploy.inspect.converged import not_converged
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.load.history_checker import HistoryReport, check_history
from understudy.deploy.load.http_load import Load
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.proxy.health.forecast import WINDOW
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.records import MemberState
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.state import PoolState

RESULTS = Path(__file__).parents[1] / "bench/results/predictive.json"
APP = f"{sys.executable} -m bench.predictive_app"
LIMIT = 400 * 2**20
LEAK = 6 * 2**20
NOISE = "collector,steps,page cache"
PATIENCE = 120.0
AFTER = 15.0
"""Seconds of load after the kernel has killed the application."""
SESSIONS, RATE = 60, 60.0


@dataclass(slots=True)
class Seen:
    """What the pool's records said, looked at each second."""

    looks: int = 0
    levels: Counter[str] = field(default_factory=Counter)
    forecasts: list[str] = field(default_factory=list)
    leaving: list[str] = field(default_factory=list)
    causes: Counter[str] = field(default_factory=Counter)
    loads: list[float] = field(default_factory=list)

    def look(self, state: PoolState) -> None:
        """Take in the records as they are now."""
        self.looks += 1
        for name, at in state.members.items():
            self.levels[at.record.expected] += 1
            said = f"{name}: {at.record.expected}: {at.record.forecast}"
            if at.record.expected.rank and said not in self.forecasts:
                self.forecasts.append(said)
        table = state.table.record if state.table else None
        for name, one in (table.leaving if table else {}).items():
            said = f"{name}: {one.why}"
            if said not in self.leaving:
                self.leaving.append(said)


class Bench:
    """One pool with a limit for each application, under steady load."""

    def __init__(self, pool: LocalPool, etcd: EtcdClient, limits: contextlib.ExitStack) -> None:
        self.pool, self.etcd, self.seen = pool, etcd, Seen()
        self._limits = limits
        self.load = Load(pool.layout.front_url, SESSIONS, RATE)

    def pid(self, member: str) -> int:
        """The process of a member's application."""
        return self.pool.processes[self.pool.member_processes(member)[0]].pid

    def limit_all(self) -> None:
        """Give every application its limit."""
        for place in self.pool.layout.members:
            self._limits.enter_context(memory_limit(self.pid(place.name), LIMIT))

    async def state(self) -> PoolState:
        """The pool's records."""
        return (await read_pool(self.etcd, self.pool.layout.pool))[0]

    async def settled(self) -> None:
        """Return when all members have fair shares."""
        members = [place.name for place in self.pool.layout.members]

        async def settled() -> bool:
            return not not_converged(await self.state(), members)

        await until(settled, PATIENCE, "the pool is at rest")

    async def watch(self) -> None:
        """Look at the records each second until cancelled."""
        while True:
            self.seen.look(await self.state())
            self.seen.loads.append(os.getloadavg()[0])
            await asyncio.sleep(1.0)

    async def report(self) -> HistoryReport:
        """What the clients saw."""
        await self.load.stop()
        return check_history(self.load.history, await self.load.final_contents(), pacing=self.load.pacing)

    async def note_causes(self) -> None:
        """Take in why slots moved."""
        for at in (await self.state()).failovers.values():
            if at.record.cause not in ("first owner", "rebalance"):
                self.seen.causes[at.record.cause] += len(at.record.slots)


@contextlib.asynccontextmanager
async def bench_pool(predictive: Literal["warn", "move"], **variables: object) -> Any:
    """A pool at rest, with its applications limited, and load that runs."""
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    os.environ.update(environment)
    with tempfile.TemporaryDirectory() as home, contextlib.ExitStack() as limits:
        settings = LocalSettings(
            Path(home), PoolSpec(pool="cart", predictive=predictive), app=APP, environment=environment
        )
        async with LocalPool(settings) as pool, EtcdClient(pool.etcd_endpoints) as etcd:
            bench = Bench(pool, etcd, limits)
            await bench.settled()
            bench.limit_all()
            await bench.load.open_sessions()
            bench.load.start()
            watching = asyncio.create_task(bench.watch())
            try:
                yield bench
            finally:
                watching.cancel()
                await bench.load.close()
                limits.close()


async def leak(predictive: Literal["warn", "move"]) -> dict[str, Any]:
    """An application leaks until the kernel kills it."""
    async with bench_pool(predictive, BENCH_LIMIT=LIMIT, BENCH_LEAK=LEAK, BENCH_NOISE="") as bench:
        await asyncio.sleep(WINDOW + 10)
        victim = bench.pool.layout.members[1].name
        pid, began = bench.pid(victim), time.monotonic()
        os.kill(pid, signal.SIGUSR1)
        moved: list[float] = []

        async def moved_away() -> bool:
            state = await bench.state()
            owns = any(at.record.active == victim for at in state.owners.values())
            if not owns and not moved:
                moved.append(time.monotonic() - began)
            return not owns

        async def killed() -> bool:
            await moved_away()
            return bench.pid(victim) != pid

        await until(killed, PATIENCE, "the kernel has killed the application")
        ended = time.monotonic() - began
        await asyncio.sleep(AFTER)
        report = await bench.report()
        await bench.note_causes()
        reason = (await bench.state()).members[victim].record
        if reason.state is MemberState.DRAINING:  # another process: well again after a while
            await bench.settled()
        return {
            "predictive": predictive,
            "moved_after_s": round(moved[0], 1) if moved else None,
            "killed_after_s": round(ended, 1),
            "returned_after_s": round(time.monotonic() - began, 1),
            **_result(bench.seen, report),
        }


async def noise(minutes: float) -> dict[str, Any]:
    """Ordinary noise."""
    async with bench_pool("move", BENCH_LIMIT=LIMIT, BENCH_LEAK=LEAK, BENCH_NOISE=NOISE) as bench:
        await asyncio.sleep(minutes * 60)
        report = await bench.report()
        await bench.note_causes()
        return {"minutes": minutes, **_result(bench.seen, report)}


def _result(seen: Seen, report: HistoryReport) -> dict[str, Any]:
    return {
        "requests": report.requests,
        "failed_requests": report.failed_requests,
        "acknowledged_writes": report.acknowledged_writes,
        "lost_writes": report.lost_writes,
        "duplicated_writes": report.duplicated_writes,
        "failures": report.failures,
        "looks": seen.looks,
        "levels": {str(level): count for level, count in sorted(seen.levels.items())},
        "forecasts": seen.forecasts,
        "left": seen.leaving,
        "slots_moved_by_cause": dict(seen.causes),
        "load_average": {
            "mean": round(sum(seen.loads) / max(len(seen.loads), 1), 1),
            "most": max(seen.loads, default=0),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="of ordinary noise; 0 leaves it out")
    parser.add_argument("--leaks", default="move,warn", help="modes in which an application leaks; '' leaves them out")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if unable():
        sys.exit(unable())
    result: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    for mode in given.leaks.split(",") if given.leaks else ():
        result[f"leak_{mode}"] = asyncio.run(leak(mode))
        print(json.dumps(result[f"leak_{mode}"], indent=2), flush=True)
    if given.minutes:
        result["noise"] = asyncio.run(noise(given.minutes))
        print(json.dumps(result["noise"], indent=2), flush=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
