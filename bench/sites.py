"""What the loss of a site and a planned switch are to clients: ``make bench-sites``. Writes bench/results/sites.json.

    python -m bench.sites --events 20 --delays 0,5,20        everything (about 35 minutes)
    python -m bench.sites --events 2 --delays 5              one row of each event
    python -m bench.sites --table                            print what was measured so far

Two sites with two members, a control server, a member of etcd and a front Envoy each, and a witness of etcd on a third
site. All packets between any two sites are late by the delay in each direction (``sites_link``). Half of the clients
come in at each site. The sites are struck in turn. ``loss``: SIGKILL to everything of a site at once, but for its front
Envoy; it is started again after two seconds. ``switch``: ``site offline``, and ``site online`` when it serves nothing.
What the gaps are is told in ``failover_load``; the victim here is all members of a site.

The clients' sessions are of two classes, by the first letter of their keys, so that each event shows both.
"""

import argparse
import asyncio
import contextlib
import importlib.metadata
import itertools
import json
import math
import os
import platform
import random
import string
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp

from bench.failover_load import Client, Effect, Event, Load, effect_of, latency
from bench.sites_link import delayed
from bench.sites_pool import PARTIES, SITES, Operator, SitePool, site_pool
from bench.sites_report import CLASSES, Outcome, rows_of, table
from tests.harness.lateness import lateness
from tests.harness.netns import Network, network, unable
from understudy.deploy.drill.conditions import not_recovered, slots_by_member
from understudy.deploy.inspect.converged import not_converged
from understudy.deploy.load.history_checker import percentile
from understudy.deploy.local.linked_pool import WITNESS
from understudy.proxy.ownership.drain import LINGER
from understudy.statesync.etcd.client import EtcdError
from understudy.statesync.pool.site_copies import copies_by_slot, lagging_slots
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_reader import parse_spec
from understudy.statesync.pool.state import PoolState

RESULTS = Path(__file__).parent / "results" / "sites.json"
EVENTS = ("loss", "switch")
SYNC_PREFIXES = string.ascii_uppercase + "abcdef"
"""Half of the 64 letters of session keys: sessions whose keys begin so are written as ``sync``."""
ONE_SITE = "copies: 2"
SPREADS = {
    ONE_SITE: "copies: 2",
    "copies: 2, spread: site": "copies: 2\nreplication: {spread: site}",
    "copies: 3": "copies: 3",
    "copies: 3, spread: site": "copies: 3\nreplication: {spread: site}",
}
SPREAD = "copies: 3, spread: site"
"""The last of :data:`SPREADS`, with which the events are measured. With :data:`ONE_SITE` only slots are written whose
copies are on one site; with all others, only slots whose copies are on both."""
GONE_FOR = 2.0
"""Seconds from the loss of a site until its processes are started again."""
PATIENCE = 60.0
SETTLED = 0.3
STEADY_FOR = 8.0
LOOK = 0.25
ASKED = 2
"""Sessions of each site whose copies are asked at each look."""
TABLE_CHANGES = 3.0
"""Seconds in which a change of the spec shows in the slot table, if it makes any difference there."""
IN_FLIGHT = 2
WARM_UP = 4
"""Writes of each of the :data:`IN_FLIGHT` that do not count: connections are made."""
BODY = b"x" * 256


def spec_of(copies: str = SPREAD) -> PoolSpec:
    """The pool's spec, with one of :data:`SPREADS`."""
    rules = "\n".join(f"  - {{prefix: {letter!r}, durability: sync}}" for letter in SYNC_PREFIXES)
    text = f"pool: cart\nsites: {{east: {{weight: 50}}, west: {{weight: 50}}}}\n{SPREADS[copies]}\n"
    text += "site_switch: {freeze: 1s}\n"  # else a site rests that is lost twice within five minutes
    return parse_spec(f"{text}durability: replicas\ndurability_rules:\n{rules}\n", where="bench")


def class_of(key: str) -> str:
    """The class of durability of a session's writes."""
    return "sync" if key[:1] in SYNC_PREFIXES else "replicas"


