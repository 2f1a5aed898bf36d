"""The console of eight pools: all tabs of a browser are live over one stream, and a caller gets only its own pools.

No pool has members: what is tested needs etcd, control servers and their records alone.
"""

import hashlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.harness.chromium import CHROMIUM, FLAGS
from tests.harness.etcd import EtcdServer, running_etcd
from tests.harness.programs import Program
from tests.harness.waiting import free_port, until
from tests.xds.control.control_pool import SPEC
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Intent

playwright = pytest.importorskip("playwright.async_api")

POOLS = [f"shop-{number}" for number in range(1, 9)]
MINE = POOLS[0]
"""The pool of tenant ``acme``."""
TOKEN = "the-long-token-of-anna"
WITHOUT_WORKERS = """delete globalThis.SharedWorker;
Object.defineProperty(document, "visibilityState", { get: () => window.seen === false ? "hidden" : "visible" });
window.show = seen => { window.seen = seen; document.dispatchEvent(new Event("visibilitychange")); };
"""
"""The test says which tabs are hidden, because a headless browser shows all of them."""

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (.ci/programs)"),
]


@dataclass
class Hall:
    """Control servers by name with the addresses of their HTTP ports, and a browser."""

    home: Path
    etcd: EtcdServer
    client: EtcdClient
    browser: Any
    http: dict[str, str] = field(default_factory=dict)
    programs: dict[str, Program] = field(default_factory=dict)

    def url(self, path: str, control: str = "control-1") -> str:
        return f"http://{self.http[control]}/console/{path}"

    async def control(self, name: str, *options: str, pools: int = len(POOLS), headers: Any = None) -> None:
        """Start a control server for all pools, and wait until it serves as many as the caller may see."""
        http = self.http[name] = f"127.0.0.1:{free_port()}"
        addresses = ("--etcd", self.etcd.endpoint, "--grpc", f"127.0.0.1:{free_port()}", "--http", http)
        command = [sys.executable, "-m", "understudy.deploy.cli", "control", "--all-pools", "--name", name, *addresses]
        program = self.programs[name] = Program(name, [*command, *options], self.home / f"{name}.log")
        program.start()

        async def serves_all() -> bool:
            async with (
                aiohttp.ClientSession(headers=headers) as http_client,
                http_client.get(f"http://{http}/v1/pools") as answer,
            ):
                return sum(row["ready"] for row in (await answer.json())["pools"]) == pools

        await until(serves_all, 60, f"{name} serves all pools (log: {program.log})")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hall(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hall]:
    home = tmp_path_factory.mktemp("hall")
    async with running_etcd() as etcd, EtcdClient(etcd.endpoints) as client, playwright.async_playwright() as started:
        for pool in POOLS:
            tenant = "acme" if pool == MINE else "beta"
            await client.put(PoolKeys(pool).spec, SPEC.model_copy(update={"pool": pool, "tenant": tenant}).encode())
        browser = await started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        made = Hall(home, etcd, client, browser)
        try:
            await made.control("control-1")
            yield made
        finally:
            for program in made.programs.values():
                program.kill()
            await browser.close()


async def live(page: Any) -> None:
    await page.locator("#live[data-mode=live]").wait_for(timeout=20_000)


async def show_a_site(hall: Hall, pool: str, tab: Any, site: str) -> None:
    """A site of the pool is taken offline, and the tab shows it."""
    await hall.client.put(PoolKeys(pool).site_intent(site), Intent(site=site, since=1.0).encode())
    await tab.locator(f"tr[data-key='{site}']").wait_for(timeout=20_000)
    await hall.client.delete(PoolKeys(pool).site_intent(site))


async def test_eight_tabs_of_eight_pools_are_live_over_one_stream(hall: Hall) -> None:
    context = await hall.browser.new_context()
    tabs = {}
    for pool in POOLS:
        tab = tabs[pool] = await context.new_page()
        await tab.goto(hall.url(f"{pool}/members"), timeout=20_000)
        await live(tab)
    for pool, tab in tabs.items():
        await show_a_site(hall, pool, tab, f"site-of-{pool}")
    for pool in POOLS[:7]:
        await tabs[pool].close()
    await show_a_site(hall, POOLS[7], tabs[POOLS[7]], "west")
    await tabs[POOLS[7]].goto(hall.url(f"{MINE}/members"))
    await live(tabs[POOLS[7]])
    await context.close()


