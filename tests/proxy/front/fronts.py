"""For Envoys under supervision: the real xDS server, and one member whose application is in this process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from tests.harness.waiting import free_port
from understudy.proxy.front.envoy import EnvoySettings
from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.envoy.listener import listener, listener_name
from understudy.xds.envoy.resources import build
from understudy.xds.envoy.routing_view import Endpoint, RoutingView
from understudy.xds.server.ads import AdsServer
from understudy.xds.server.cache import ResourceCache
from understudy.xds.server.types import LISTENER


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
    application, port = Application(), free_port()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", application.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", free_port())
    await site.start()
    member = Endpoint("127.0.0.1", int(site.name.rpartition(":")[2]))
    cache = ResourceCache()
    resources = build(RoutingView(PoolSpec(pool="cart"), {"cart-1": member}, [("cart-1",)] * 256))
    await cache.set_all({**resources, LISTENER: {listener_name("cart"): listener("cart", "127.0.0.1", port)}})
    cache.ready()
    server = AdsServer(cache)
    xds_port = await server.start("127.0.0.1:0")
    try:
        yield Control(f"127.0.0.1:{port}", f"127.0.0.1:{xds_port}", application)
    finally:
        application.go.set()
        await server.stop(0.1)
        await runner.cleanup()


async def answers(address: str, path: str = "/") -> str:
    """What a client gets at ``address``."""
    async with aiohttp.ClientSession() as http, http.get(f"http://{address}{path}") as answer:
        return await answer.text()