class Bench:
    """A pool under the load of clients on both sites."""

    def __init__(self, pool: SitePool, operator: Operator, options: argparse.Namespace) -> None:
        self._pool, self._operator, self._options = pool, operator, options
        each = options.sessions // len(SITES)
        self._loads = [Load(pool.fronts[site], each, options.rate / len(SITES), own_key=False) for site in SITES]

    @contextlib.asynccontextmanager
    async def clients(self) -> AsyncIterator[None]:
        """Clients make requests while the block lasts."""
        try:
            for load in self._loads:
                await load.open()
            for load in self._loads:
                load.start()
            await asyncio.sleep(2 * self._turn())
            yield
        finally:
            for load in self._loads:
                await load.close()

    def _turn(self) -> float:
        """Seconds in which every client makes a request."""
        return 1.1 * float(self._options.sessions) / float(self._options.rate)

    async def steady(self) -> dict[str, Any]:
        """What requests take when nothing happens, and how far copies on the other site are behind, as they say."""
        since, lags = time.monotonic(), list[float]()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as http:
            while time.monotonic() < since + STEADY_FOR:
                await asyncio.sleep(LOOK)
                for load in self._loads:
                    for client in random.sample(load.clients, ASKED):
                        lags += await self._lags(http, client)
        history = [op for load in self._loads for op in load.history]
        lag = {f"p{part}": percentile(lags, part / 100) for part in (50, 99)}
        failed = sum(not op.ok for op in history)
        return {"latency_ms": latency(history, since), "failed": failed, "lag_ms": lag, "lags": len(lags)}

    async def _lags(self, http: aiohttp.ClientSession, client: Client) -> list[float]:
        """How many ms ago each copy of a session on the other site last heard from its active."""
        found, home = [], self._pool.members[client.server]
        for place in self._pool.layout.members:
            if place.site == home:
                continue
            url, headers = f"http://{place.session_api}/v1/sessions/{client.key}", {"Understudy-Consistency": "stale"}
            async with http.get(url, headers=headers) as answer:
                if answer.status == 200 and answer.headers.get("Understudy-Served-By") == place.name:
                    found.append(float(answer.headers["Understudy-Lag-Ms"]))
        return found

    async def event(self, kind: str, site: str) -> Outcome:
        """Strike a site, mend it, and judge."""
        if kind == "loss" and self._options.with_leader:
            await self._operator.lead_from(site)
            await asyncio.sleep(self._turn())
        before = await self._operator.state()
        leader = await self._operator.leader()
        self._tidy()
        classes = [{client.number: class_of(client.key) for client in load.clients} for load in self._loads]
        struck = time.monotonic()
        with lateness() as late:
            back = await (self._loss(site, before) if kind == "loss" else self._switch(site))
            await asyncio.sleep(SETTLED + self._turn())
        event = Event(site, struck, back, time.monotonic(), planned=kind == "switch")
        effects = [effect_of(self._by_site(load), event) for load in self._loads]
        lost: Counter[str] = Counter()
        for load, known in zip(self._loads, classes, strict=True):
            lost.update(known[number] for number in {op.client for op in load.history if op.lost})
        return _outcome(kind, event, leader, effects, lost, late.worst * 1000)

    def _tidy(self) -> None:
        for load in self._loads:
            load.tidy(time.monotonic() - 2 * self._turn())
            load.history[:] = [op for op in load.history if not op.lost]

    def _by_site(self, load: Load) -> list[Any]:
        """Its history with the sites of members for their names."""
        sites = self._pool.members
        return [replace(op, server=sites.get(op.server, op.server)) for op in load.history]

    async def _loss(self, site: str, before: PoolState) -> float:
        boots = {name: at.record.boot for name, at in before.members.items() if at.record.site == site}
        names = self._pool.of_site(site)
        self._pool.processes.kill(*names)
        await asyncio.sleep(GONE_FOR)
        back = time.monotonic()
        await self._pool.processes.start_again(*names)
        await self._whole(before, boots)
        return back

    async def _switch(self, site: str) -> float:
        before = await self._operator.state()
        await self._operator.offline(site, time.time())
        members = {name for name, where in self._pool.members.items() if where == site}

        async def empty() -> str:
            state = await self._operator.state()
            left = sum(at.record.active in members for at in state.owners.values())
            return f"{site} still serves {left} slots" if left else not_converged(state, [])

        await _until(empty)
        await asyncio.sleep(LINGER)
        back = time.monotonic()
        await self._operator.online(site)
        await self._whole(before, {})
        return back

    async def _whole(self, before: PoolState, boots: dict[str, str]) -> None:
        counts = slots_by_member(before)

        async def missing() -> str:
            state = await self._operator.state()
            late = lagging_slots(state)
            what = f"{len(late)} slots have copies on one site only" if late else ""
            return not_recovered(state, counts, boots) or what or await self._without_etcd()

        await _until(missing)

    async def _without_etcd(self) -> str:
        silent = [status.endpoint for status in await self._operator.etcd.status() if status.errors]
        return f"etcd at {', '.join(silent)} does not answer" if silent else ""


