"""What a sidecar costs in a small and in a large pool: ``make bench-members``.

Writes bench/results/members.json and prints a table. Pools of 4 and of 16 real sidecars on one etcd take the same
writes per member, one pool after the other in each round. The client writes each session through the sidecar that is
active for it. What counts is the CPU that one sidecar takes, from /proc, idle and under these writes.
docs/benchmarks.md tells what came out and why.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.cpu import cpu_ms
from bench.sessions import ETCD, keys_for, machine, median, pool_of, report
from tests.harness.etcd import running_etcd
from tests.harness.sidecars import SidecarPool

RESULTS = Path(__file__).parents[1] / "bench/results/members.json"
SIZES = (4, 16)
KEYS = 50
"""Sessions of each member."""
COPIES = 3
BODY = b"x" * 256


def spent(pool: SidecarPool) -> float:
    """The CPU time that the sidecars of a pool have taken together, in ms."""
    return sum(cpu_ms(member.sidecar.pid) for member in pool.members.values())


async def write(pool: SidecarPool, member: str, keys: Sequence[str], rate: float, seconds: float) -> int:
    """Write sessions through a member at a fixed rate; how many writes failed."""
    begin, failed = time.monotonic(), 0
    url = f"http://{pool.members[member].api}/v1/sessions/"
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(begin + number / rate - time.monotonic(), 0))
        async with pool.http.put(url + keys[number % len(keys)], data=BODY) as answer:
            failed += answer.status >= 300
    return failed


async def measured(size: int, durability: str, rate: float, seconds: float) -> dict[str, float]:
    """One pool: ms of CPU that a sidecar takes in a second, idle and under load, and for each write of one member."""
    names = [f"m{number:02}" for number in range(1, size + 1)]
    orders = [[names[(first + more) % size] for more in range(COPIES)] for first in range(size)]
    async with running_etcd(arguments=ETCD) as etcd, pool_of(etcd, "bench", *names, durability=durability) as pool:
        await pool.settle(*orders)
        keys = {name: keys_for(pool, orders, name, KEYS) for name in names}
        await asyncio.gather(*(write(pool, name, keys[name], KEYS, 1.0) for name in names))  # each session once
        before = spent(pool)
        await asyncio.sleep(seconds)
        idle = (spent(pool) - before) / seconds / size
        before, begun = spent(pool), time.monotonic()
        failed = await asyncio.gather(*(write(pool, name, keys[name], rate, seconds) for name in names))
        loaded = (spent(pool) - before) / (time.monotonic() - begun) / size
        return {"idle": idle, "loaded": loaded, "write": (loaded - idle) / rate, "failed": float(sum(failed))}


async def run(options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {"machine": machine(), "rate": options.rate, "rows": {}}
    for durability in ("sync", "replicas"):
        rounds: dict[int, list[dict[str, float]]] = {size: [] for size in SIZES}
        for turn in range(options.rounds):
            for size in SIZES if turn % 2 == 0 else SIZES[::-1]:
                rounds[size].append(await measured(size, durability, options.rate, options.seconds))
        for size, found in rounds.items():
            results["rows"][f"{durability} {size}"] = {name: median([one[name] for one in found]) for name in found[0]}
    return results


def table(results: dict[str, Any]) -> str:
    lines = [
        "| class | members | idle, ms of CPU a second | under load | ms of CPU a write | of 4 members | failed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in results["rows"].items():
        durability, size = name.split()
        small = results["rows"][f"{durability} {SIZES[0]}"]["loaded"]["median"]
        idle, loaded, per_write = (row[key]["median"] for key in ("idle", "loaded", "write"))
        lines.append(
            f"| `{durability}` | {size} | {idle:.1f} | {loaded:.1f} | {per_write:.2f} | {loaded / small:.2f} "
            f"| {row['failed']['most']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rate", type=float, default=10, help="writes a second through each member")
    parser.add_argument("--no-file", action="store_true", help="print only")
    options = parser.parse_args()
    report(run(options), table, None if options.no_file else RESULTS)


if __name__ == "__main__":
    main()
