"""Make before break with the real Envoy: the second change as well as the first, and clusters that warm slowly."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.core.v3 import HealthCheck, HealthCheckHttpHealthCheck

from tests.harness.envoy import Envoy, running_envoy
from tests.harness.waiting import free_port, until
from tests.xds.server.made import cluster, endpoints, listener, routes
from tests.xds.server.test_envoy_ads import VARIANTS, backend, bootstrap
from understudy.xds.server import types
from understudy.xds.server.ads import AdsServer, StreamSettings
from understudy.xds.server.cache import ResourceCache
from understudy.xds.server.stream_config import StreamTimeouts

WARM_AFTER = 1.5
REMOVAL_LIMIT = 4.0  # longer than a cluster takes to warm
DRAINED = 3.0  # a replaced listener serves its open connections by the old routes for Envoy's drain time, here 1 s


@contextlib.asynccontextmanager
async def slow_to_warm(name: str) -> AsyncIterator[int]:
    """A backend whose health checks take a while: its cluster warms until the first one is answered."""

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/health":
            await asyncio.sleep(WARM_AFTER)
        return web.Response(text=name)

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield site._server.sockets[0].getsockname()[1]
    finally:
        await runner.cleanup()


def checked(name: str) -> Cluster:
    """A cluster that is warm when the first health check of its host has come back."""
    made = cluster(name)
    made.health_checks = [
        HealthCheck(
            timeout=timedelta(seconds=5),
            interval=timedelta(seconds=60),
            unhealthy_threshold=1,
            healthy_threshold=1,
            http_health_check=HealthCheckHttpHealthCheck(path="/health"),
        )
    ]
    return made


class Traffic:
    """A client that asks without a pause, and what it was answered."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answers: Counter[str] = Counter()
        self.last = ""

    async def run(self) -> None:
        async with aiohttp.ClientSession() as http:
            while True:
                async with http.get(f"http://127.0.0.1:{self.port}/") as reply:
                    self.last = f"{reply.status} {await reply.text()}"
                    self.answers[self.last] += 1

    async def reaches(self, text: str) -> None:
        await until(lambda: self.last == text, 40, f"the answer {text!r}")


class Pool:
    """A cache with one listener at a port; each step leads all traffic to another cluster."""

    def __init__(self, port: int) -> None:
        self.cache = ResourceCache()
        self.port = port

    async def lead_to(self, made: Cluster, host: int, route: str = "r") -> None:
        name = made.name
        content: dict[str, dict[str, Any]] = {
            types.CLUSTER: {name: made},
            types.ENDPOINTS: {name: endpoints(name, host)},
            types.LISTENER: {"l": listener("l", self.port, route)},
            types.ROUTES: {route: routes(route, name)},
        }
        await self.cache.set_all(content)


@contextlib.asynccontextmanager
async def led_to_a(
    variant: str, directory: Path, host: int, linger: float = 0.0
) -> AsyncIterator[tuple[Pool, Traffic, Envoy]]:
    pool = Pool(free_port())
    await pool.lead_to(cluster("a"), host)
    pool.cache.ready()
    timeouts = StreamTimeouts(removal_timeout=REMOVAL_LIMIT, removal_linger=linger, warm_timeout=30)
    server = AdsServer(pool.cache, StreamSettings(timeouts=timeouts))
    traffic = Traffic(pool.port)
    try:
        async with running_envoy(bootstrap(await server.start("127.0.0.1:0"), variant), directory) as envoy:
            await until(lambda: listens(pool.port), 40, "Envoy listens")
            running = asyncio.create_task(traffic.run())
            try:
                await traffic.reaches("200 a")
                yield pool, traffic, envoy
                assert not running.done()
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
    finally:
        await server.stop(0.2)


async def listens(port: int) -> bool:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    return True


async def gone(envoy: Envoy, name: str) -> None:
    async def is_gone() -> bool:
        return f"{name}::" not in await envoy.clusters()

    await until(is_gone, 40, f"removal of {name}")


@pytest.mark.parametrize("variant", VARIANTS)
async def test_rule_19_the_second_replaced_cluster_fails_no_request_either(variant: str, tmp_path: Path):
    async with backend("a") as a, backend("b") as b, slow_to_warm("c") as c, led_to_a(variant, tmp_path, a) as world:
        pool, traffic, envoy = world
        await pool.lead_to(cluster("b"), b)
        await traffic.reaches("200 b")
        await gone(envoy, "a")
        await asyncio.sleep(REMOVAL_LIMIT)  # the limit of the first removal is over

        await pool.lead_to(checked("c"), c)
        await traffic.reaches("200 c")
        await gone(envoy, "b")
    assert traffic.answers.keys() == {"200 a", "200 b", "200 c"}


@pytest.mark.parametrize("variant", VARIANTS)
async def test_rule_18_a_listener_with_a_new_route_name_fails_no_request(variant: str, tmp_path: Path):
    async with backend("a") as a, slow_to_warm("b") as b, led_to_a(variant, tmp_path, a, DRAINED) as world:
        pool, traffic, envoy = world
        await pool.lead_to(checked("b"), b, route="r2")
        await traffic.reaches("200 b")
        await gone(envoy, "a")
    assert traffic.answers.keys() == {"200 a", "200 b"}
