"""Whether traces tell the truth: ``make bench-drills``. Writes bench/results/drills.json and prints a table.

A real local pool under steady requests of its own clients, with members struck one after the other: killed, frozen,
drained. Of each drill two measurements are put side by side that know nothing of each other: how long clients were
without an answer, by the clients' own clock, and how long the trace says that it took, by the leader's; of a drain, how
much longer than usual a request took, and how long the trace says that a call was held up, by the sidecars' clocks.
They may differ by the error that the trace states, and by what the clients cannot see.
"""

import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import math
import os
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp

from tests.harness.waiting import until
from understudy.deploy.common.errors import DeployError
from understudy.deploy.drill.fault_injectors import LocalInjector
from understudy.deploy.inspect.converged import not_converged
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.inspect.traces import read_trace
from understudy.deploy.load.history_checker import percentile
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.records import Intent
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Retries
from understudy.statesync.pool.state import PoolState
from understudy.telemetry.otlp.spans import StoredSpan
from understudy.telemetry.slo.waterfall import held_up, is_measured, root_of
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.clock import Clock
from understudy.telemetry.tracing.ids import takeover_seed

RESULTS = Path(__file__).parents[1] / "bench/results/drills.json"
KINDS = ("kill", "freeze", "drain")
PATIENCE = 60.0
AT_ONCE = 0.01
"""Seconds: who had to wait no longer was answered as usual."""
PROMPT_HEDGES = Retries(hedge="fixed")
"""A frozen member keeps the requests that it has, until they are hedged. Until Envoy has measured how long answers take
that is a second, which may be longer than the takeover: then clients would see the wait for the hedge, and not it."""
WARM_UP = 1.0
UNDISTURBED = 2.5
"""Seconds from a drain's order in which nobody looks how far it is: longer than its handovers take."""


