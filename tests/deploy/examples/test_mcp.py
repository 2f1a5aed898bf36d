"""MCP servers behind a pool: drains and a crash lose no session. The official SDK is on both sides."""

import asyncio
import contextlib
import itertools
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest

from tests.harness.examples import NIGHTLY
from tests.harness.local_pools import killed_at_the_end, settled
from tests.harness.waiting import until
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Intent
from understudy.statesync.pool.spec import PoolSpec, SessionKey

mcp = pytest.importorskip("mcp", reason="the official SDK is not installed: pip install 'understudy[frameworks]'")
pytestmark = pytest.mark.heavy
T = TypeVar("T")
SESSIONS = 1000 if NIGHTLY else 300
AT_ONCE = 8
CALLS_A_SECOND = 20
NOTES = "notes"
HELLO = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "clientInfo": {"name": "test", "version": "1"},
}


class Agents:
    """Clients of many sessions. ``acknowledged`` has the texts that each session has promised to remember."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http, self._url = http, f"{url}/mcp"
        self._ids = itertools.count(1)
        self.acknowledged: dict[str, list[str]] = {}
        self.faults: Counter[str] = Counter()

    async def _post(self, method: str, params: dict[str, Any], key: str | None) -> tuple[int, str, str]:
        headers = {"Accept": "application/json, text/event-stream"} | ({"mcp-session-id": key} if key else {})
        call = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params}
        async with self._http.post(self._url, json=call, headers=headers) as answer:
            return answer.status, answer.headers.get("mcp-session-id", ""), await answer.text()

    async def open(self, _: object) -> None:
        """Open a session."""
        status, key, body = await self._post("initialize", HELLO, None)
        assert (status, bool(key)) == (200, True), body
        self.acknowledged[key] = []

    async def call(self, key: str, tool: str, **arguments: str) -> str | None:
        """The text that a tool answers; None if the call failed, which is counted."""
        status, _, body = await self._post("tools/call", {"name": tool, "arguments": arguments}, key)
        if status != 200:
            self.faults[f"{status} {body[:80]}"] += 1
            return None
        result = json.loads(body)["result"]
        assert not result.get("isError"), body
        return str(result["content"][0]["text"]) if result["content"] else ""

    async def remember(self, key: str, text: str) -> None:
        """Let a session remember a text."""
        if await self.call(key, "remember", text=text) is not None:
            self.acknowledged[key].append(text)

    async def check(self, key: str) -> None:
        """A session has every text that it has acknowledged."""
        found = await self.call(key, "recall")
        assert found is not None, self.faults
        missing = set(self.acknowledged[key]) - set(found.split("\n"))
        assert not missing, (key, missing)

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """Meanwhile one session after the other is told to remember something."""
        keys = itertools.cycle(list(self.acknowledged))
        numbers = itertools.count()

        async def work() -> None:
            while True:
                await self.remember(next(keys), f"text {next(numbers)}")
                await asyncio.sleep(AT_ONCE / CALLS_A_SECOND)

        workers = [asyncio.create_task(work()) for _ in range(AT_ONCE)]
        try:
            yield
        finally:
            for worker in workers:
                worker.cancel()
            ends = await asyncio.gather(*workers, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends


async def for_all(items: Iterable[T], do: Callable[[T], Awaitable[None]]) -> None:
    """``do`` with each item, some at once."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await do(item)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


async def owns_nothing(etcd: EtcdClient, member: str) -> None:
    """Wait until other members serve all slots."""

    async def empty() -> bool:
        state, _ = await read_pool(etcd, NOTES)
        return all(at.record.active != member for at in state.owners.values())

    await until(empty, 60, f"{member} owns no slot")


async def test_drains_and_a_crash_lose_no_session(tmp_path: Path) -> None:
    spec = PoolSpec(pool=NOTES, slots=64, session_key=(SessionKey(header="mcp-session-id"),))
    app = f"{sys.executable} -m understudy.deploy.examples.mcp_server"
    keys = PoolKeys(NOTES)
    async with (
        LocalPool(LocalSettings(tmp_path, spec, app=app, app_timeout=90)) as pool,
        EtcdClient(pool.etcd_endpoints) as etcd,
        aiohttp.ClientSession() as http,
        killed_at_the_end(pool),
    ):
        await settled(pool.layout, etcd)
        agents = Agents(http, pool.layout.front_url)
        await for_all(range(SESSIONS), agents.open)
        async with mcp.Client(f"{pool.layout.front_url}/mcp", mode="legacy") as client:
            await client.call_tool("remember", {"text": "from the SDK's client"})
            async with agents.busy():
                for place in pool.layout.members:
                    await etcd.put(keys.intent(place.name), Intent(place.name).encode())
                    await owns_nothing(etcd, place.name)
                    said = await client.call_tool("recall", {})
                    assert said.content[0].text == "from the SDK's client"
                    await etcd.delete(keys.intent(place.name))
                    await settled(pool.layout, etcd)
            assert not agents.faults
            await for_all(agents.acknowledged, agents.check)

            async with agents.busy():
                pool.processes.kill(*pool.member_processes("notes-1"))
                await owns_nothing(etcd, "notes-1")
            # Calls that were under way at the dead member fail. No session is unknown.
            assert all(fault.startswith(("502", "503", "504")) for fault in agents.faults), agents.faults
            agents.faults.clear()
            await for_all(agents.acknowledged, agents.check)
            with contextlib.suppress(Exception):
                await client.call_tool("recall", {})
            said = await client.call_tool("recall", {})
            assert said.content[0].text == "from the SDK's client"
