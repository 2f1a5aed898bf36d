"""Why clusters outlive their last route: a request that was routed before may still have to be retried in them."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.harness.envoy import running_envoy
from tests.harness.waiting import free_port, until
from tests.xds.server.test_envoy_ads import VARIANTS, backend, bootstrap
from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.envoy.listener import listener, listener_name
from understudy.xds.envoy.resources import build
from understudy.xds.envoy.routing_view import Endpoint, RoutingView
from understudy.xds.server.ads import AdsServer, StreamSettings
from understudy.xds.server.cache import ResourceCache
from understudy.xds.server.stream_config import StreamTimeouts
from understudy.xds.server.types import LISTENER

SPEC = PoolSpec(pool="cart", slots=2)


class Dying:
    """A member that takes requests, never answers, and then resets every connection: a process killed under load."""

    def __init__(self) -> None:
        self.port = free_port()
        self.held: list[asyncio.StreamWriter] = []

    async def hold(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.held.append(writer)

    def die(self) -> None:
        while self.held:
            writer = self.held.pop()
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


@contextlib.asynccontextmanager
async def dying_member() -> AsyncIterator[Dying]:
    member = Dying()
    server = await asyncio.start_server(member.hold, "127.0.0.1", member.port)
    try:
        yield member
    finally:
        member.die()
        server.close()


@pytest.mark.parametrize("variant", VARIANTS)
async def test_a_request_is_retried_although_its_order_is_gone_from_the_routes(variant: str, tmp_path: Path) -> None:
    cache, port = ResourceCache(), free_port()
    server = AdsServer(cache, StreamSettings(timeouts=StreamTimeouts(removal_linger=20)))
    async with dying_member() as dying, backend("b") as b:
        members = {"a": Endpoint("127.0.0.1", dying.port, healthy=True), "b": Endpoint("127.0.0.1", b, healthy=True)}
        fixed = {LISTENER: {listener_name("cart"): listener("cart", "127.0.0.1", port)}}
        await cache.set_all({**build(RoutingView(SPEC, members, (("a", "b"), ("a", "b")))), **fixed})
        cache.ready()
        xds_port = await server.start("127.0.0.1:0")
        try:
            async with running_envoy(bootstrap(xds_port, variant), tmp_path), aiohttp.ClientSession() as http:
                key = {"x-session-id": "k"}

                async def ask() -> str:
                    async with http.get(f"http://127.0.0.1:{port}/", headers=key) as reply:
                        return f"{reply.status} {await reply.text()}"

                async def listening() -> bool:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    return True

                await until(listening, what="Envoy listens")
                asked = asyncio.create_task(ask())
                await until(lambda: dying.held, what="the request is at the member that is going to die")

                await cache.set_all({**build(RoutingView(SPEC, members, (("b",), ("b",)))), **fixed})
                await cache.acknowledged(30)
                assert await ask() == "200 b"
                dying.die()

                assert await asked == "200 b"
        finally:
            await server.stop(0)
