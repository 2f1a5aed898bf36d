"""A stream whose member is killed: the client opens another one and goes on where it was."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import grpc

from tests.deploy.counting_grpc import SERVICE
from tests.harness.local_pools import killed_at_the_end, settled
from tests.harness.waiting import until
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Intent
from understudy.statesync.pool.spec import PoolSpec

STRIKES = 6.0
"""Seconds in which a gRPC server with default settings has ended a connection that is pinged every second."""
PATIENCE = 30
"""Seconds for one message, also while slots are taken over on a busy machine."""


async def killed(pool: LocalPool, member: str) -> None:
    """Kill both processes of a member, and wait until they are gone.

    Linux closes the listener of a killed process after its connections: until then Envoy may connect to it.
    """
    names = pool.member_processes(member)
    pool.processes.kill(*names)
    await until(lambda: all(pool.processes[name].pid == 0 for name in names), what=f"{member} is gone")


@contextlib.asynccontextmanager
async def drained(pool: LocalPool, etcd: EtcdClient, member: str) -> AsyncIterator[None]:
    """Meanwhile a member is drained and owns no slot; afterwards it has slots again."""
    keys = PoolKeys("count")

    async def owns_nothing() -> bool:
        state, _ = await read_pool(etcd, "count")
        return all(at.record.active != member for at in state.owners.values())

    await etcd.put(keys.intent(member), Intent(member).encode())
    await until(owns_nothing, 60, f"{member} owns no slot")
    yield
    await etcd.delete(keys.intent(member))
    await settled(pool.layout, etcd)


async def next_event(stream: aiohttp.ClientResponse) -> tuple[int, str]:
    """The id of the next server-sent event, and the member that sent it."""
    fields = {}
    while line := (await asyncio.wait_for(stream.content.readline(), PATIENCE)).decode().strip("\n"):
        name, _, value = line.partition(": ")
        fields[name] = value
    if "data" not in fields:
        raise EOFError
    return int(fields["id"]), json.loads(fields["data"])["member"]


async def goes_on_with_events(pool: LocalPool, etcd: EtcdClient, http: aiohttp.ClientSession) -> None:
    """A client of server-sent events sees each event once, also if the member dies that sends them."""
    url, who = f"{pool.layout.front_url}/events", {"x-session-id": "events of abc"}
    seen = []
    async with http.get(url, headers=who) as stream:
        for _ in range(3):
            number, first = await next_event(stream)
            seen.append(number)
        async with drained(pool, etcd, first):
            number, still = await next_event(stream)
            seen.append(number)
            assert still == first, "a drain leaves the open stream"
        await killed(pool, first)
        with contextlib.suppress(aiohttp.ClientError, EOFError):
            while True:
                number, _ = await next_event(stream)
                seen.append(number)
    async with http.get(url, headers={**who, "Last-Event-ID": str(seen[-1])}) as stream:
        for _ in range(3):
            number, member = await next_event(stream)
            seen.append(number)
        assert member != first
    assert seen == list(range(1, len(seen) + 1))


async def test_broken_websockets_and_events_find_their_state_at_the_standby(tmp_path: Path) -> None:
    app = f"{sys.executable} -m tests.deploy.counting_app"
    settings = LocalSettings(directory=tmp_path, spec=PoolSpec(pool="count"), app=app, app_timeout=60)
    async with (
        LocalPool(settings) as pool,
        EtcdClient(pool.etcd_endpoints) as etcd,
        aiohttp.ClientSession() as http,
        killed_at_the_end(pool),
    ):
        await settled(pool.layout, etcd)
        url, who = f"{pool.layout.front_url}/count", {"x-session-id": "abc"}
        async with http.ws_connect(url, headers=who) as socket:
            for expected in (1, 2, 3):
                await socket.send_str("one more")
                counted = await socket.receive_json(timeout=PATIENCE)
                assert counted["count"] == expected
            first = counted["member"]
            async with drained(pool, etcd, first):
                await socket.send_str("one more")
                counted = await socket.receive_json(timeout=PATIENCE)
                assert (counted["count"], counted["member"]) == (4, first), "a drain leaves the open stream"
            await killed(pool, first)
            broken = (await socket.receive(timeout=PATIENCE)).type
            assert broken in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)

        async with http.ws_connect(url, headers=who) as socket:
            await socket.send_str("one more")
            counted = await socket.receive_json(timeout=PATIENCE)
            assert counted["count"] == 5
            assert counted["member"] != first
        await pool.processes.start_again(*pool.member_processes(first))
        await settled(pool.layout, etcd)
        await goes_on_with_events(pool, etcd, http)


async def test_a_broken_grpc_stream_finds_its_state_at_the_standby(tmp_path: Path) -> None:
    app = f"{sys.executable} -m tests.deploy.counting_grpc"
    spec = PoolSpec(pool="count", protocol="http2")
    settings = LocalSettings(directory=tmp_path, spec=spec, app=app, app_health="grpc", app_timeout=60)
    async with LocalPool(settings) as pool, EtcdClient(pool.etcd_endpoints) as etcd, killed_at_the_end(pool):
        await settled(pool.layout, etcd)
        async with grpc.aio.insecure_channel(pool.layout.front_url.removeprefix("http://")) as channel:
            who = (("x-session-id", "abc"),)
            count = channel.stream_stream(f"/{SERVICE}/Count")
            stream = count(metadata=who, timeout=120)
            for expected in (1, 2, 3):
                await stream.write(b"one more")
                counted = json.loads(await stream.read())
                assert counted["count"] == expected
            first = counted["member"]
            ended = asyncio.ensure_future(stream.code())
            await asyncio.wait({ended}, timeout=STRIKES)
            assert not ended.done(), "a stream on which nothing is said for a while"

            async with drained(pool, etcd, first):
                await stream.write(b"one more")
                counted = json.loads(await stream.read())
                assert (counted["count"], counted["member"]) == (4, first), "a drain leaves the open stream"
            await killed(pool, first)
            assert await ended in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)

            repeatable = (*who, ("idempotency-key", "total"))
            total = json.loads(await channel.unary_unary(f"/{SERVICE}/Total")(b"", metadata=repeatable, timeout=30))
            assert total["count"] == 4
            assert total["member"] != first
            again = count(metadata=who, timeout=30)
            await again.write(b"one more")
            counted = json.loads(await again.read())
            assert counted["count"] == 5
            assert counted["member"] != first
            again.cancel()
