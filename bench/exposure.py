"""Whether ``site status`` says beforehand what the loss of a site costs: ``make bench-exposure``.

    python -m bench.exposure --kills 50             writes bench/results/exposure.json (about 15 minutes)
    python -m bench.exposure --clients 60           another run beside it: each session is written more often
    python -m bench.exposure --table                print what was measured so far

A pool with three members in the east and one in the west, ``copies: 2`` without ``spread: site``, and ``durability:
replicas``. So most slots of the east have both of their copies there, and what etcd does not have of them is lost with
it. etcd, the control server and the front Envoy are on neither site. Clients write carts through Envoy, each write
another item.

Each time the statement for the east is read. Within about a second, at a random moment, all of its members get SIGKILL,
sidecars and applications at once. When the west serves, every cart is read: an item that was acknowledged and is not
there is lost. Then the east is started again.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from bench.sites import machine
from understudy.deploy.drill.conditions import not_recovered, slots_by_member
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.inspect.site_reports import read_reports
from understudy.deploy.inspect.sites import sites_view
from understudy.deploy.load.history_checker import percentile
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.proxy.peers.peer_protocol import STATUS_PATH
from understudy.statesync.etcd.client import EtcdClient, EtcdError
from understudy.statesync.pool.ownership import agreed_set
from understudy.statesync.pool.site_copies import copies_by_slot
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_reader import parse_spec
from understudy.statesync.pool.state import PoolState

RESULTS = Path(__file__).parent / "results" / "exposure.json"
SITES = ("east", "east", "east", "west")
"""The site of each member."""
STRUCK = SITES[0]
SYNC_PREFIXES = "ABCDEF"
"""6 of the 64 letters of session keys: carts whose keys begin so are written as ``sync``."""
PATIENCE = 90.0
STEADY = (2.0, 4.0)
"""Seconds of writes between a pool that is whole and the statement: at least, and up to so many more."""
ASK_AGAIN = 0.1
WRITES_OF_A_CART = 20
REQUEST_TIMEOUT = 10.0
READERS = 10


CHECKPOINT_MS = 1000


def spec_of() -> PoolSpec:
    """The pool's spec."""
    rules = "\n".join(f"  - {{prefix: {letter}, durability: sync}}" for letter in SYNC_PREFIXES)
    text = f"pool: cart\ncopies: 2\nreplication: {{checkpoint_ms: {CHECKPOINT_MS}}}\n"
    return parse_spec(f"{text}durability: replicas\ndurability_rules:\n{rules}\n", where="bench")


def class_of(key: str) -> str:
    """The class of durability of a cart's writes."""
    return "sync" if key[:1] in SYNC_PREFIXES else "replicas"


@dataclass(slots=True)
class Cart:
    """A cart, and when each of its items was acknowledged (monotonic); '' is the cart itself. It ends at ``most``."""

    key: str
    most: int
    items: dict[str, float] = field(default_factory=dict)


class Loss(msgspec.Struct, frozen=True):
    """A cart that has lost acknowledged writes: how many, and how many ms before the kill the first of them was."""

    durability: str
    writes: int
    oldest_ms: float


class Kill(msgspec.Struct, frozen=True):
    """One kill. ``stated`` is ``if_lost`` of :data:`STRUCK`, ``present`` how many saves its members lacked when asked.

    ``after_ms``: from the question to the kill. ``alone``: slots whose copies are all on the site. ``written``: writes
    that were acknowledged since the kill before. ``load``: the machine's load average.
    """

    stated: dict[str, Any]
    present: int
    after_ms: float
    alone: int
    written: int
    lost: dict[str, int]
    oldest_ms: float
    seconds: float
    load: float

    @property
    def bounded(self) -> bool:
        """Whether no more sessions were lost than stated."""
        return self.stated["sessions"] is not None and self.stated["sessions"] >= self.lost["replicas"]

    @property
    def bounded_ms(self) -> bool:
        """Whether no lost write was older than stated."""
        return bool(self.stated["bound_ms"] >= self.oldest_ms)


