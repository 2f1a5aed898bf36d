"""What ``replicas`` writes cost etcd, and what they notice of an etcd that stops: ``make bench-checkpoints``.

    python -m bench.checkpoints                 writes bench/results/checkpoints.json (about 5 minutes)

A sidecar owns all slots of a pool with ``durability: replicas``; its standby has a copy. The client writes to the Redis
port, always to the same 1,000 sessions, as often as it gets answers. Checkpoints put the newest version of a session
into etcd, so the puts should not depend on the rate of writes. etcd counts them itself.

Then etcd is stopped (SIGSTOP) for 60 s under such a load, in each round. The client goes on, second by second, also
when etcd runs again. A second is normal if its rate is at least 0.8 of that before, and its median time at most 1.25.
All is normal again with the first such second after which the median of any five in a row is normal too. A single slow
second is also seen while etcd is stopped.
"""

import argparse
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from bench.cpu import cpu_ms
from bench.redis import two_sidecars
from bench.sessions import ETCD, child, machine, median, report
from bench.xds import Child
from tests.harness.etcd import EtcdServer, running_etcd

RESULTS = Path(__file__).parent / "results" / "checkpoints.json"
SESSIONS = 1000
SHAPES = ((1, 1), (16, 1), (50, 16))
"""Connections, and commands that each has under way."""
BEFORE = 8
AFTER = 15
"""Seconds of load before etcd stops, and after it runs again."""
STEADY = (16, 1)
NORMAL_RATE, NORMAL_MEDIAN, WINDOW = 0.8, 1.25, 5


@asynccontextmanager
async def loaded() -> AsyncIterator[tuple[EtcdServer, str, dict[str, int], Child]]:
    """An etcd, the address of the active's Redis port, the processes, and a client; every session exists."""
    async with (
        running_etcd(arguments=ETCD) as etcd,
        two_sidecars(etcd, "bench", "replicas") as (url, processes),
        child("bench.redis_load") as load,
    ):
        await drive(load, url, STEADY, 0)
        yield etcd, url, processes, load


async def drive(load: Child, url: str, shape: tuple[int, int], seconds: float) -> dict[str, Any]:
    """Writes for so many seconds; 0: each session once."""
    connections, depth = shape
    keys = SESSIONS - SESSIONS % (connections * depth) if not seconds else SESSIONS
    told = {"command": "SET", "connections": connections, "depth": depth, "keys": keys}
    answer: dict[str, Any] = await load.do("drive", url=url, seconds=seconds, **told)
    return answer


