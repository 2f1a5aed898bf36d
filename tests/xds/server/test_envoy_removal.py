"""Why clusters outlive their last route: a request that was routed before may still have to be retried in them."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.harness.front import PoolCache, running_front
from tests.harness.waiting import free_port, until
from tests.xds.server.test_envoy_ads import VARIANTS, backend
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Retries
from understudy.xds.envoy.routing_view import Endpoint, RoutingView
from understudy.xds.server.ads import StreamSettings
from understudy.xds.server.stream_config import StreamTimeouts

SPEC = PoolSpec(pool="cart", slots=2, retries=Retries(hedge_ms=10_000))
"""Nobody is asked as well because the answer takes long."""


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
    cache = PoolCache("cart")
    settings = StreamSettings(timeouts=StreamTimeouts(removal_linger=20))
    async with dying_member() as dying, backend("b") as b:
        members = {"a": Endpoint("127.0.0.1", dying.port, healthy=True), "b": Endpoint("127.0.0.1", b, healthy=True)}
        await cache.publish(RoutingView(SPEC, members, (("a", "b"), ("a", "b"))))
        cache.ready()
        async with running_front(tmp_path, cache, delta=variant == "DELTA_GRPC", settings=settings) as front:
            await front.listens()
            asked = asyncio.create_task(front.request(x_session_id="k"))
            await until(lambda: dying.held, what="the request is at the member that is going to die")

            await cache.publish(RoutingView(SPEC, members, (("b",), ("b",))))
            await cache.acknowledged(30)
            assert str(await front.request(x_session_id="k")) == "200 b"
            dying.die()

            assert str(await asked) == "200 b"
