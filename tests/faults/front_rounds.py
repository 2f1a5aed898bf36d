"""Rounds of faults against a pool behind a hedging Envoy, with clients that append to lists and never repeat a request.

    python -m tests.faults.front_rounds --minutes 30 --seed 7

Every request is sent once by its client; all copies are Envoy's. Most carry an ``Idempotency-Key``, so they are hedged
and retried. The checker knows what each client was told and what it read at the end: nothing may be doubled or lost,
and nothing may be applied that its client was told was refused. Applications hand on the stamp and the key, or, in
every third pool, the key alone. Prints a line per round; ends with 1 if a promise was broken, and keeps the history.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from tests.faults import durability
from tests.faults.checker import Violation, check_session
from tests.faults.front_pool import FAULTS, FrontNemesis, FrontPool, await_whole, enter_private_network, front_pool
from tests.faults.history import Attempt, History, Kind, Op, Outcome
from tests.harness.waiting import until

MODULE = "tests.faults.front_rounds"
CLIENT_PATIENCE = 25.0
LAST_PATIENCE = 40.0
LATE_COPIES = 6.0
"""Seconds after the last fault in which late copies show what they do."""
ROUNDS_PER_POOL = 4
DEFINITE = {
    Kind.CREATE: {201: Outcome.OK, 409: Outcome.REFUSED},
    Kind.APPEND: {200: Outcome.OK, 404: Outcome.REFUSED},
    Kind.DELETE: {204: Outcome.OK, 404: Outcome.REFUSED},
    Kind.READ: {200: Outcome.OK, 404: Outcome.OK},
}
METHODS = {
    Kind.CREATE: ("POST", "/list"),
    Kind.APPEND: ("POST", "/list/items"),
    Kind.DELETE: ("DELETE", "/list"),
    Kind.READ: ("GET", "/list"),
}
CLASSES = ("replicas", "sync", "replicas", "async")
"""The beginnings of the lists' keys, each the class that its writes ask for in a pool with ``durability: replicas``."""
KINDS = (Kind.CREATE, Kind.APPEND, Kind.DELETE, Kind.READ)
WEIGHTS = (12, 50, 8, 30)


@dataclass
class ListClients:
    """A crowd of clients of the lists, all through the front Envoy."""

    pool: FrontPool
    history: History
    seed: str
    lists: int
    replicates: bool = False
    keys: list[str] = field(default_factory=list)
    stopping: bool = False
    hedged: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        mark = f"{self._random.randrange(16**8):08x}"
        self.keys = [f"{CLASSES[number % len(CLASSES)]}-{number}-{mark}" for number in range(self.lists)]
        self._mark, self._sent = mark, 0

    async def run(self, clients: int, pause: float) -> None:
        """Work until ``stopping``."""
        await asyncio.gather(*(self._one(number, pause) for number in range(clients)))

    async def _one(self, number: int, pause: float) -> None:
        while not self.stopping:
            (kind,) = self._random.choices(KINDS, WEIGHTS)
            await self.ask(self._random.choice(self.keys), kind, number)
            await asyncio.sleep(self._random.uniform(0, 2 * pause))

    async def read(self, key: str) -> Op:
        """A read that is repeated for a while until it is answered."""

        async def answered() -> Op | None:
            op = await self.ask(key, Kind.READ, 99)
            return op if op.outcome is Outcome.OK or time.monotonic() > end else None

        end = time.monotonic() + LAST_PATIENCE
        return await until(answered, 2 * LAST_PATIENCE, "the last read", every=0.3)

    async def ask(self, key: str, kind: Kind, client: int) -> Op:
        """One request, recorded."""
        self._sent += 1
        name = f"{self._mark}-{self._sent}"
        headers = {"X-Session-Id": key}
        if kind is not Kind.READ and self._random.random() < 0.85:
            headers["Idempotency-Key"] = name
        method, path = METHODS[kind]
        body = {"value": name} if kind is Kind.APPEND else None
        begin, status, note, seen = time.monotonic(), 0, "", None
        told: Mapping[str, str] = {}
        try:
            timeout = aiohttp.ClientTimeout(total=CLIENT_PATIENCE)
            url = f"{self.pool.url}{path}"
            async with self.pool.http.request(method, url, json=body, headers=headers, timeout=timeout) as answer:
                text = await answer.text()
                status, note, told = answer.status, answer.headers.get("X-Envoy-Attempt-Count", ""), answer.headers
                if kind is Kind.READ and status == 200:
                    seen = tuple(json.loads(text))
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            note = type(error).__name__
        self.hedged += note not in ("", "1")
        nothing = Outcome.FAILED if kind is Kind.READ else Outcome.UNKNOWN
        outcome = DEFINITE[kind].get(status, nothing)
        end = time.monotonic()
        sent = name if kind is Kind.APPEND else ""
        attempt = Attempt(
            "front",
            begin,
            end,
            status,
            note,
            int(told.get("Understudy-Slot", "-1")),
            int(told.get("Understudy-Epoch", "0")),
            repeated=told.get("Understudy-Repeated") == "true",
            durability=told.get("Understudy-Durability", ""),
        )
        asked = key.partition("-")[0] if self.replicates and kind is not Kind.READ else ""
        op = Op(key, kind, begin, end, outcome, client, sent, seen=seen, attempts=(attempt,), asked=asked)
        self.history.ops.append(op)
        return op


@dataclass
class Round:
    """What a round did and found."""

    history: History
    violations: list[Violation]
    faults: Counter[str]
    outcomes: Counter[str]
    hedged: int
    losses: int


