"""What random cuts of the link between two sites do: ``make bench-links``. Writes bench/results/links.json.

    python -m bench.links                    100 cuts of 0.1 to 60 s (about 40 minutes; needs root)
    python -m bench.links --cuts 10          fewer
    python -m bench.links --table            print what was measured so far

Everything is done as an operator does it: ``understudy up --links`` runs two sites and a witness, each in a network of
its own, and ``understudy drill link`` cuts the link, with clients at both sites. The witness sees both sites all the
time. How long each cut lasts is drawn evenly on a logarithmic scale, and whether both directions are cut or one. The
same seed gives the same cuts.
"""

import argparse
import asyncio
import json
import math
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from understudy.deploy.common.layout import read_layout
from understudy.deploy.load.history_checker import percentile
from understudy.statesync.etcd.client import EtcdClient

RESULTS = Path(__file__).parent / "results" / "links.json"
UNDERSTUDY = (sys.executable, "-P", "-m", "understudy.deploy.cli")
SPEC = """
pool: cart
sites: {east: {weight: 50}, west: {weight: 50}}
copies: 2
replication: {spread: site}
site_switch: {freeze: 1s}
"""
SHORTEST, LONGEST = 0.1, 60.0
UP_WITHIN = 120.0
DRILL_WITHIN = 300.0
WAYS = (("east,west", "both"), ("east,west", "one-way"), ("west,east", "one-way"))
CLASSES = ((1.0, "under 1 s"), (10.0, "1 to 10 s"), (math.inf, "10 to 60 s"))


@contextmanager
def local_pool(directory: Path) -> Iterator[dict[str, str]]:
    """A pool on two sites and a witness while the block lasts: the environment of commands for it."""
    spec, log = directory / "cart.yaml", directory / "up.log"
    spec.write_text(SPEC)
    environment = {**os.environ, "UNDERSTUDY_DIR": str(directory / "pool")}
    wanted = ("--members", "4", "--sites", "east,west", "--etcds", "3", "--controls", "2", "--links")
    with log.open("wb") as output:
        up = subprocess.Popen(
            [*UNDERSTUDY, "up", "-f", str(spec), *wanted], stdout=output, stderr=output, env=environment
        )
    try:
        give_up = time.monotonic() + UP_WITHIN
        while b"slots served" not in log.read_bytes():
            if up.poll() is not None or time.monotonic() > give_up:
                raise SystemExit(f"the pool does not run:\n{log.read_text()}")
            time.sleep(0.5)
        asyncio.run(led_by_witness(directory / "pool"))
        yield environment
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait()


async def led_by_witness(directory: Path) -> None:
    """Wait until the witness leads etcd, as the control servers of the pool have it."""
    layout = read_layout(directory)
    assert layout is not None
    async with asyncio.timeout(UP_WITHIN), EtcdClient(layout.etcd) as etcd:
        while not any(one.leader and layout.witness.endswith(one.endpoint) for one in await etcd.status()):
            await asyncio.sleep(0.5)


def cut(environment: dict[str, str], seconds: float, way: tuple[str, str], rate: int) -> dict[str, Any]:
    """Cut the link once; what the drill reports."""
    link, direction = way
    options = ("--link", link, "--direction", direction, "--load", str(rate), "--for", f"{seconds:.1f}s", "-o", "json")
    done = subprocess.run(
        [*UNDERSTUDY, "drill", "link", *options],
        capture_output=True,
        env=environment,
        timeout=DRILL_WITHIN,
        check=False,
    )
    try:
        (found,) = json.loads(done.stdout)["drills"]
    except (ValueError, KeyError):
        return {"cut": seconds, "way": direction, "error": done.stderr.decode(errors="replace")[-500:]}
    kept = ("requests", "failed_requests", "longest_wait_ms", "lost_writes", "second_writers", "slots_taken_from")
    return {"cut": seconds, "way": direction, "seconds": found["seconds"], **{name: found[name] for name in kept}}


def rows_of(cuts: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """A row for each class of length, and one for all."""
    shortest = 0.0
    for longest, name in CLASSES:
        yield _row(name, [one for one in cuts if shortest <= one["cut"] < longest])
        shortest = longest
    yield _row("all", cuts)


def _row(name: str, cuts: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    whole = [one for one in cuts if "error" not in one]
    taken = [sum(one["slots_taken_from"].values()) for one in whole]
    requests, failed = (sum(one[field] for one in whole) for field in ("requests", "failed_requests"))
    waits = [one["longest_wait_ms"]["p50"] for one in whole]
    lost, writers = (sum(one[field] for one in whole) for field in ("lost_writes", "second_writers"))
    return (
        name,
        str(len(cuts)),
        str(len(cuts) - len(whole)),
        str(sum(count > 0 for count in taken)),
        str(sum(taken)),
        f"{failed} of {requests}",
        f"{percentile(waits, 0.5):.0f}" if waits else "-",
        str(lost),
        str(writers),
    )


HEAD = (
    "length of the cut",
    "cuts",
    "without a result",
    "cuts that moved slots",
    "slots taken over",
    "failed requests",
    "longest wait of the median session, ms (median of the cuts)",
    "lost writes",
    "writes of a second writer",
)


def table(results: dict[str, Any]) -> str:
    """The table of docs/benchmarks.md."""
    lines = [HEAD, tuple("---" for _ in HEAD), *rows_of(results["cuts"])]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--rate", type=int, default=60, help="requests a second, both sites together")
    parser.add_argument("--table", action="store_true", help="only print what was measured so far")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not options.table:
        options.results.write_text(json.dumps(measure(options), indent=1) + "\n")
    print(table(json.loads(options.results.read_text())))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All cuts, one after the other."""
    chance, cuts, load = random.Random(options.seed), list[dict[str, Any]](), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="understudy-links-") as directory, local_pool(Path(directory)) as pool:
        for number in range(options.cuts):
            seconds = math.exp(chance.uniform(math.log(SHORTEST), math.log(LONGEST)))
            cuts.append(cut(pool, round(seconds, 1), chance.choice(WAYS), options.rate))
            print(f"   {number + 1} {cuts[-1]}", file=sys.stderr, flush=True)
    machine = {"cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    spent = {"machine_load": [load, os.getloadavg()[0]], "rate": options.rate, "seed": options.seed}
    return {"machine": machine, **spent, "cuts": cuts}


if __name__ == "__main__":
    main()
