"""How soon a browser shows a claim, and how the console bears large pools: ``make bench-console``.

Writes bench/results/console.json and prints a table. The browser is Debian's Chromium, driven by Playwright.

- *A claim*: a real local pool. A member is killed, and two pages note when each cell of the slot map and the list of
  failovers change. From the moment that the new active wrote into its claim, before etcd had it, to the change in the
  document. Both clocks are the machine's.
- *A large pool*: the records of 10,000 members and 4,096 slots in etcd, without processes, and one real control server.
  The benchmark holds the leader's key, so that the control server takes no member for lost. The records have no address
  of a peer, so that it sends no probes to members that do not exist. First paint as the browser measures it
  (``first-contentful-paint``), in a new browser profile each round. The CPU is that of the page's main thread: other
  work on the machine does not count in it. The script time of an event is that of the page's handler of the message,
  with the decoding of the message in it, without style and layout.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from playwright.async_api import Browser, Page, async_playwright

from bench.sessions import machine, median, report
from tests.harness.chromium import CHROMIUM, FLAGS
from tests.harness.etcd import running_etcd
from tests.harness.local_pools import killed_at_the_end, settled
from tests.harness.programs import Program
from tests.harness.sidecars import PATIENT
from tests.harness.waiting import free_port, until
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.statesync.etcd.client import EtcdClient, Put
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Member, MemberState, Owner, SyncRecord, Table
from understudy.statesync.pool.spec_reader import parse_spec
from understudy.statesync.replication.sync_set import Process

RESULTS = Path(__file__).parents[1] / "bench/results/console.json"
POOL = "cart"
MEMBERS, SLOTS = 10_000, 4_096
BATCH = 100
CHANGES = (1, 40, 400)
"""Slots that change their active in one event of the large pool."""
PAGES = ("", "slots", "members")
DEADLINE_MS = 30_000
SEEN = """() => {
  window.seen = {};
  const note = name => { window.seen[name] ??= Date.now(); };
  const watch = (root, each) => new MutationObserver(found => found.forEach(each)).observe(
    root, {subtree: true, childList: true, characterData: true, attributes: true, attributeFilter: ["class"]});
  const element = node => node.nodeType === Node.TEXT_NODE ? node.parentElement : node;
  const map = document.getElementById("map");
  if (map) watch(map, one => note(element(one.target).closest("[role=gridcell]")?.id));
  for (const one of document.querySelectorAll("tbody[data-list=failovers]"))
    watch(one, change => [...change.addedNodes].some(node => node.nodeName === "TR") && note("failover"));
}"""
SCRIPT_TIMES = """
  window.scriptTimes = [];
  const known = Object.getOwnPropertyDescriptor(MessagePort.prototype, "onmessage");
  Object.defineProperty(MessagePort.prototype, "onmessage", {...known, set(handler) {
    known.set.call(this, event => {
      const begun = performance.now();
      handler(event);
      window.scriptTimes.push([event.data.type, performance.now() - begun]);
    });
  }});
