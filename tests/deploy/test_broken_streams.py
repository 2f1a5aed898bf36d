"""A stream whose member is killed: the client opens another one and goes on where it was."""

import asyncio
import json
import sys
from pathlib import Path

import aiohttp
import grpc

from tests.deploy.counting_grpc import SERVICE
from tests.harness.local_pools import settled
from understudy.deploy.local.local_pool import LocalPool, LocalSettings
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.spec import PoolSpec

STRIKES = 6.0
"""Seconds in which a gRPC server with default settings has ended a connection that is pinged every second."""


async def test_a_broken_websocket_finds_its_state_at_the_standby(tmp_path: Path) -> None:
    app = f"{sys.executable} -m tests.deploy.counting_app"
    settings = LocalSettings(directory=tmp_path, spec=PoolSpec(pool="count"), app=app)
    async with LocalPool(settings) as pool, EtcdClient(pool.etcd_endpoints) as etcd, aiohttp.ClientSession() as http:
        await settled(pool.layout, etcd)
        url, who = f"{pool.layout.front_url}/count", {"x-session-id": "abc"}
        async with http.ws_connect(url, headers=who) as socket:
            for expected in (1, 2, 3):
                await socket.send_str("one more")
                counted = await socket.receive_json(timeout=10)
                assert counted["count"] == expected
            first = counted["member"]
            pool.processes.kill(*pool.member_processes(first))
            assert (await socket.receive(timeout=10)).type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)

        async with http.ws_connect(url, headers=who) as socket:
            await socket.send_str("one more")
            counted = await socket.receive_json(timeout=10)
            assert counted["count"] == 4
            assert counted["member"] != first


async def test_a_broken_grpc_stream_finds_its_state_at_the_standby(tmp_path: Path) -> None:
    app = f"{sys.executable} -m tests.deploy.counting_grpc"
    spec = PoolSpec(pool="count", protocol="http2")
    settings = LocalSettings(directory=tmp_path, spec=spec, app=app, app_health="grpc")
    async with LocalPool(settings) as pool, EtcdClient(pool.etcd_endpoints) as etcd:
        await settled(pool.layout, etcd)
        async with grpc.aio.insecure_channel(pool.layout.front_url.removeprefix("http://")) as channel:
            who = (("x-session-id", "abc"),)
            count = channel.stream_stream(f"/{SERVICE}/Count")
            stream = count(metadata=who, timeout=30)
            for expected in (1, 2, 3):
                await stream.write(b"one more")
                counted = json.loads(await stream.read())
                assert counted["count"] == expected
            first = counted["member"]
            ended = asyncio.ensure_future(stream.code())
            await asyncio.wait({ended}, timeout=STRIKES)
            assert not ended.done(), "a stream on which nothing is said for a while"

            pool.processes.kill(*pool.member_processes(first))
            assert await ended in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)

            # Linux closes the listener of a killed process after its connections: Envoy may send one more call there.
            repeatable = (*who, ("idempotency-key", "total"))
            total = json.loads(await channel.unary_unary(f"/{SERVICE}/Total")(b"", metadata=repeatable, timeout=30))
            assert total["count"] == 3
            assert total["member"] != first
            again = count(metadata=who, timeout=30)
            await again.write(b"one more")
            assert json.loads(await again.read()) == {"member": total["member"], "count": 4}
            again.cancel()
