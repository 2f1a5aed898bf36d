"""The recipe for blue/green, step by step, on a real pool: sessions stay on the version that they began on."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Self

import aiohttp
import pytest

from tests.harness.commands import Commands
from tests.harness.local_pools import killed_at_the_end
from tests.harness.sidecars import PATIENT
from tests.harness.waiting import until
from understudy.deploy.inspect.converged import not_converged
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.local import local_pool
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.deploy.local.processes import Program
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.spec_reader import parse_spec
from understudy.statesync.pool.spec_versions import version_cookie
from understudy.xds.envoy.routes import VERSION_GONE

pytestmark = pytest.mark.heavy
VERSION_OF = {"cart-1": "v1", "cart-2": "v1", "cart-3": "v2", "cart-4": "v2"}
V1, V2 = ("cart-1", "cart-2"), ("cart-3", "cart-4")
CUSTOMERS = 8
"""Sessions that begin on a version; with 16 slots and four members their slots are with members of both."""
SHORT_TTL = 15
"""Seconds. Customers come every half second, and on a busy machine after some seconds."""
BASE = f"pool: cart\nslots: 16\ncopies: 2\n{PATIENT}\n"


class Customer:
    """A client that keeps cookies, as a browser does, and knows what its cart must have."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http
        self._numbers = itertools.count()
        self.bought: set[str] = set()
        self.first = ""

    @classmethod
    @asynccontextmanager
    async def comes(cls, url: str) -> AsyncIterator[Self]:
        """A client whose session begins."""
        async with aiohttp.ClientSession(url, cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
            one = cls(http)
            async with http.post("/cart", headers={"Idempotency-Key": "a cart"}) as answer:
                assert answer.status == 201, await answer.text()
                one.first = answer.headers["X-Served-By"]
            yield one

    @property
    def version(self) -> str:
        """The version of its session, by the cookie of Envoy; '' if that is not there."""
        marks = [one.value for one in self._http.cookie_jar if one.key == version_cookie("cart")]
        return "".join(marks)

    async def asks(self) -> tuple[int, str, str]:
        """Look at the cart: the status, the member that answered, and the text of the answer."""
        async with self._http.get("/cart") as answer:
            return answer.status, answer.headers.get("X-Served-By", ""), await answer.text()

    async def buys(self) -> str:
        """Put another item into the cart, which has all that was bought before; returns the member that answered."""
        item = f"item-{next(self._numbers)}"
        call = self._http.post("/cart/items", json={"sku": item}, headers={"Idempotency-Key": item})
        async with call as answer:
            assert answer.status == 200, f"{answer.status} {await answer.text()}"
            self.bought.add(item)
            items = (await answer.json())["items"]
            assert items == dict.fromkeys(self.bought, 1), (items, self.bought)
            return answer.headers["X-Served-By"]

    async def leaves(self) -> None:
        """End the session."""
        async with self._http.delete("/cart") as answer:
            assert answer.status == 204


class Shop:
    """The pool, its customers, and what the operator does."""

    def __init__(self, pool: LocalPool, etcd: EtcdClient, guests: AsyncExitStack, late: Sequence[Program]) -> None:
        self.pool, self.etcd, self._guests, self._late = pool, etcd, guests, late
        self._directory = pool.settings.directory

    async def customer(self) -> Customer:
        """A client whose session begins now."""
        return await self._guests.enter_async_context(Customer.comes(self.pool.layout.front_url))

    async def begins_on(self) -> str:
        """The version on which a session begins now. It ends at once."""
        one = await self.customer()
        await one.leaves()
        return one.version

    async def customers_of(self, version: str) -> list[Customer]:
        """Clients whose sessions begin now, and all on a version, as soon as Envoy has the spec."""

        async def begins() -> bool:
            return await self.begins_on() == version

        await until(begins, 60, f"sessions begin on {version}")
        found = [await self.customer() for _ in range(CUSTOMERS)]
        assert {one.version for one in found} == {version}
        assert {VERSION_OF[one.first] for one in found} == {version}
        return found

    async def run(self, *words: str) -> str:
        """A command of the operator, which succeeds."""
        code, output = await Commands(self._directory).run(*words, UNDERSTUDY_DIR=str(self._directory))
        assert code == 0, output
        return output

    async def apply(self, versions: str, more: str = "") -> None:
        """Apply the spec with these ``versions``."""
        file = self._directory / "cart.yaml"
        file.write_text(f"{BASE}versions: {{{versions}}}\n{more}")
        await self.run("apply", "-f", str(file))

    async def new_members_join(self) -> None:
        """Start the members that the pool began without."""
        await self.pool.processes.start(*self._late)

    async def shared_by(self, *members: str) -> None:
        """Wait until these members, and no others, serve the slots in fair shares."""

        async def at_rest() -> bool:
            state, _ = await read_pool(self.etcd, "cart")
            return not not_converged(state, members)

        await until(at_rest, 120, f"{members} serve every slot")

    async def kill(self, member: str) -> None:
        """``kill -9`` of the sidecar and the application."""
        names = self.pool.member_processes(member)
        self.pool.processes.kill(*names)
        await until(lambda: all(self.pool.processes[name].pid == 0 for name in names), what=f"{member} is gone")

    async def stop(self, member: str) -> None:
        """Drain and stop a member."""
        await self.run("drain", member, "--wait", "60")
        for name in reversed(self.pool.member_processes(member)):
            await self.pool.processes.terminate(name)

    async def sessions(self) -> dict[str, int]:
        """How many sessions each version has, as ``status`` says; -1 while some member has not told."""
        rows = json.loads(await self.run("status", "-o", "json"))["versions"]
        return {row["version"]: -1 if row["silent"] else row["sessions"] for row in rows}


@asynccontextmanager
async def shopping(groups: Mapping[str, Iterable[Customer]]) -> AsyncIterator[None]:
    """Meanwhile customers buy. No purchase fails or is lost, and all answers are of the version of the session."""
    served: Counter[tuple[str, str]] = Counter()
    closes = asyncio.Event()

    async def visit(version: str, one: Customer) -> None:
        while not closes.is_set():
            served[version, VERSION_OF[await one.buys()]] += 1
            await asyncio.sleep(0.4)

    async with asyncio.TaskGroup() as tasks:
        visits = [tasks.create_task(visit(version, one)) for version, group in groups.items() for one in group]
        yield
        before = served.total()
        await until(lambda: served.total() > before + len(visits), 60, "customers go on buying")
        closes.set()
    assert set(served) == {(version, version) for version in groups}, served


async def answered_by(version: str, customers: Iterable[Customer]) -> None:
    """Wait until a version answers customers; their carts have everything."""
    for one in customers:

        async def found(one: Customer = one) -> bool:
            status, member, _ = await one.asks()
            return status == 200 and VERSION_OF[member] == version

        await until(found, 60, f"{version} answers")
        assert VERSION_OF[await one.buys()] == version
        assert one.version == version


@asynccontextmanager
async def open_shop(directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shop]:
    """A pool of the two members of v1; those of v2 are planned, and do not run."""
    made, late = local_pool.programs, []

    def first(*plan: object) -> list[Program]:
        every = made(*plan)
        late.extend(one for one in every if one.name.partition("/")[0] in V2)
        return [one for one in every if one not in late]

    monkeypatch.setattr(local_pool, "programs", first)
    spec = parse_spec(f"{BASE}versions: {{new_sessions: v1, unmarked: v1}}", where="test")
    versions = tuple(VERSION_OF.values())
    async with (
        LocalPool(LocalSettings(directory, spec, members=4, app_versions=versions)) as pool,
        EtcdClient(pool.etcd_endpoints) as etcd,
        AsyncExitStack() as guests,
        killed_at_the_end(pool),
    ):
        yield Shop(pool, etcd, guests, late)


async def test_sessions_stay_on_their_version_until_they_end_or_its_last_member_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_shop(tmp_path, monkeypatch) as shop:
        await shop.shared_by(*V1)
        old = await shop.customers_of("v1")
        new = await the_new_version_joins_and_takes_new_sessions(shop, old)
        await a_member_of_the_old_version_dies(shop, old, new)
        await the_last_member_of_the_old_version_dies(shop, old, new)
        await sessions_end_and_their_version_goes(shop, [*old, *new])


async def the_new_version_joins_and_takes_new_sessions(shop: Shop, old: list[Customer]) -> list[Customer]:
    async with shopping({"v1": old}):
        await shop.new_members_join()
        await shop.shared_by(*V1, *V2)
        assert {await shop.begins_on() for _ in range(5)} == {"v1"}
        await shop.apply("new_sessions: v2, unmarked: v1")
        new = await shop.customers_of("v2")
    async with shopping({"v1": old, "v2": new}):
        pass
    return new


async def a_member_of_the_old_version_dies(shop: Shop, old: list[Customer], new: list[Customer]) -> None:
    async with shopping({"v1": old, "v2": new}):
        await shop.kill("cart-2")
        await shop.shared_by("cart-1", *V2)


async def the_last_member_of_the_old_version_dies(shop: Shop, old: list[Customer], new: list[Customer]) -> None:
    async with shopping({"v2": new}):
        await shop.kill("cart-1")
        await until(lambda: refused(old), 60, "Envoy refuses the sessions of v1")
        assert "no member that is UP runs version v1" in await shop.run("status")
        await shop.pool.processes.start_again(*shop.pool.member_processes("cart-1"))
        await answered_by("v1", old)

        await shop.shared_by("cart-1", *V2)
        await shop.kill("cart-1")
        await until(lambda: refused(old), 60, "Envoy refuses the sessions of v1")
        await shop.apply("new_sessions: v2, unmarked: v1, when_gone: move")
        await answered_by("v2", old)
        for member in V1:
            await shop.pool.processes.start_again(*shop.pool.member_processes(member))
        await shop.shared_by(*V1, *V2)
    async with shopping({"v2": [*old, *new]}):
        pass


async def refused(customers: Sequence[Customer]) -> bool:
    """Whether Envoy refuses all of them, because their version is gone."""
    answers = [await one.asks() for one in customers]
    return {(status, text) for status, _, text in answers} == {(503, VERSION_GONE)}


async def sessions_end_and_their_version_goes(shop: Shop, of_v2: list[Customer]) -> None:
    await shop.apply("new_sessions: v1, unmarked: v2", f"session_ttl: {SHORT_TTL}")
    of_v1 = await shop.customers_of("v1")
    async with shopping({"v1": of_v1}):
        for number, one in enumerate(of_v2):
            await one.buys()  # from now on it lives for SHORT_TTL
            if number % 2:
                await one.leaves()

        async def ended() -> bool:
            return (await shop.sessions()).get("v2") == 0

        await until(ended, 90, "no session of v2 is left", every=2)
        assert {(await one.asks())[0] for one in of_v2} == {404}
        for member in V2:
            await shop.stop(member)
        await shop.shared_by(*V1)
        await shop.apply("new_sessions: v1")
        assert {await shop.begins_on() for _ in range(5)} == {"v1"}
