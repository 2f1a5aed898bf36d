"""For Envoys under supervision: the real xDS server, and one member whose application is in this process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from tests.harness.front import PoolCache, xds_server
from tests.harness.http_app import http_app
from tests.harness.waiting import free_port
from understudy.proxy.front.envoy import EnvoySettings
from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.envoy.routing_view import Endpoint, RoutingView


@dataclass
class Application:
    """The member: ``/wait`` answers only after ``go`` is set."""

    waiting: int = 0
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.Response:
        if request.path == "/wait":
            self.waiting += 1
            await self.go.wait()
        return web.Response(text="here")


@dataclass
class Control:
    """A control server for Envoys that listen on ``listen``; ``application`` is behind them."""

    listen: str
    xds: str
    application: Application

    def settings(self, **different: Any) -> EnvoySettings:
        chosen = {
            "node_id": "front-1",
            "pool": "cart",
            "listen": self.listen,
            "xds_addresses": [self.xds],
            "concurrency": 1,
            **different,
        }
        return EnvoySettings(**chosen)


@contextlib.asynccontextmanager
async def running_control() -> AsyncIterator[Control]:
    application, port, cache = Application(), free_port(), PoolCache("cart")
    async with http_app(application.answer) as member, xds_server(cache) as xds:
        await cache.publish(
            RoutingView(PoolSpec(pool="cart"), {"cart-1": Endpoint("127.0.0.1", member)}, [("cart-1",)] * 256)
        )
        cache.ready()
        try:
            yield Control(f"127.0.0.1:{port}", xds, application)
        finally:
            application.go.set()


async def answers(address: str, path: str = "/") -> str:
    """What a client gets at ``address``."""
    async with aiohttp.ClientSession() as http, http.get(f"http://{address}{path}") as answer:
        return await answer.text()