"""
PAINTED = """() => {
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  const [navigation] = performance.getEntriesByType("navigation");
  return paint ? {paint: paint.startTime, answer: navigation.responseEnd, bytes: navigation.encodedBodySize} : null;
}"""


async def opened(browser: Browser, url: str, *, script: str = "") -> Page:
    """A page in a browser profile of its own, once it is live."""
    page = await empty_page(browser, script)
    await page.goto(url)
    await page.locator("#live[data-mode=live]").wait_for()
    return page


async def empty_page(browser: Browser, script: str = "") -> Page:
    """An empty page in a browser profile of its own, which runs ``script`` before those of a document."""
    context = await browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(DEADLINE_MS)
    if script:
        await context.add_init_script(script)
    return await context.new_page()


# -- a claim --


async def claims(browser: Browser, rounds: int) -> list[dict[str, float]]:
    """One killed member after another: ms from claims to what the browser shows."""
    spec = parse_spec(f"pool: {POOL}\nslots: 256\ncopies: 2\n{PATIENT}", where="bench")
    with tempfile.TemporaryDirectory(prefix="understudy-bench-") as directory:
        settings = LocalSettings(Path(directory), spec, members=3)
        async with LocalPool(settings) as pool, EtcdClient(pool.etcd_endpoints) as etcd, killed_at_the_end(pool):
            await settled(pool.layout, etcd)
            base = f"http://{pool.layout.controls[0].http}/console/{POOL}/"
            return [await _claim(browser, pool, etcd, base, f"cart-{turn % 3 + 1}") for turn in range(rounds)]


async def _claim(browser: Browser, pool: LocalPool, etcd: EtcdClient, base: str, member: str) -> dict[str, float]:
    pages = [await opened(browser, base + path) for path in ("slots", "failovers")]
    for page in pages:
        await page.evaluate(SEEN)
    before = await owners(etcd)
    mine = {slot for slot, owner in before.items() if owner.active == member}
    victims = [one.name for one in pool.processes.all if one.name.partition("/")[0] == member]
    pool.processes.kill(*victims)

    async def shown() -> bool:
        return {f"s{slot}" for slot in mine} <= set(await pages[0].evaluate("seen"))

    await until(shown, 30, "every claim is shown")
    await until(lambda: pages[1].evaluate("'failover' in seen"), 30, "the failover is listed")
    after = await owners(etcd)
    map_seen, list_seen = [await page.evaluate("seen") for page in pages]
    lags = [map_seen[f"s{slot}"] - after[slot].since * 1000 for slot in mine]
    first = min(after[slot].since for slot in mine) * 1000
    for page in pages:
        await page.context.close()
    await pool.processes.start_again(*victims)
    await settled(pool.layout, etcd)
    return {
        "slots": len(mine),
        "map_median": sorted(lags)[len(lags) // 2],
        "map_worst": max(lags),
        "failover": list_seen["failover"] - first,
    }


async def owners(etcd: EtcdClient) -> dict[int, Owner]:
    """The owner records, by slot."""
    state, _ = await read_pool(etcd, POOL)
    return {slot: at.record for slot, at in state.owners.items()}


# -- a large pool --


class LargePool:
    """The records of a pool that has no processes, and a control server that may not lead it."""

    def __init__(self, etcd: EtcdClient, control: str) -> None:
        self.etcd, self.keys, self.base = etcd, PoolKeys(POOL), f"http://{control}/console/{POOL}/"
        self.names = [f"cart-{number}" for number in range(MEMBERS)]
        self.orders = tuple(tuple(self.names[(slot * 2 + at) % MEMBERS] for at in range(2)) for slot in range(SLOTS))
        self.owners = {slot: Owner(order[0], "b", 1, since=time.time()) for slot, order in enumerate(self.orders)}

    async def write(self) -> None:
        """Write all records, the leader's key first."""
        spec = parse_spec(f"pool: {POOL}\nslots: {SLOTS}\ncopies: 2\n", where="bench")
        puts = [Put(self.keys.leader, b"nobody"), Put(self.keys.spec, spec.encode())]
        puts += [Put(self.keys.table, Table(1, self.orders).encode())]
        puts += [self._member(number, name) for number, name in enumerate(self.names)]
        for slot, order in enumerate(self.orders):
            copies = SyncRecord(1, tuple(Process(name, "b") for name in order))
            puts += [self._owner(slot), Put(self.keys.sync_set(slot), copies.encode())]
        for first in range(0, len(puts), BATCH):
            await self.etcd.txn([], puts[first : first + BATCH])

    def _member(self, number: int, name: str) -> Put:
        site = ("east", "west")[number % 2]
        return Put(self.keys.member(name), Member(name, "b", "h:1", "", MemberState.UP, site=site).encode())

    def _owner(self, slot: int) -> Put:
        return Put(self.keys.owner(slot), self.owners[slot].encode())

    async def move(self, slots: Sequence[int]) -> None:
        """The standby of each slot becomes its active, or the other way round, in one transaction per 100 slots."""
        for slot in slots:
            now, order = self.owners[slot], self.orders[slot]
            other = order[1] if now.active == order[0] else order[0]
            self.owners[slot] = dataclasses.replace(now, active=other, epoch=now.epoch + 1, since=time.time())
        for first in range(0, len(slots), BATCH):
            await self.etcd.txn([], [self._owner(slot) for slot in slots[first : first + BATCH]])