def _outcome(
    kind: str, event: Event, leader: str, effects: Sequence[Effect], lost: Counter[str], late: float
) -> Outcome:
    gaps = tuple(gap for effect in effects for gap in (*effect.gaps, *effect.gaps_other))
    return Outcome(
        kind=kind,
        site=event.victim,
        leader=leader,
        requests=sum(effect.requests for effect in effects),
        failed=sum(effect.failed_repeatable + effect.failed_other for effect in effects),
        gaps=gaps,
        lost={name: lost[name] for name in CLASSES},
        moved=len(gaps),
        needless=sum(effect.moved for effect in effects),
        errors=tuple(error for effect in effects for error in effect.errors),
        seconds=round(event.end - event.struck, 1),
        late=round(late, 1),
    )


async def _until(missing: Callable[[], Awaitable[str]]) -> None:
    give_up, what = time.monotonic() + PATIENCE, "nothing was read"
    while time.monotonic() < give_up:
        with contextlib.suppress(EtcdError):
            what = await missing()
            if not what:
                return
        await asyncio.sleep(0.1)
    raise RuntimeError(f"the pool is not whole after {PATIENCE:g} s: {what}")


async def write_costs(pool: SitePool, operator: Operator, writes: int) -> list[dict[str, Any]]:
    """What a write takes with each of :data:`SPREADS`, through the active's session API, without other load."""
    rows = []
    for copies in SPREADS:
        await operator.apply(spec_of(copies))
        await asyncio.sleep(TABLE_CHANGES)
        await _until(lambda: _at_rest(pool, operator))
        state = await operator.state()
        for durability in CLASSES:
            keys = _keys(state, writes, crossing=copies != ONE_SITE)
            rows.append({"copies": copies, "class": durability} | await _write(pool, state, durability, keys))
            print(f"   {rows[-1]}", file=sys.stderr, flush=True)
    return rows


async def _at_rest(pool: SitePool, operator: Operator) -> str:
    state = await operator.state()
    late = lagging_slots(state)
    missing = sorted(set(pool.members) - set(state.members))
    return not_converged(state, []) or (f"{len(late)} slots lag" if late else "") or ", ".join(missing)


async def _led_by_witness(operator: Operator) -> str:
    """Control servers give etcd's lead to the witness some time after the pool has started."""
    leader = await operator.leader()
    return "" if leader == WITNESS else f"etcd is led by {leader or 'nobody'}"


def _keys(state: PoolState, count: int, *, crossing: bool) -> list[str]:
    """So many session keys in slots whose copies are on two sites, or on one."""
    sites, slots = copies_by_slot(state), len(state.owners)
    fitting = (key for key in map(str, range(100 * count)) if (len(sites[slot_of(key, slots)]) > 1) == crossing)
    return list(itertools.islice(fitting, count))


