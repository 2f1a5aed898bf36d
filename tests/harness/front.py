"""A real Envoy that gets its configuration from our xDS server, as tests and benchmarks run it.

The configuration is what the test puts into a cache. :class:`PoolCache` makes it from views of a pool, as a control
server does.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import grpc.aio

from tests.harness.envoy import Envoy, running_envoy
from tests.harness.waiting import free_port, until
from understudy.proxy.front.bootstrap import bootstrap
from understudy.xds.envoy.resources import build
from understudy.xds.envoy.routing_view import RoutingView
from understudy.xds.publishing.listener_groups import ListenerGroups, group_of
from understudy.xds.server.ads import ACCEPT_ALL, KEEPALIVE, AdsServer, StreamSettings
from understudy.xds.server.cache import ResourceCache

NODE = "front-1"
Service = Callable[[grpc.aio.Server], None]
"""Adds a service to a gRPC server."""


class PoolCache(ResourceCache):
    """The configuration of a pool's Envoys, each with the listener that its bootstrap asks for."""

    def __init__(self, pool: str) -> None:
        super().__init__(group_of)
        self._groups = ListenerGroups(self, pool)
        self.on_group = self._groups.set_listener

    async def publish(self, view: RoutingView) -> None:
        """Set everything as this view wants it."""
        await self._groups.leave_sites(view.spec)
        await self.set_all(build(view))
        await self._groups.apply_spec(view.spec)


@dataclass(frozen=True)
class Answer:
    """What a client of Envoy got; ``str`` of it is the status and the text."""

    status: int
    text: str
    headers: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.status} {self.text}".strip()


@dataclass(eq=False)
class Front:
    """A running Envoy, the cache of its configuration, and clients of its ``port``."""

    cache: ResourceCache
    port: int
    envoy: Envoy
    _http: aiohttp.ClientSession
    _xds: str
    _serving: contextlib.AsyncExitStack

    async def request(self, method: str = "GET", path: str = "/", *, body: bytes = b"", **headers: str) -> Answer:
        """One request on a connection of its own; ``x_session_id="k"`` is the header ``x-session-id: k``."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self._http.request(method, url, headers=named, data=body or None) as answer:
            return Answer(answer.status, await answer.text(), answer.headers)

    async def answers(self, wanted: str) -> None:
        """Wait until a request is answered with this status and text."""

        async def same() -> bool:
            return str(await self.request()) == wanted

        await until(same, 40, f"the answer {wanted!r}")

    async def listens(self) -> None:
        """Wait until Envoy accepts clients."""

        async def accepted() -> bool:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.close()
            return True

        await until(accepted, 40, "Envoy listens")

    async def removed(self, cluster: str) -> None:
        """Wait until Envoy has this cluster no more."""

        async def is_gone() -> bool:
            return f"{cluster}::" not in await self.envoy.clusters()

        await until(is_gone, 40, f"removal of {cluster}")

    async def stop_server(self) -> None:
        """Stop the xDS server."""
        await self._serving.aclose()

    async def start_server(self, cache: ResourceCache) -> None:
        """Start a new xDS server with another cache at the address of the one that was stopped."""
        self.cache = cache
        await self._serving.enter_async_context(xds_server(cache, address=self._xds))


@contextlib.asynccontextmanager
async def xds_server(
    cache: ResourceCache,
    settings: StreamSettings | None = None,
    services: Sequence[Service] = (),
    address: str = "127.0.0.1:0",
) -> AsyncIterator[str]:
    """Serve a cache, and other ``services`` at the same port, until the block ends; yields the address."""
    ads = AdsServer(cache, settings)
    server = grpc.aio.server(options=(*ACCEPT_ALL, *KEEPALIVE))
    for add in (ads.register, *services):
        add(server)
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await ads.stop(0.2)
        await server.stop(0.2)


@contextlib.asynccontextmanager
async def running_front(
    directory: Path,
    cache: ResourceCache,
    *,
    pool: str = "cart",
    port: int = 0,
    delta: bool = True,
    trace_requests: bool = False,
    settings: StreamSettings | None = None,
    services: Sequence[Service] = (),
) -> AsyncIterator[Front]:
    """Run Envoy until the block ends; entered when its admin interface answers, which may be before it has a listener.

    It is served once the ``cache`` is ready. Its bootstrap is the product's own and says that it is to accept clients
    at ``port``, or at a free one.
    """
    port = port or free_port()
    async with contextlib.AsyncExitStack() as stack:
        serving = await stack.enter_async_context(contextlib.AsyncExitStack())
        xds = await serving.enter_async_context(xds_server(cache, settings, services))
        listen = f"127.0.0.1:{port}"
        config = bootstrap(
            node_id=NODE, pool=pool, listen=listen, xds_addresses=[xds], delta=delta, trace_requests=trace_requests
        )
        envoy = await stack.enter_async_context(running_envoy(config, directory))
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        yield Front(cache, port, envoy, http, xds, serving)