class Writers:
    """Clients of ``url``, each with a cart of its own. They make ``rate`` writes a second together."""

    def __init__(self, url: str, clients: int, rate: float) -> None:
        self._url, self._clients, self._rate = url, clients, rate
        self._carts: dict[int, Cart] = {}
        self._ended: list[Cart] = []
        self._open = asyncio.Event()
        self._begun = 0.0
        self._busy = 0
        self.unanswered = 0
        self.written = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The clients live while the block lasts, and write after :meth:`go_on`."""
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT)
        async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as self._http:
            tasks = [asyncio.create_task(self._live(number)) for number in range(self._clients)]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def go_on(self) -> None:
        """Write from now on."""
        self._begun = time.monotonic()
        self._open.set()

    async def pause(self) -> None:
        """Begin no more writes, and wait for those that are under way."""
        self._open.clear()
        while self._busy:
            await asyncio.sleep(0.01)

    async def losses(self, struck: float) -> list[Loss]:
        """What the carts have lost of their acknowledged writes; from now on it counts as never written."""
        gate = asyncio.Semaphore(READERS)

        async def judged(cart: Cart) -> Loss | None:
            async with gate:
                found = await self._read(cart.key)
            gone = [cart.items.pop(item) for item in list(cart.items) if item not in found]
            return Loss(class_of(cart.key), len(gone), max(struck - min(gone), 0.0) * 1000) if gone else None

        found = await asyncio.gather(*map(judged, [*self._carts.values(), *self._ended]))
        self._ended.clear()
        self._carts = {number: cart for number, cart in self._carts.items() if cart.items}
        return [one for one in found if one is not None]

    async def _live(self, number: int) -> None:
        period, phase = self._clients / self._rate, number / self._rate
        while True:
            await self._open.wait()
            turn = max(math.ceil((time.monotonic() - self._begun - phase) / period), 0)
            await asyncio.sleep(self._begun + phase + turn * period - time.monotonic())
            if self._open.is_set():
                self._busy += 1
                try:
                    await self._write(number)
                except (aiohttp.ClientError, TimeoutError):
                    self.unanswered += 1  # nobody knows whether it was written, so it is not counted as acknowledged
                finally:
                    self._busy -= 1

    async def _write(self, number: int) -> None:
        cart = self._carts.get(number)
        if cart is None or len(cart.items) >= cart.most:
            await self._create(number, random.randint(2, WRITES_OF_A_CART))
            return
        sku = f"w{self.written}-{number}"
        headers = {"X-Session-Id": cart.key, "Idempotency-Key": f"{cart.key}-{sku}"}
        async with self._http.post(f"{self._url}/cart/items", json={"sku": sku}, headers=headers) as answer:
            await answer.read()
            if answer.status == 200:
                cart.items[sku] = time.monotonic()
                self.written += 1

    async def _create(self, number: int, most: int) -> None:
        async with self._http.post(f"{self._url}/cart") as answer:
            made = await answer.json() if answer.status == 201 else None
        if made is not None:
            if number in self._carts:
                self._ended.append(self._carts[number])
            self._carts[number] = Cart(made["session"], most, {"": time.monotonic()})
            self.written += 1

    async def _read(self, key: str) -> set[str]:
        """The items of a cart and ''; nothing if there is no such cart."""
        give_up = time.monotonic() + PATIENCE
        while time.monotonic() < give_up:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with self._http.get(f"{self._url}/cart", headers={"X-Session-Id": key}) as answer:
                    if answer.status == 404:
                        return set()
                    if answer.status == 200:
                        return {"", *(await answer.json())["items"]}
            await asyncio.sleep(ASK_AGAIN)
        raise RuntimeError(f"cart {key} was not served for {PATIENCE:g} s")


class Bench:
    """The pool, its clients, and what is done to it."""

    def __init__(self, pool: LocalPool, etcd: EtcdClient, writers: Writers) -> None:
        self._pool, self._etcd, self._writers = pool, etcd, writers
        self._struck = [place for place in pool.layout.members if place.site == STRUCK]
        self._shares: dict[str, int] = {}

    async def until_whole(self, boots: dict[str, str]) -> None:
        """Wait until all members serve their slots, and all copies are in their sync sets."""
        give_up, what = time.monotonic() + PATIENCE, "nothing was read"
        while time.monotonic() < give_up:
            with contextlib.suppress(EtcdError):
                state = await self._state()
                what = self._lacking(state, boots)
                if not what:
                    self._shares = slots_by_member(state)
                    return
            await asyncio.sleep(ASK_AGAIN)
        raise RuntimeError(f"the pool is not whole after {PATIENCE:g} s: {what}")

    def _lacking(self, state: PoolState, boots: dict[str, str]) -> str:
        names = [place.name for place in self._pool.layout.members]
        bare = [slot for slot, at in state.owners.items() if len(_copies(state, slot, at.record)) < 2]
        shares = self._shares or dict.fromkeys(names, 1)
        return not_recovered(state, shares, boots) or (f"{len(bare)} slots have one copy" if bare else "")

    async def kill(self) -> Kill:
        """Read the statement for the site, kill it, judge, and mend it."""
        begun, written = time.monotonic(), self._writers.written
        self._writers.go_on()
        await asyncio.sleep(STEADY[0] + random.uniform(0, STEADY[1]))
        asked = time.monotonic()
        state, stated, present = await self._statement()
        struck_members = [place.name for place in self._struck]
        names = [name for member in struck_members for name in self._pool.member_processes(member)]
        await asyncio.sleep(random.random())
        after = time.monotonic() - asked
        self._pool.processes.kill(*names)
        struck = time.monotonic()
        await self._writers.pause()
        losses = await self._writers.losses(struck)
        lost = Counter(one.durability for one in losses)
        written = self._writers.written - written
        await self._pool.processes.start_again(*names)
        await self.until_whole({member: state.members[member].record.boot for member in struck_members})
        return Kill(
            stated=stated,
            present=present,
            after_ms=round(after * 1000),
            alone=sum(there == {STRUCK} for there in copies_by_slot(state).values()),
            written=written,
            lost={name: lost[name] for name in ("replicas", "sync")},
            oldest_ms=round(max((one.oldest_ms for one in losses), default=0.0)),
            seconds=round(time.monotonic() - begun, 1),
            load=round(os.getloadavg()[0], 1),
        )

    async def _statement(self) -> tuple[PoolState, dict[str, Any], int]:
        """What ``site status`` says of the loss of a site, and how many saves its members lack at this moment."""
        state, revision = await read_pool(self._etcd, self._pool.layout.pool)
        present = await self._present()
        reports = await read_reports(state, None)
        view = sites_view(state, revision=revision, now=time.time(), reports=reports)
        return state, next(row["if_lost"] for row in view["sites"] if row["site"] == STRUCK), present

    async def _present(self) -> int:
        count = 0
        async with aiohttp.ClientSession() as http:
            for place in self._struck:
                async with http.get(f"http://{place.peer}{STATUS_PATH}") as answer:
                    count += (await answer.json())["replication"]["unsaved_sessions"]
        return count

    async def _state(self) -> PoolState:
        return (await read_pool(self._etcd, self._pool.layout.pool))[0]


def _copies(state: PoolState, slot: int, owner: Any) -> frozenset[Any]:
    return frozenset(agreed_set(owner, state.sync_sets.get(slot)).members)


async def measure(options: argparse.Namespace, note: Callable[[Kill], None]) -> None:
    """Kill the site again and again, and note each kill."""
    begun = time.monotonic()
    environment = {**os.environ, "UNDERSTUDY_ETCD_BINARY": "/usr/bin/etcd"}
    with tempfile.TemporaryDirectory(prefix="understudy-exposure-", ignore_cleanup_errors=True) as directory:
        settings = LocalSettings(
            Path(directory) / "run",
            spec_of(),
            members=len(SITES),
            etcd_election_ms=1000,
            sites=SITES,
            log_level="warning",
            environment=environment,
        )
        async with LocalPool(settings) as pool, EtcdClient(pool.etcd_endpoints) as etcd:
            writers = Writers(f"http://{pool.layout.front.listen}", options.clients, options.rate)
            bench = Bench(pool, etcd, writers)
            await bench.until_whole({})
            async with writers.running():
                for number in range(1, options.kills + 1):
                    if time.monotonic() - begun > options.seconds:
                        break
                    one = await bench.kill()
                    note(one)
                    print(_line(number, one), file=sys.stderr, flush=True)
            print(f"{writers.unanswered} writes had no answer", file=sys.stderr)


def _line(number: int, one: Kill) -> str:
    stated = one.stated
    wrong = f"{'' if one.bounded else '  MORE SESSIONS'}{'' if one.bounded_ms else '  OLDER'}"
    return (
        f"{number:3}: stated {stated['sessions']} sessions, {stated['bound_ms']} ms; lost {one.lost}, "
        f"oldest {one.oldest_ms:g} ms; {one.present} at the question {one.after_ms:g} ms before; "
        f"{one.alone} slots alone, {one.written} writes, {one.seconds:g} s, load {one.load:g}{wrong}"
    )


def table(runs: Mapping[str, Sequence[Kill]]) -> str:
    """The figures as Markdown; a column for each run."""
    columns = [figures(kills) for kills in runs.values()]
    lines = [f"| figure | {' | '.join(runs)} |", "|---" * (len(runs) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(column[name] for column in columns)} |" for name in (columns or [{}])[0]]
    return "\n".join(lines)


def figures(kills: Sequence[Kill]) -> dict[str, str]:
    """What a run has shown."""
    count, present = len(kills), sum(one.present >= one.lost["replicas"] for one in kills)
    return {
        "kills; writes acknowledged": f"{count}; {sum(one.written for one in kills):,}",
        "sessions stated: median, most": _spread([one.stated["sessions"] for one in kills]),
        "sessions that lost `replicas` writes: median, most": _spread([one.lost["replicas"] for one in kills]),
        "stated sessions ≥ lost ones": f"{sum(one.bounded for one in kills)} of {count}",
        "the same, had the count of the moment been stated": f"{present} of {count}",
        "ms stated: median, most": _spread([one.stated["bound_ms"] for one in kills]),
        "age of the oldest lost write, ms: median, most": _spread([one.oldest_ms for one in kills]),
        "stated ms ≥ this age": f"{sum(one.bounded_ms for one in kills)} of {count}",
        "kills that lost a write older than `checkpoint_ms`": f"{sum(one.oldest_ms > CHECKPOINT_MS for one in kills)}",
        "`sync` writes lost": f"{sum(one.lost['sync'] for one in kills)}",
    }


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{percentile(known, 0.5):g}, {max(known):g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=3600.0, help="kill no more after so long")
    parser.add_argument("--clients", type=int, default=300)
    parser.add_argument("--rate", type=float, default=100.0, help="writes a second, of all clients together")
    parser.add_argument("--table", action="store_true", help="only print what was measured so far")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    results = json.loads(options.results.read_text()) if options.results.exists() else {}

    def note(one: Kill) -> None:
        run["kills"].append(msgspec.to_builtins(one))
        options.results.write_text(json.dumps(results, indent=1) + "\n")

    if not options.table:
        run = {"machine": machine(), "load_before": os.getloadavg()[0], "rate": options.rate, "kills": []}
        results[f"{options.clients} clients"] = run
        asyncio.run(measure(options, note))
    print(table({name: msgspec.convert(run["kills"], list[Kill]) for name, run in results.items()}))


if __name__ == "__main__":
    main()
