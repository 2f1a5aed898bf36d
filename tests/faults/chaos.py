"""The long run: ``python -m tests.faults.chaos --minutes 30 --seed 7`` (``make chaos MINUTES=30``).

Plays rounds with ``takeover: fast`` and ``lease``, with one and three etcd members, with ``durability: sync`` and
``replicas`` (also with copies spread over two sites), and with cables and network namespaces, in turn; every third pool
is a whole one behind a hedging Envoy (``front_rounds``). In every third pool with ``replicas`` and cables, saves of
sessions fail at times while all else in etcd works. Prints a line per round and a summary, ends with 1 if a
promise was broken, and then keeps that round's history and all logs.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path

from tests.faults.clients import CLASSES
from tests.faults.namespaces import namespaces
from tests.faults.nemesis import FAULTS, REPLICA_FAULTS, Fault
from tests.faults.pool import fault_pool
from tests.faults.rounds import Result, play
from tests.harness.clock import LIBRARY
from tests.harness.netns import unable

ROUNDS_PER_POOL = 4
SITES = ("east", "west")
SPREAD_SITE = "\nreplication: {spread: site}"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Tally:
    """What all rounds together did and found."""

    def __init__(self) -> None:
        self.rounds = 0
        self.violations = 0
        self.faults: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.needless: Counter[str] = Counter()

    def add(self, result: Result) -> None:
        """Count a round."""
        self.rounds += 1
        self.violations += len(result.violations)
        self.faults += result.faults
        self.outcomes += result.outcomes
        self.needless += result.needless

    def summary(self, minutes: float) -> str:
        """All of it in a few lines."""
        lines = [
            f"{minutes:.1f} minutes, {self.rounds} rounds, {self.faults.total()} faults",
            f"{self.outcomes.total()} operations, {self.violations} violations",
            "faults: " + ", ".join(f"{name} {count}" for name, count in self.faults.most_common()),
            "operations: " + ", ".join(f"{name} {count}" for name, count in sorted(self.outcomes.items())),
        ]
        if self.needless:
            lines.append(
                "takeovers from members without a fault: " + ", ".join(f"{c} x {w}" for w, c in self.needless.items())
            )
        return "\n".join(lines)


async def run(options: argparse.Namespace) -> int:
    """Play until the time is over; returns the exit code."""
    begin, tally = time.monotonic(), Tally()
    options.dir.mkdir(parents=True, exist_ok=True)
    number = fronts = cabled = 0
    while time.monotonic() - begin < options.minutes * 60:
        turn = number // ROUNDS_PER_POOL
        if options.front and turn % 2 == 0 and fronts <= turn // 2 and not unable():
            broken = await _play_front(options, fronts, tally)
            fronts += 1
            if broken and not options.go_on:
                _say(tally.summary((time.monotonic() - begin) / 60))
                return 1
            continue
        takeover = options.takeover or ("fast", "lease")[turn % 2]
        etcds = options.etcds or (1, 3)[(turn // 2) % 2]
        durability = options.durability or ("replicas", "sync", "replicas")[turn % 3]
        replicates = durability == "replicas"
        spread = options.spread_site if options.spread_site is not None else replicates and turn % 6 == 3
        networks = options.networks
        if networks is None:
            networks = (turn % 4 in (1, 2)) is (turn // 4 % 2 == 0) and not unable()
        gate = False
        if replicates and not networks:
            gate = options.gate if options.gate is not None else cabled % 3 == 0
            cabled += 1
        async with contextlib.AsyncExitStack() as stack:
            ground = None
            if networks:
                ground = await stack.enter_async_context(namespaces(controls=options.controls, etcds=etcds))
            pool = await stack.enter_async_context(
                fault_pool(
                    takeover=takeover,
                    controls=options.controls,
                    etcds=etcds,
                    home=options.dir,
                    ground=ground,
                    clocks=LIBRARY.exists(),
                    more=f"durability: {durability}{SPREAD_SITE if spread else ''}",
                    sites=SITES if spread else (),
                    gate=gate,
                )
            )
            if not number:
                _say(f"seed {options.seed}; {pool.describe()}; logs in {options.dir}")
            for _ in range(ROUNDS_PER_POOL):
                seed = f"{options.seed}/{number}"
                result = await play(
                    pool,
                    seed,
                    seconds=options.round,
                    faults=_faults(options.only, replicates=replicates),
                    durabilities=CLASSES if replicates else ("",),
                )
                number += 1
                tally.add(result)
                faults = ", ".join(f"{name} {count}" for name, count in result.faults.items())
                _say(
                    f"round {seed} ({takeover}, {durability}{', two sites' if spread else ''}, {etcds} x etcd, "
                    f"{'networks' if networks else 'cables and a gate' if gate else 'cables'}): "
                    f"{len(result.history.ops)} operations, "
                    f"{len(result.violations)} violations; {faults}"
                )
                if result.violations:
                    dump = options.dir / f"history-{seed.replace('/', '-')}.jsonl"
                    result.history.dump(dump)
                    _say(f"history in {dump}")
                    for violation in result.violations:
                        _say(str(violation))
                    if not options.go_on:
                        _say(tally.summary((time.monotonic() - begin) / 60))
                        return 1
                    break
                if time.monotonic() - begin > options.minutes * 60:
                    break
    _say(tally.summary((time.monotonic() - begin) / 60))
    return 1 if tally.violations else 0


def _faults(only: str, *, replicates: bool) -> tuple[Fault, ...]:
    faults = REPLICA_FAULTS if replicates else FAULTS
    return tuple(fault for fault in faults if not only or re.search(only, fault.name))


async def _play_front(options: argparse.Namespace, turn: int, tally: Tally) -> int:
    """A few rounds through Envoy, in a process that is alone in a network namespace; returns the violations."""
    summary = options.dir / "front-summary.json"
    summary.unlink(missing_ok=True)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.front_rounds", "--seed", options.seed, "--dir", str(options.dir)),
        *("--first", str(turn * ROUNDS_PER_POOL), "--rounds", str(ROUNDS_PER_POOL), "--round", str(options.round)),
        *("--summary", str(summary), *(["--go-on"] if options.go_on else [])),
    )
    await process.wait()
    done = json.loads(summary.read_text()) if summary.exists() else {"violations": 1}
    tally.rounds += done.get("rounds", 0)
    tally.violations += done["violations"]
    tally.faults.update(done.get("faults", {}))
    tally.outcomes.update(done.get("outcomes", {}))
    return int(done["violations"])


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", default="", help="default: a fresh one, which is printed")
    parser.add_argument("--round", type=float, default=25.0, help="seconds of faults in one round")
    parser.add_argument("--takeover", choices=["fast", "lease"], default="", help="default: both in turn")
    parser.add_argument(
        "--durability", choices=["sync", "replicas"], default="", help="of the pool; default: both in turn"
    )
    parser.add_argument("--etcds", type=int, default=0, help="members of the etcd cluster; default: 1 and 3 in turn")
    parser.add_argument(
        "--networks",
        action=argparse.BooleanOptionalAction,
        help="every part in a network namespace, so that packets get lost; default: in turn, where that is possible",
    )
    parser.add_argument(
        "--front",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="rounds through a front Envoy as well, where that is possible",
    )
    parser.add_argument(
        "--spread-site",
        action=argparse.BooleanOptionalAction,
        help="members on two sites, and copies of each slot on both; default: in turn, with replicas",
    )
    parser.add_argument(
        "--gate",
        action=argparse.BooleanOptionalAction,
        help="a relay before etcd, so that saves alone can fail; default: every third pool with replicas and cables",
    )
    parser.add_argument("--only", default="", metavar="REGEX", help="only faults whose names match; default: all")
    parser.add_argument("--controls", type=int, default=1, help="control servers")
    parser.add_argument("--dir", type=Path, default=Path("chaos-report"), help="for logs and histories")
    parser.add_argument("--go-on", action="store_true", help="do not stop at the first violation")
    options = parser.parse_args()
    options.seed = options.seed or f"{random.SystemRandom().randrange(10**6)}"
    logging.basicConfig(level="ERROR")
    return asyncio.run(run(options))


if __name__ == "__main__":
    sys.exit(main())