@contextlib.asynccontextmanager
async def large_pool() -> AsyncIterator[LargePool]:
    """The pool, with its control server, which has read it."""
    http, grpc = (f"127.0.0.1:{free_port()}" for _ in range(2))
    async with running_etcd() as etcd, etcd.client() as client:
        pool = LargePool(client, http)
        await pool.write()
        with tempfile.TemporaryDirectory(prefix="understudy-bench-") as home:
            words = ["--pool", POOL, "--etcd", ",".join(etcd.endpoints), "--grpc", grpc, "--http", http]
            words += ["--name", "control-1", "--traces", ":memory:"]
            command = [sys.executable, "-m", "understudy.deploy.cli", "control", *words]
            control = Program("control-1", command, Path(home) / "control.log")
            control.start()
            try:
                await until(lambda: answers(f"http://{http}/readyz"), 60, "the control server is ready")
                yield pool
            finally:
                control.kill()


async def answers(url: str) -> bool:
    """Whether the URL answers with success."""
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.ok


async def paints(browser: Browser, pool: LargePool, rounds: int) -> dict[str, Any]:
    """First paint of pages in new profiles; the very first one also has the first frame to wait for."""
    cold = await painted(browser, pool.base)
    found = {path or "overview": [await painted(browser, pool.base + path) for _ in range(rounds)] for path in PAGES}
    return {"cold": cold, "warm": found}


async def painted(browser: Browser, url: str) -> dict[str, float]:
    """ms from the beginning of the navigation until the answer was complete, and until the first paint.

    ``cpu``: ms of CPU of the page's main thread until the page was live.
    """
    page = await empty_page(browser)
    try:
        session = await page.context.new_cdp_session(page)
        await session.send("Performance.enable", {"timeDomain": "threadTicks"})
        await page.goto(url)
        await page.locator("#live[data-mode=live]").wait_for()
        await until(lambda: page.evaluate(PAINTED), 30, "the page is painted")
        found: dict[str, float] = await page.evaluate(PAINTED)
        told = await session.send("Performance.getMetrics")
        spent = {one["name"]: one["value"] for one in told["metrics"]}
        return {**found, "cpu": spent["TaskDuration"] * 1000}
    finally:
        await page.context.close()


async def events(browser: Browser, pool: LargePool, rounds: int) -> dict[str, Any]:
    """Per number of slots that change: script time of each event, and ms until the last cell had changed."""
    page = await opened(browser, f"{pool.base}slots", script=SCRIPT_TIMES)
    await until(lambda: page.evaluate("scriptTimes.some(([type]) => type === 'frame')"), 30, "the page has a frame")
    await page.evaluate(SEEN)
    whole = await page.evaluate("scriptTimes.filter(([type]) => type === 'frame').map(([, ms]) => ms)")
    found: dict[str, Any] = {"whole_frame": whole}
    for count in CHANGES:
        found[str(count)] = [await _event(page, pool, count) for _ in range(rounds)]
    await page.context.close()
    return found


