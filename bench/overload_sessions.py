"""Critical sessions beside low ones at one sidecar that gets more writes than it can take.

Part of ``make bench-overload``; writes bench/results/overload_sessions.json. A pool of one member. Three processes
send 1,500 writes a second each, whatever the answers do, as ``critical`` and then as ``low`` calls. Meanwhile 40
critical calls a second are measured, a third of them writes.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp

from understudy.deploy.load.history_checker import percentile
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.statesync.pool.spec import PoolSpec

RESULTS = Path(__file__).parents[1] / "bench/results/overload_sessions.json"
FLOODS, FLOOD_RATE, FLOOD_SECONDS = 3, 1500, 14
RATE, SECONDS, ALONE_SECONDS = 40, 9, 8
WARM_UP = 4.0
TIMEOUT = aiohttp.ClientTimeout(total=10)


async def at_rate(rate: float, seconds: float, ask: Callable[[int], Coroutine[Any, Any, None]]) -> None:
    """Ask at a rate for so long, and wait for the answers."""
    begin, tasks, number = time.monotonic(), set(), 0
    while time.monotonic() - begin < seconds:
        await asyncio.sleep(max(begin + number / rate - time.monotonic(), 0))
        task = asyncio.create_task(ask(number))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        number += 1
    await asyncio.gather(*tasks)


async def flood(url: str, priority: str) -> dict[str, int]:
    """Write with calls of this priority; how they ended."""
    ended: Counter[str] = Counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=TIMEOUT) as http:

        async def ask(number: int) -> None:
            key, headers = f"b{os.getpid()}-{number % 200}", {"Understudy-Priority": priority}
            try:
                async with http.put(f"{url}/v1/sessions/{key}", data=b"x" * 200, headers=headers) as answer:
                    await answer.read()
                    ended[str(answer.status)] += 1
            except (aiohttp.ClientError, TimeoutError):
                ended["no answer"] += 1

        await at_rate(FLOOD_RATE, FLOOD_SECONDS, ask)
    return dict(ended)


async def critical(url: str, seconds: float) -> dict[str, Any]:
    """What critical calls see."""
    took: list[float] = []
    ended: Counter[str] = Counter()
    async with aiohttp.ClientSession(timeout=TIMEOUT) as http:
        for number in range(20):
            async with http.put(f"{url}/v1/sessions/p{number}", data=b"y") as answer:
                await answer.read()

        async def ask(number: int) -> None:
            begin, writes = time.monotonic(), number % 3 == 0
            method, body = ("PUT", b"y") if writes else ("GET", None)
            place, headers = f"{url}/v1/sessions/p{number % 20}", {"Understudy-Priority": "critical"}
            try:
                async with http.request(method, place, data=body, headers=headers) as answer:
                    await answer.read()
                    ended[str(answer.status)] += 1
            except (aiohttp.ClientError, TimeoutError):
                ended["no answer"] += 1
            took.append((time.monotonic() - begin) * 1000)

        await at_rate(RATE, seconds, ask)
    figures = {"p50_ms": percentile(took, 0.5), "p99_ms": percentile(took, 0.99), "max_ms": max(took)}
    return {**{name: round(value, 1) for name, value in figures.items()}, "ended": dict(ended)}


async def bench() -> dict[str, Any]:
    """All rounds."""
    with tempfile.TemporaryDirectory() as home:
        async with LocalPool(LocalSettings(Path(home), PoolSpec(pool="cart"), members=1)) as pool:
            url = f"http://{pool.layout.members[0].session_api}"
            found: dict[str, Any] = {"alone": await critical(url, ALONE_SECONDS)}
            for priority in ("critical", "low"):
                command = ["nice", "-n", "5", sys.executable, "-m", "bench.overload_sessions", "flood", url, priority]
                floods = [
                    await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
                    for _ in range(FLOODS)
                ]
                await asyncio.sleep(WARM_UP)
                seen = await critical(url, SECONDS)
                ended: Counter[str] = Counter()
                for process in floods:
                    ended.update(json.loads((await process.communicate())[0]))
                load = round(os.getloadavg()[0], 1)
                found[f"flood_{priority}"] = {"critical": seen, "flood": dict(ended), "load_average": load}
            return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help="of the clients alone: flood URL PRIORITY")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    match given.part:
        case ["flood", url, priority]:
            print(json.dumps(asyncio.run(flood(url, priority))))
        case _:
            result = asyncio.run(bench())
            print(json.dumps(result, indent=2))
            given.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