async def play(pool: FrontPool, seed: str, seconds: float, faults: list[str], *, replicates: bool = False) -> Round:
    """One round: faults under load, then peace, late copies, and a last read of every list."""
    history, losses = History(), _losses(pool)
    crowd = ListClients(pool, history, f"{seed}/clients", lists=24, replicates=replicates)
    nemesis = FrontNemesis(pool, history, f"{seed}/nemesis", faults)
    await asyncio.gather(*(crowd.ask(key, Kind.CREATE, 99) for key in crowd.keys))
    working = asyncio.create_task(crowd.run(16, 0.15))
    await nemesis.run(seconds)
    crowd.stopping = True
    await working
    violations: list[Violation] = []
    try:
        await await_whole(pool, 90)
    except AssertionError as error:
        violations.append(Violation("not whole again without help", "pool", (str(error),)))
    await asyncio.sleep(LATE_COPIES)
    last = await asyncio.gather(*(crowd.read(key) for key in crowd.keys))
    violations += [
        Violation("a list that cannot be read", op.session, (op.line(),)) for op in last if op.outcome is not Outcome.OK
    ]
    history.owners, history.syncs = list(pool.log.owner_changes), list(pool.log.sync_changes)
    history.processes = list(pool.log.processes)
    violations += check_promises(history)
    outcomes = Counter(f"{op.kind} {op.outcome}" for op in history.ops)
    return Round(history, violations, nemesis.count, outcomes, crowd.hedged, _losses(pool) - losses)


def _losses(pool: FrontPool) -> int:
    """How many losses its slots have counted in all."""
    return sum({change.slot: change.losses for change in pool.log.sync_changes}.values())


def check_promises(history: History) -> list[Violation]:
    """What each class of durability promises, and that each session is linearizable as far as that goes."""
    found: list[Violation] = []
    losses = durability.losses_of(history)
    for session, ops in history.sessions().items():
        lost = durability.losses_among(ops, losses)
        kept = durability.before_losses(ops, lost) if lost else ops
        found += check_session(session, durability.softened(kept, history.faults))
        if lost:
            found += [Violation(*one) for one in durability.check_after_losses(session, ops, lost)]
    found += [Violation(*one) for one in durability.check_classes(history.ops)]
    return found + [Violation(*one) for one in durability.check_losses(history)]


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def run(options: argparse.Namespace) -> int:
    """Play until the time is over or the rounds are played; returns the exit code."""
    begin, number, broken = time.monotonic(), options.first, 0
    faults: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    hedged = 0
    only = options.only or list(FAULTS)

    def more() -> bool:
        return (
            number - options.first < options.rounds
            if options.rounds
            else time.monotonic() - begin < options.minutes * 60
        )

    _say(f"seed {options.seed}; logs in {options.dir}")
    while more():
        turn = number // ROUNDS_PER_POOL
        takeover, stamps = ("fast", "lease")[turn % 2], turn % 3 != 2
        of_class = options.durability or ("sync", "replicas", "replicas")[turn // 2 % 3]
        home = options.dir / f"front-{turn}"
        async with front_pool(home, takeover=takeover, stamps=stamps, durability=of_class) as pool:
            while more() and number // ROUNDS_PER_POOL == turn:
                seed = f"{options.seed}/{number}"
                played = await play(pool, seed, options.round, only, replicates=of_class == "replicas")
                number += 1
                faults, outcomes, hedged = faults + played.faults, outcomes + played.outcomes, hedged + played.hedged
                ground = f"{takeover}, {of_class}, {'stamp and key' if stamps else 'key alone'}"
                done = ", ".join(f"{name} {count}" for name, count in played.faults.items())
                _say(
                    f"round {seed} ({ground}): {len(played.history.ops)} requests, {played.hedged} sent again, "
                    f"{played.losses} losses, {len(played.violations)} violations; {done}"
                )
                if played.violations:
                    broken += len(played.violations)
                    dump = options.dir / f"history-{seed.replace('/', '-')}.jsonl"
                    played.history.dump(dump)
                    _say(f"history in {dump}")
                    for violation in played.violations:
                        _say(str(violation))
                    if not options.go_on:
                        options.rounds = number - options.first
    played_rounds = number - options.first
    _say(f"{(time.monotonic() - begin) / 60:.1f} minutes, {played_rounds} rounds, {faults.total()} faults")
    _say(f"{outcomes.total()} requests, {hedged} sent again by Envoy, {broken} violations")
    if options.summary:
        done = {"rounds": played_rounds, "violations": broken, "faults": faults, "outcomes": outcomes}
        options.summary.write_text(json.dumps(done))
    _say("requests: " + ", ".join(f"{name} {count}" for name, count in sorted(outcomes.items())))
    return 1 if broken else 0


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=0, help="play so many rounds, whatever time it takes")
    parser.add_argument("--seed", default="", help="default: a fresh one, which is printed")
    parser.add_argument("--round", type=float, default=40.0, help="seconds of faults in one round")
    parser.add_argument("--only", action="append", choices=list(FAULTS), help="these faults alone; may be repeated")
    parser.add_argument("--durability", choices=["sync", "replicas"], default="", help="of the pool; default: in turn")
    parser.add_argument("--dir", type=Path, default=Path("chaos-report"), help="for logs and histories")
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--summary", type=Path, help="write what was done and found as JSON")
    parser.add_argument("--go-on", action="store_true", help="do not stop at the first violation")
    options = parser.parse_args()
    options.seed = options.seed or f"{random.SystemRandom().randrange(10**6)}"
    unable = enter_private_network(MODULE)
    if unable:
        sys.stderr.write(f"these rounds lose packets in a network namespace of their own: {unable}\n")
        return 2
    return asyncio.run(run(options))


if __name__ == "__main__":
    sys.exit(main())