async def _event(page: Page, pool: LargePool, count: int) -> dict[str, Any]:
    slots = [at * (SLOTS // count) for at in range(count)]
    await page.evaluate("seen = {}; scriptTimes.length = 0")
    begun = time.time()
    await pool.move(slots)
    await until(lambda: page.evaluate(f"Object.keys(seen).length >= {count}"), 30, "every change is shown")
    seen = await page.evaluate("Math.max(...Object.values(seen))")
    times = await page.evaluate("scriptTimes.filter(([type]) => type === 'changes').map(([, ms]) => ms)")
    return {"script": times, "shown": seen - begun * 1000}


async def plans(pool: LargePool, rounds: int) -> dict[str, list[float]]:
    """ms until the control server has answered what an act would do, and with a plan of a rebalance."""
    root = pool.base.partition("/console")[0]
    asked = {
        "drain": ("POST", f"{pool.base}preview", {"act": "drain", "target": "cart-0"}),
        "site offline": ("POST", f"{pool.base}preview", {"act": "site offline", "target": "east"}),
        "rebalance": ("GET", f"{root}/v1/rebalance?by=count", None),
    }
    async with aiohttp.ClientSession(raise_for_status=True) as http:

        async def answered(method: str, url: str, body: Any) -> float:
            begun = time.perf_counter()
            async with http.request(method, url, json=body) as answer:
                await answer.read()
            return (time.perf_counter() - begun) * 1000

        return {name: [await answered(*call) for _ in range(rounds)] for name, call in asked.items()}


# -- all of it --


async def within(seconds: float, step: Callable[[], Awaitable[Any]]) -> Any:
    """The result of a step; ends the benchmark if it takes too long."""
    async with asyncio.timeout(seconds):
        return await step()


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Both parts, one after the other."""
    assert CHROMIUM is not None, "chromium is not installed"
    results: dict[str, Any] = {"machine": machine(), "members": MEMBERS, "slots": SLOTS}
    async with async_playwright() as started:
        browser = await started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        results["machine"]["chromium"] = browser.version
        results["claims"] = await within(150, lambda: claims(browser, options.claims))
        async with large_pool() as pool:
            results["paints"] = await within(90, lambda: paints(browser, pool, options.rounds))
            results["plans"] = await within(90, lambda: plans(pool, options.rounds))
            results["events"] = await within(90, lambda: events(browser, pool, options.rounds))
        await browser.close()
    results["machine"]["load_after"] = os.getloadavg()
    return results


def table(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ["| ms | median | least to most | rounds |", "|---|---|---|---|"]
    for name, text in (
        ("map_median", "claim to map, median of the slots"),
        ("map_worst", "claim to map, last slot"),
        ("failover", "first claim to list of failovers"),
    ):
        lines.append(_row(text, [one[name] for one in results["claims"]]))
    for page, found in results["paints"]["warm"].items():
        lines.append(_row(f"large pool, {page}: answer complete", [one["answer"] for one in found]))
        lines.append(_row(f"large pool, {page}: first paint", [one["paint"] for one in found]))
        lines.append(_row(f"large pool, {page}: CPU of the page until it is live", [one["cpu"] for one in found]))
    lines.append(_row("large pool: first paint of the first page", [results["paints"]["cold"]["paint"]]))
    for name, took in results["plans"].items():
        lines.append(_row(f"large pool: answer what {name} would do", took))
    for count in CHANGES:
        found = results["events"][str(count)]
        scripts = [ms for one in found for ms in one["script"]]
        lines.append(_row(f"large pool, {count} slots: script per event", scripts))
        lines.append(_row(f"large pool, {count} slots: write to map", [one["shown"] for one in found]))
    lines.append(_row("large pool: script of the whole frame", results["events"]["whole_frame"]))
    return "\n".join(lines)


def _row(text: str, values: Sequence[float]) -> str:
    told = median(values)
    return f"| {text} | {told['median']:.1f} | {told['least']:.1f} to {told['most']:.1f} | {told['rounds']} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--claims", type=int, default=8, help="members to kill")
    parser.add_argument("--rounds", type=int, default=7, help="pages to load, and events of each size")
    parser.add_argument("--no-file", action="store_true", help="print only")
    options = parser.parse_args()
    report(run(options), table, None if options.no_file else RESULTS)


if __name__ == "__main__":
    main()