async def puts_of(etcd: EtcdServer) -> int:
    """How many keys etcd has put since it began."""
    async with aiohttp.ClientSession() as http, http.get(f"http://{etcd.metrics}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return next(int(float(line.split()[1])) for line in lines if line.startswith("etcd_mvcc_put_total "))


async def checkpoints(rounds: int, seconds: float) -> dict[str, Any]:
    """Writes and puts a second in each shape, and what a second of each costs etcd's process."""
    found: dict[tuple[int, int], list[dict[str, float]]] = {shape: [] for shape in SHAPES}
    async with loaded() as (etcd, url, processes, load):
        for _ in range(rounds):
            for shape in SHAPES:
                await drive(load, url, shape, 2.0)  # what was written before has gone out
                before, began, cpu = await puts_of(etcd), time.monotonic(), cpu_ms(processes["etcd"])
                answer = await drive(load, url, shape, seconds)
                took = time.monotonic() - began
                row = {
                    "writes": answer["per_second"],
                    "failed": answer["failed"],
                    "puts": (await puts_of(etcd) - before) / took,
                    "etcd_ms": (cpu_ms(processes["etcd"]) - cpu) / took,
                }
                found[shape].append(row)
    return {
        f"{shape[0]}x{shape[1]}": {
            "failed": sum(row["failed"] for row in rows),
            **{key: median([row[key] for row in rows]) for key in ("writes", "puts", "etcd_ms")},
        }
        for shape, rows in found.items()
    }


async def outage(seconds: float) -> dict[str, Any]:
    """One stop of etcd: the seconds before, during and after."""
    async with loaded() as (etcd, url, _, load):
        before = [await drive(load, url, STEADY, 1.0) for _ in range(BEFORE)]
        etcd.pause()
        try:
            end, during = time.monotonic() + seconds, []
            while time.monotonic() < end:
                during.append(await drive(load, url, STEADY, 1.0))
        finally:
            etcd.resume()
        back = time.monotonic()
        after, at = [], []
        for _ in range(AFTER):
            at.append(time.monotonic() - back)
            after.append(await drive(load, url, STEADY, 1.0))
        await etcd.ready()
    rate = median([one["per_second"] for one in before[2:]])["median"]
    middle = median([one["p50"] for one in before[2:]])["median"]
    return {
        "before": {"per_second": rate, "p50": middle},
        "during": {
            "per_second": median([one["per_second"] for one in during]),
            "p50": median([one["p50"] for one in during]),
            "p99": max(one["p99"] for one in during),
        },
        "after": [
            {"at": round(when, 1), **{key: one[key] for key in ("per_second", "p50", "p99")}}
            for when, one in zip(at, after, strict=True)
        ],
        "normal_after_s": normal_after(rate, middle, after, at),
        "failed": sum(one["failed"] for one in (*before, *during, *after)),
        "requests": sum(one["requests"] for one in (*before, *during, *after)),
    }


def normal_after(rate: float, middle: float, after: Sequence[dict[str, Any]], at: Sequence[float]) -> float:
    """When all was normal for good; :data:`AFTER` if it was not within that time."""

    def well(seconds: Sequence[dict[str, Any]]) -> bool:
        fast = median([one["per_second"] for one in seconds])["median"] >= NORMAL_RATE * rate
        return fast and median([one["p50"] for one in seconds])["median"] <= NORMAL_MEDIAN * middle

    starts = range(len(after) - WINDOW + 1)
    late = [first for first in starts if not well(after[first : first + WINDOW])]
    rest = [index for index in starts if index > max(late, default=-1) and well(after[index : index + 1])]
    return at[rest[0]] if rest else float(AFTER)


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Both parts."""
    found: dict[str, Any] = {"machine": machine(), "sessions": SESSIONS, "stopped_s": options.stopped}
    found["checkpoints"] = await checkpoints(options.rounds, options.seconds)
    found["outages"] = [await outage(options.stopped) for _ in range(options.rounds)]
    return found


def table(found: dict[str, Any]) -> str:
    """Both tables, as docs/benchmarks.md has them."""
    lines = [
        "| connections x pipeline | writes/s | puts of etcd/s (least to most) | CPU of etcd, ms/s | failed |",
        "|---|---|---|---|---|",
    ]
    for shape, row in found["checkpoints"].items():
        puts = row["puts"]
        lines.append(
            f"| {shape} | {row['writes']['median']:,.0f} | {puts['median']:,.0f} ({puts['least']:,.0f} to "
            f"{puts['most']:,.0f}) | {row['etcd_ms']['median']:.0f} | {row['failed']} |"
        )
    lines += [
        "",
        "| round | writes/s before, during | p50 ms before, during | failed | normal again after, s |",
        "|---|---|---|---|---|",
    ]
    for index, one in enumerate(found["outages"], 1):
        lines.append(
            f"| {index} | {one['before']['per_second']:,.0f}, {one['during']['per_second']['median']:,.0f} "
            f"| {one['before']['p50']:.2f}, {one['during']['p50']['median']:.2f} "
            f"| {one['failed']} of {one['requests']:,} | {one['normal_after_s']:.1f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each row of the first table")
    parser.add_argument("--stopped", type=float, default=60.0, help="seconds for which etcd is stopped")
    parser.add_argument("--no-file", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    report(run(options), table, None if options.no_file else RESULTS)


if __name__ == "__main__":
    main()