async def _write(pool: SitePool, state: PoolState, durability: str, keys: Sequence[str]) -> dict[str, Any]:
    """Write sessions as one class: ms of each write, which classes they got, and the part of slots that cross sites."""
    apis = {place.name: place.session_api for place in pool.layout.members}
    sites, slots = copies_by_slot(state), len(state.owners)
    taken, got, failed = list[float](), Counter[str](), 0

    async def lane(http: aiohttp.ClientSession, keys: Sequence[str]) -> None:
        nonlocal failed
        for number, key in enumerate(keys):
            api = apis[state.owners[slot_of(key, slots)].record.active]
            begin = time.monotonic()
            headers = {"Understudy-Durability": durability}
            async with http.put(f"http://{api}/v1/sessions/{key}", data=BODY, headers=headers) as answer:
                await answer.read()
            failed += answer.status >= 300
            if number >= WARM_UP:
                got[answer.headers.get("Understudy-Durability", "")] += 1
                taken.append((time.monotonic() - begin) * 1000)

    async with aiohttp.ClientSession() as http:
        await asyncio.gather(*(lane(http, keys[number::IN_FLIGHT]) for number in range(IN_FLIGHT)))
    crossing = sum(len(there) > 1 for there in sites.values()) / slots
    p50, p99 = (round(percentile(taken, part), 1) for part in (0.5, 0.99))
    return {"p50": p50, "p99": p99, "writes": len(taken), "got": dict(got), "failed": failed, "crossing": crossing}


async def measure(net: Network, options: argparse.Namespace) -> dict[str, Any]:
    """All rows of one delay."""
    begun, load_before = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="understudy-sites-", ignore_cleanup_errors=True) as directory:
        async with site_pool(Path(directory) / "run", spec_of(), net) as (pool, operator):
            await _until(lambda: _at_rest(pool, operator))
            print(f"   the pool runs after {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
            costs = await write_costs(pool, operator, options.writes) if options.writes else []
            bench, outcomes = Bench(pool, operator, options), list[Outcome]()
            async with bench.clients():
                steady = await bench.steady()
                print(f"   steady: {steady}", file=sys.stderr, flush=True)
                await _until(lambda: _led_by_witness(operator))
                kinds = options.kinds.split(",")
                for number in range(options.events * len(kinds)):
                    if time.monotonic() - begun > options.seconds:
                        break
                    kind, site = kinds[number % len(kinds)], SITES[number // len(kinds) % 2]
                    outcomes.append(await bench.event(kind, site))
                    print(_line(number, outcomes[-1]), file=sys.stderr, flush=True)
    rows = rows_of(outcomes)
    spent = {"machine_load": [load_before, os.getloadavg()[0]], "seconds": round(time.monotonic() - begun)}
    return {"costs": costs, "steady": steady, "rows": rows, "rate": options.rate, **spent}


def _line(number: int, one: Outcome) -> str:
    return (
        f"   {number + 1} {one.kind} {one.site}: gap p50 {percentile(one.gaps, 0.5):.0f}, "
        f"worst {max(one.gaps, default=math.nan):.0f} ms of {len(one.gaps)}, failed {one.failed}, lost {one.lost}, "
        f"needless {one.needless}, etcd led by {one.leader}, {one.seconds:g} s, late {one.late:g} ms "
        f"{'; '.join(one.errors)}"
    )


def machine() -> dict[str, Any]:
    """The machine and the versions of what was measured."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    etcd = subprocess.run(["/usr/bin/etcd", "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "cpu": cpu.partition(":")[2].strip(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "etcd": etcd.splitlines()[0].partition(":")[2].strip(),
        "packages": {name: importlib.metadata.version(name) for name in ("aiohttp", "grpcio", "understudy")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20, help="events of each row")
    parser.add_argument("--delays", default="0,5,20", help="ms between the sites, one way, separated by commas")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no event of a delay after so long")
    parser.add_argument("--sessions", type=int, default=60)
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second, both sites together")
    parser.add_argument(
        "--writes", type=int, default=100, help="writes of each class that show what a write takes, or 0"
    )
    parser.add_argument("--kinds", default=",".join(EVENTS), help="events, in turn, separated by commas")
    parser.add_argument("--with-leader", action="store_true", help="have etcd led from the site before each loss of it")
    parser.add_argument("--table", action="store_true", help="only print what was measured so far")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    results = json.loads(options.results.read_text()) if options.results.exists() else {"delays": {}}
    if not options.table:
        if unable():
            raise SystemExit(f"sites need networks of their own, and here they cannot be made: {unable()}")
        results["machine"] = machine()
    for delay in [] if options.table else options.delays.split(","):
        print(f"{delay} ms between the sites", file=sys.stderr, flush=True)
        with network([*PARTIES, "bench"]) as net, delayed(net, PARTIES, float(delay) / 1000), net.entered("bench"):
            results["delays"][delay] = asyncio.run(measure(net, options))
        options.results.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