async def test_without_shared_workers_hidden_tabs_leave_the_connections_to_others(hall: Hall) -> None:
    context = await hall.browser.new_context()
    await context.add_init_script(WITHOUT_WORKERS)
    tabs = []
    for _ in range(8):
        for shown in tabs[-1:]:
            await shown.evaluate("show(false)")
        tab = await context.new_page()
        await tab.goto(hall.url(f"{MINE}/members"), timeout=20_000)
        await live(tab)
        tabs.append(tab)
    await tabs[-1].evaluate("show(false)")
    assert await tabs[0].locator("#live").get_attribute("data-mode") == "stale", "it says that it is not live"
    await tabs[0].evaluate("show(true)")
    await live(tabs[0])
    await show_a_site(hall, MINE, tabs[0], "west")
    await context.close()


async def read_events(hall: Hall, query: str, control: str, **headers: str) -> tuple[int, list[tuple[str, Any]]]:
    """The status of a stream, and its events up to the first ping: kinds and data."""
    found: list[tuple[str, Any]] = []
    async with (
        aiohttp.ClientSession(read_bufsize=1 << 22, headers=headers) as http,
        http.get(hall.url(f"_events?{query}", control)) as answer,
    ):
        if answer.status != HTTPStatus.OK:
            return answer.status, found
        kind = ""
        async for line in answer.content:
            name, _, value = line.decode().strip().partition(": ")
            kind = value if name == "event" else kind
            if name == "data":
                found.append((kind, json.loads(value)))
            if found and found[-1][0] == "ping":
                break
    return HTTPStatus.OK, found


async def test_a_stream_has_only_the_pools_that_its_caller_may_see(hall: Hall) -> None:
    rights = hall.home / "rights.yaml"
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    rights.write_text(json.dumps([{"name": "anna", "token": f"sha256:{digest}", "tenants": {"acme": "reader"}}]))
    rights.chmod(0o600)
    anna = {"Authorization": f"Bearer {TOKEN}"}
    await hall.control("guarded", "--rights", str(rights), pools=1, headers=anna)
    other = POOLS[1]
    status, events = await read_events(hall, f"pool={MINE}&pool={other}&pool=nowhere", "guarded", **anna)
    assert status == HTTPStatus.OK
    assert [(kind, data.get("pool")) for kind, data in events] == [
        ("gone", other),
        ("gone", "nowhere"),
        ("frame", MINE),
        ("ping", None),
    ]
    assert events[0][1]["detail"] == events[1][1]["detail"].replace("nowhere", other), "as if it were not there"
    assert list(events[-1][1]["silent_seconds"]) == [MINE]
    assert await read_events(hall, f"pool={other}", "guarded", **anna) == (HTTPStatus.NOT_FOUND, [])
    assert (await read_events(hall, f"pool={MINE}", "guarded"))[0] == HTTPStatus.UNAUTHORIZED
    async with aiohttp.ClientSession(headers=anna) as http:
        async with http.get(hall.url("", "guarded")) as answer:
            page = await answer.text()
        for path in ("members", "slots.json", "audit", "review"):
            async with http.get(hall.url(f"{other}/{path}", "guarded")) as answer:
                assert answer.status == HTTPStatus.NOT_FOUND, path
        act = {"X-Understudy-Console": "act", "Origin": f"http://{hall.http['guarded']}"}
        wish = json.dumps({"act": "site offline", "target": "east", "who": "anna", "reason": "no right"})
        async with http.post(hall.url(f"{MINE}/act", "guarded"), data=wish, headers=act) as answer:
            assert (answer.status, "no right 'operator'" in await answer.text()) == (HTTPStatus.FORBIDDEN, True)
        assert await hall.client.get(PoolKeys(MINE).site_intent("east")) is None
    assert f"{SPEC.slots} of {SPEC.slots} slots have no living owner; 0 of 0 members serve." in page
    assert (f"/console/{MINE}/" in page, other in page) == (True, False)
    hall.programs["guarded"].kill()
