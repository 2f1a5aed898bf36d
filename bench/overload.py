"""A critical and a low pool on one machine, under three times the load that the low one can carry.

``make bench-overload``. Writes bench/results/overload.json. Both pools run here, with two members each and an Envoy.
The low pool's capacity is measured first: clients that ask again as soon as they have an answer. Then its clients send
three times as many requests a second, whatever the answers do, while the critical pool has a steady load. Three rounds:

* ``alone``: only the critical pool has load;
* ``without``: both, and neither pool has a priority;
* ``with``: both, one ``critical`` and one ``low``.

The clients of the overload run in processes of their own, with less right to CPU (``nice``), so that the measurement
of the critical pool's answers is not a measurement of its client.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp

from bench.sessions import machine
from tests.harness.waiting import until
from understudy.deploy.inspect.converged import not_converged
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.load.history_checker import check_history, percentile
from understudy.deploy.load.http_load import Load
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.spec import PoolSpec

RESULTS = Path(__file__).parents[1] / "bench/results/overload.json"
MEMBERS = 2
SESSIONS, RATE = 40, 40.0
"""Of the critical pool."""
AT_ONCE = 16
"""Clients that measure the capacity."""
TIMES = 3
ANSWER_TIMEOUT = 10.0
WARM_UP = 2.0
NICE = 10


async def sessions_of(http: aiohttp.ClientSession, url: str, count: int) -> list[str]:
    """Make so many carts."""
    keys = []
    for _ in range(count):
        async with http.post(f"{url}/cart") as answer:
            keys.append(answer.headers["X-Session-Id"])
    return keys


async def capacity(url: str, seconds: float) -> float:
    """Requests a second that clients get answered if each asks again at once."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        keys, end = await sessions_of(http, url, AT_ONCE), time.monotonic() + seconds

        async def ask(key: str) -> int:
            answered = 0
            while time.monotonic() < end:
                async with http.get(f"{url}/cart", headers={"X-Session-Id": key}) as answer:
                    await answer.read()
                    answered += answer.status == 200
            return answered

        return sum(await asyncio.gather(*map(ask, keys))) / seconds


async def flood(url: str, rate: float, seconds: float) -> dict[str, int]:
    """Send at ``rate``, whatever the answers do; how many ended how."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT)
    ended: Counter[str] = Counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http:
        keys = await sessions_of(http, url, AT_ONCE)

        async def ask(number: int) -> None:
            try:
                async with http.get(f"{url}/cart", headers={"X-Session-Id": keys[number % len(keys)]}) as answer:
                    await answer.read()
                    ended[str(answer.status)] += 1
            except (aiohttp.ClientError, TimeoutError):
                ended["no answer"] += 1

        begin, tasks = time.monotonic(), set()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(begin + number / rate - time.monotonic(), 0))
            task = asyncio.create_task(ask(number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
    return dict(ended)


async def elsewhere(*arguments: object) -> Any:
    """What a process of this module with less right to CPU prints."""
    command = ["nice", "-n", str(NICE), sys.executable, "-m", "bench.overload", *map(str, arguments)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"{arguments}: exit code {process.returncode}")
    return json.loads(said)


async def critical_load(pool: LocalPool, seconds: float) -> dict[str, Any]:
    """What clients of the critical pool see for so long."""
    load = Load(pool.layout.front_url, SESSIONS, RATE)
    await load.open_sessions()
    load.history.clear()
    load.start()
    await asyncio.sleep(seconds)
    await load.stop()
    report = check_history(load.history, {})
    await load.close()
    took = [(op.ended - op.started) * 1000 for op in load.history if op.succeeded]
    return {
        "requests": len(load.history),
        "failed": report.failed_requests,
        "p50_ms": round(percentile(took, 0.5), 1),
        "p99_ms": round(percentile(took, 0.99), 1),
        "max_ms": round(max(took), 1),
        "client_late_ms": round(load.late * 1000, 1),
    }


async def round_of(critical: PoolSpec, low: PoolSpec, *, seconds: float, rate: float | None) -> dict[str, Any]:
    """One round: figures of the critical pool, and how the requests of the other one ended."""
    async with AsyncExitStack() as stack:
        pools = []
        for spec in (critical, low):
            home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            pool = await stack.enter_async_context(LocalPool(LocalSettings(home, spec, members=MEMBERS)))
            etcd = await stack.enter_async_context(EtcdClient(pool.etcd_endpoints))
            await until(lambda pool=pool, etcd=etcd: _at_rest(pool, etcd), 120, "the pool is at rest")
            pools.append(pool)
        url = pools[1].layout.front_url
        if rate is None:
            found: dict[str, Any] = {"capacity": await elsewhere("capacity", url, seconds)}
            return found | {"critical": await critical_load(pools[0], seconds)}
        flooding = asyncio.create_task(elsewhere("flood", url, rate, seconds + WARM_UP))
        await asyncio.sleep(WARM_UP)
        seen = await critical_load(pools[0], seconds)
        ended = await flooding
        return {"critical": seen, "other_pool": ended, "load_average": round(os.getloadavg()[0], 1)}


async def _at_rest(pool: LocalPool, etcd: EtcdClient) -> bool:
    state = (await read_pool(etcd, pool.layout.pool))[0]
    return not not_converged(state, [place.name for place in pool.layout.members])


async def bench(seconds: float) -> dict[str, Any]:
    """All rounds."""
    pay, batch = PoolSpec(pool="pay"), PoolSpec(pool="batch")
    alone = await round_of(pay, batch, seconds=seconds, rate=None)
    rate = TIMES * alone["capacity"]
    print(f"capacity {alone['capacity']:.0f}/s; alone: {alone['critical']}", file=sys.stderr)
    without = await round_of(pay, batch, seconds=seconds, rate=rate)
    print(f"without priorities: {without}", file=sys.stderr)
    ranked = pay.model_copy(update={"priority": "critical"}), batch.model_copy(update={"priority": "low"})
    ordered = await round_of(*ranked, seconds=seconds, rate=rate)
    print(f"with priorities: {ordered}", file=sys.stderr)
    return {"machine": machine(), "rate": round(rate), "alone": alone, "without": without, "with": ordered}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help="of the clients alone: capacity URL SECONDS, flood URL RATE SECONDS")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each round")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    match given.part:
        case ["capacity", url, seconds]:
            print(json.dumps(asyncio.run(capacity(url, float(seconds)))))
        case ["flood", url, rate, seconds]:
            print(json.dumps(asyncio.run(flood(url, float(rate), float(seconds)))))
        case _:
            given.out.write_text(json.dumps(asyncio.run(bench(given.seconds)), indent=2) + "\n")


if __name__ == "__main__":
    main()