@dataclass(frozen=True, slots=True)
class ClientView:
    """One answer: who gave it and when (monotonic seconds), when it was asked for, and the request's traceparent."""

    session: str
    asked: float
    answered: float
    by: str
    ok: bool
    request: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One drill, in ms. ``clients``: longest time without an answer. ``trace``: what the trace says to that.

    Of a drain, ``clients`` is how much longer the slowest request took than one usually does, of all that were made
    from the order until front Envoys had the routes, and ``trace`` for how long calls were held up at the most.

    ``stated``: by how much the trace says that it may be wrong. ``seeing``: how finely the clients can see, the longest
    time between two requests that could have shown the beginning or the end, and how late they were themselves.
    ``way``: how long an answer takes when all is well (p99 of the second before), of a drain without what is usual.
    """

    number: int
    kind: str
    member: str
    clients: float
    trace: float
    stated: float
    seeing: float
    way: float
    failed: int
    trace_id: str
    phases: dict[str, float]

    @property
    def difference(self) -> float:
        """How much longer the trace is than what clients saw."""
        return self.trace - self.clients

    @property
    def exact(self) -> bool:
        """Whether they agree within the error that the trace states, with no allowance for what clients cannot see."""
        return abs(self.difference) <= self.stated

    @property
    def agrees(self) -> bool:
        """Whether they agree within that error and what clients cannot see."""
        bound = self.stated + self.seeing + self.way
        return abs(self.difference) <= bound


class Clients:
    """Sessions that are read at a steady pace, each with one request at a time, and none repeated by its client.

    :meth:`watch` has only the sessions of one member read from then on, so that they are asked for as often as can be.
    """

    def __init__(self, url: str, sessions: int, rate: float) -> None:
        self.url, self.sessions, self.rate = url, sessions, rate
        self.seen: list[ClientView] = []
        self.serving: dict[str, str] = {}
        self.late: list[tuple[float, float]] = []
        """How late this process was with each request, in seconds, and when (monotonic)."""
        self._watched: list[str] = []
        self._under_way: dict[str, asyncio.Task[None]] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Clients"]:
        """Requests go out while the context is open."""
        patience = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=patience) as http:
            for _ in range(self.sessions):
                async with http.post(f"{self.url}/cart") as answer:
                    self.serving[answer.headers["X-Session-Id"]] = ""
            self.watch("")
            pace = asyncio.create_task(self._pace(http))
            try:
                yield self
            finally:
                pace.cancel()
                tasks = [pace, *self._under_way.values()]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def watch(self, member: str) -> frozenset[str]:
        """Read the sessions that this member served last, or all of them; returns which."""
        self._watched = [key for key, by in self.serving.items() if not member or by == member]
        return frozenset(self._watched)

    def latest(self, begin: float, end: float) -> float:
        """By how many ms this process was late with a request at the most, between two moments (monotonic seconds)."""
        return max((late for at, late in self.late if begin <= at < end), default=0.0) * 1000

    async def _pace(self, http: aiohttp.ClientSession) -> None:
        begin = time.monotonic()
        for turn in itertools.count():
            due = begin + turn / self.rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            now = time.monotonic()
            self.late.append((now, now - due))
            key = self._watched[turn % len(self._watched)] if self._watched else ""
            if key and key not in self._under_way:
                self._under_way[key] = asyncio.create_task(self._read(http, key))

    async def _read(self, http: aiohttp.ClientSession, key: str) -> None:
        asked, by, ok = time.monotonic(), "", False
        request = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
        headers = {"X-Session-Id": key, "traceparent": request}
        try:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with http.get(f"{self.url}/cart", headers=headers) as answer:
                    await answer.read()
                    by, ok = answer.headers.get("X-Served-By", ""), answer.status == 200
        finally:
            del self._under_way[key]
        self.seen.append(ClientView(key, asked, time.monotonic(), by, ok, request))
        if ok:
            self.serving[key] = by


def gap_of(seen: Sequence[ClientView], sessions: frozenset[str], member: str, struck: float) -> tuple[float, float]:
    """How long the sessions of a member that was struck had no answer, and how finely that was seen; both in ms.

    From the last answer of that member until the slowest of its successors has given its first. ``sessions`` are those
    that it served.
    """
    answers = sorted((one for one in seen if one.ok and one.session in sessions), key=lambda one: one.answered)
    last = max((one.answered for one in answers if one.by == member and one.asked <= struck), default=math.nan)
    after = [one for one in answers if one.answered > last and one.by != member]
    firsts = {by: next(one for one in after if one.by == by) for by in {one.by for one in after}}
    if not firsts:
        return math.nan, math.nan
    slowest = max(firsts.values(), key=lambda one: one.answered)
    # The beginning is seen as well as answers are close to each other; the end, unless a request was waiting for it, as
    # well as requests are. Of a quick answer nobody can tell how long it could have been had.
    before = [one.answered for one in answers if one.by == member and one.answered <= last][-20:]
    spacing = max((b - a for a, b in itertools.pairwise(before)), default=0.0)
    theirs = [one for one in after if one.by == slowest.by]
    waiting = any(one.asked < slowest.answered - AT_ONCE and one.answered >= slowest.answered for one in theirs)
    earlier = [one.asked for one in seen if one.session in sessions and one.asked < slowest.asked]
    unseen = 0.0 if waiting else slowest.asked - max([last, *earlier])
    return (slowest.answered - last) * 1000, (spacing + unseen) * 1000


def waited(seen: Sequence[ClientView], struck: float) -> tuple[float, float]:
    """How much longer the slowest request of a drain took than one usually takes, and by how much those differ; in ms.

    What is usual is the median before it was ``struck``; they differ by what the slowest in a hundred takes more.
    """
    before = [(one.answered - one.asked) * 1000 for one in seen if one.asked < struck]
    after = [(one.answered - one.asked) * 1000 for one in seen if one.asked >= struck]
    usual = percentile(before, 0.5)
    return max(after, default=usual) - usual, percentile(before, 0.99) - usual


@contextlib.contextmanager
def prompt() -> Iterator[None]:
    """Meanwhile the clients need not wait for a core behind those whom they observe, as far as root alone may ask so.

    Nothing is started in the block: it would be as prompt for ever.
    """
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, usual)


class Drills:
    """Strikes the members of a running pool and compares."""

    def __init__(self, pool: LocalPool, etcd: EtcdClient, clients: Clients) -> None:
        self._pool, self._etcd, self._clients = pool, etcd, clients
        self._clock = Clock()
        self._injector = LocalInjector(pool.settings.directory, pool.layout)
        self._struck: tuple[frozenset[str], str, float] = (frozenset(), "", 0.0)

    async def run(self, number: int, kind: str) -> Comparison:
        members = [place.name for place in self._pool.layout.members]
        member = members[number % len(members)]
        await self.settled()
        clients = self._clients
        clients.watch("")
        await asyncio.sleep(WARM_UP)
        state = await self._state()
        theirs = clients.watch(member)
        clients.seen.clear()
        clients.late.clear()
        gc.collect()
        await asyncio.sleep(WARM_UP)
        way = percentile([(one.answered - one.asked) * 1000 for one in clients.seen], 0.99)
        struck = time.monotonic()
        self._struck = theirs, member, struck
        spans = await getattr(self, f"_{kind}")(state, member)
        root = root_of(spans)
        assert root is not None
        callers = held_up(spans)
        if callers is not None:
            ended = struck + (root.end_ns - self._clock.at_ns(struck)) / 1e9
            met = [one for one in clients.seen if one.asked < ended]
            trace, stated, (gap, way) = callers.ms, callers.error_ms, waited(met, struck)
            seeing = clients.latest(struck, ended)
        else:
            trace, stated = root.duration_ns / 1e6, float(root.attributes[names.ERROR_MS])
            gap, seeing = gap_of(clients.seen, theirs, member, struck)
            seeing += clients.latest(struck, time.monotonic())
        path = {span.name: round(span.duration_ns / 1e6, 2) for span in spans if span.attributes.get(names.CRITICAL)}
        if not is_measured(root):
            raise SystemExit(f"drill {number} ({kind} {member}): trace {root.trace_id} is unmeasured")
        return Comparison(
            number=number,
            kind=kind,
            member=member,
            clients=round(gap, 2),
            trace=round(trace, 2),
            stated=round(stated, 2),
            seeing=round(seeing, 2),
            way=round(way, 2),
            failed=sum(not one.ok for one in clients.seen),
            trace_id=root.trace_id,
            phases=path,
        )

    async def _kill(self, state: PoolState, member: str) -> list[StoredSpan]:
        await self._injector.kill(member)
        return await self._takeover(state, member)

    async def _freeze(self, state: PoolState, member: str) -> list[StoredSpan]:
        await self._injector.freeze(member)
        try:
            return await self._takeover(state, member)
        finally:
            await self._injector.undo()

    async def _drain(self, state: PoolState, member: str) -> list[StoredSpan]:
        key = state.keys.intent(member)
        with prompt():
            await self._etcd.put(key, Intent(member, 0.0, time.time()).encode())
            await asyncio.sleep(UNDISTURBED)  # whoever looks keeps clients waiting, which share this process
        try:

            async def whole() -> list[StoredSpan]:
                found = await self._state()
                if found.table is None or found.table.revision == (state.table.revision if state.table else 0):
                    return []
                parts = found.table.record.traceparent.split("-")
                spans = await self._trace(parts[1]) if len(parts) > 1 else []
                took_part = {span.instance for span in spans if span.name in (names.FENCE, names.CLAIM)}
                told = {span.instance for span in spans if span.name == names.HELD_UP}
                return spans if took_part <= told else []

            return await until(whole, PATIENCE, f"the trace of {member}'s drain")
        finally:
            await self._etcd.delete(key)

    async def _takeover(self, state: PoolState, member: str) -> list[StoredSpan]:
        record = state.members[member].record
        ids = takeover_seed(state.keys.pool, member, record.boot, record.life)
        found: list[StoredSpan] = await until(
            lambda: self._trace(ids.hex), PATIENCE, f"the trace of {member}'s takeover"
        )
        await until(self._successor_answered, PATIENCE, f"an answer by a successor of {member}")
        return found

    def _successor_answered(self) -> bool:
        """Whether clients of the member that was struck have an answer by another one."""
        return not math.isnan(gap_of(self._clients.seen, *self._struck)[0])

    async def _trace(self, trace: str) -> list[StoredSpan]:
        """The spans of a trace that has its root."""
        with contextlib.suppress(DeployError):
            spans = await read_trace([place.http for place in self._pool.layout.controls], trace)
            return spans if root_of(spans) is not None else []
        return []

    async def _state(self) -> PoolState:
        return (await read_pool(self._etcd, self._pool.layout.pool))[0]

    async def settled(self) -> None:
        """Return when every slot is owned as the table wants it, by all members in fair shares."""
        members = [place.name for place in self._pool.layout.members]

        async def settled() -> bool:
            return not not_converged(await self._state(), members)

        await until(settled, PATIENCE, "the pool is as before")


async def drill(count: int, sessions: int, rate: float, kinds: Sequence[str] = KINDS) -> list[Comparison]:
    """Run so many drills of these kinds in turn on a pool of their own."""
    with tempfile.TemporaryDirectory() as home:
        settings = LocalSettings(Path(home), PoolSpec(pool="cart", retries=PROMPT_HEDGES))
        async with LocalPool(settings) as pool, EtcdClient(pool.etcd_endpoints) as etcd:
            clients = Clients(pool.layout.front_url, sessions, rate)
            drills = Drills(pool, etcd, clients)
            await drills.settled()
            found = []
            gc.disable()  # clients share this process; it is collected between drills
            async with clients.running():
                for number in range(count):
                    found.append(await drills.run(number, kinds[number % len(kinds)]))
                    print(_line(found[-1]), file=sys.stderr)
            return found


def summary(found: Sequence[Comparison]) -> dict[str, dict[str, float]]:
    """By kind: how many, and of the differences (absolute, ms) the median, p99 and largest, beside what is allowed."""
    rows = {}
    for kind in KINDS:
        mine = [one for one in found if one.kind == kind]
        if not mine:
            continue
        apart = [abs(one.difference) for one in mine]
        rows[kind] = {
            "drills": len(mine),
            "exact": sum(one.exact for one in mine),
            "agree": sum(one.agrees for one in mine),
            "trace_p50": percentile([one.trace for one in mine], 0.5),
            "clients_p50": percentile([one.clients for one in mine], 0.5),
            "apart_p50": percentile(apart, 0.5),
            "apart_p99": percentile(apart, 0.99),
            "apart_max": max(apart),
            "stated_max": max(one.stated for one in mine),
        }
    return rows


def _line(one: Comparison) -> str:
    verdict = "agrees" if one.exact else "agrees, as far as clients can see" if one.agrees else "DIFFERS"
    return (
        f"{one.number:3} {one.kind:6} {one.member}: clients {one.clients:7.1f} ms, trace {one.trace:7.1f} ms, "
        f"stated +-{one.stated:.1f}, seeing {one.seeing:.1f}, way {one.way:.1f}: {verdict} {one.phases}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drills", type=int, default=50)
    parser.add_argument("--sessions", type=int, default=96)
    parser.add_argument("--rate", type=float, default=250.0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="which, in turn, separated by commas")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--more", action="store_true", help="Add to what --out holds from a run before.")
    given = parser.parse_args()
    before: list[Comparison] = []
    if given.more and given.out.exists():
        known = json.loads(given.out.read_text())["drills"]
        before = [Comparison(**{key: row[key] for key in Comparison.__slots__}) for row in known]
    load = [round(os.getloadavg()[0], 2)]
    made = asyncio.run(drill(given.drills, given.sessions, given.rate, given.kinds.split(",")))
    found = before + made
    rows = summary(found)
    result = {
        "sessions": given.sessions,
        "rate": given.rate,
        "load": [*load, round(os.getloadavg()[0], 2)],
        "summary": rows,
        "drills": [
            {**asdict(one), "difference": round(one.difference, 2), "exact": one.exact, "agrees": one.agrees}
            for one in found
        ],
    }
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(rows, indent=2))
    sys.exit(int(not all(one.agrees for one in found)))


if __name__ == "__main__":
    main()
