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
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.core.v3 import HealthCheck, HealthCheckHttpHealthCheck

from tests.harness.front import Front, running_front
from tests.harness.waiting import free_port, until
from tests.xds.server.made import cluster, endpoints, listener, routes
from tests.xds.server.test_envoy_ads import VARIANTS, backend
from understudy.xds.server import types
from understudy.xds.server.ads import StreamSettings
from understudy.xds.server.cache import ResourceCache
from understudy.xds.server.stream_config import StreamTimeouts

WARM_AFTER = 1.5
REMOVAL_LIMIT = 4.0  # longer than a cluster takes to warm
DRAINED = 3.0  # a replaced listener serves its open connections by the old routes for Envoy's drain time, here 1 s


def slow_to_warm(name: str) -> contextlib.AbstractAsyncContextManager[int]:
    """A backend whose health checks take a while: its cluster warms until the first one is answered."""
    return backend(name, healthy_after=WARM_AFTER)


def checked(name: str) -> Cluster:
    """A cluster that is warm when the first health check of its host has come back."""
    made = cluster(name)
    made.health_checks = [
        HealthCheck(
            timeout=timedelta(seconds=30),
            interval=timedelta(seconds=60),
            unhealthy_threshold=1,
            healthy_threshold=1,
            http_health_check=HealthCheckHttpHealthCheck(path="/health"),
        )
    ]
    return made


class Traffic:
    """A client that asks without a pause while something changes, and what it was answered."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.pause = 0.0
        self.answers: Counter[str] = Counter()
        self.last = ""

    async def run(self) -> None:
        async with aiohttp.ClientSession() as http:
            while True:
                async with http.get(f"http://127.0.0.1:{self.port}/") as reply:
                    self.last = f"{reply.status} {await reply.text()}"
                    self.answers[self.last] += 1
                await asyncio.sleep(self.pause)

    async def reaches(self, text: str) -> None:
        await until(lambda: self.last == text, 40, f"the answer {text!r}")


async def lead_to(cache: ResourceCache, port: int, made: Cluster, host: int, route: str = "r") -> None:
    """Have the listener at a port lead all traffic to this cluster, and have no other one."""
    name = made.name
    content: dict[str, dict[str, Any]] = {
        types.CLUSTER: {name: made},
        types.ENDPOINTS: {name: endpoints(name, host)},
        types.LISTENER: {"l": listener("l", port, route)},
        types.ROUTES: {route: routes(route, name)},
    }
    await cache.set_all(content)


@contextlib.asynccontextmanager
async def led_to_a(
    variant: str, directory: Path, host: int, linger: float = 0.0
) -> AsyncIterator[tuple[Front, Traffic]]:
    cache, port = ResourceCache(), free_port()
    await lead_to(cache, port, cluster("a"), host)
    cache.ready()
    timeouts = StreamTimeouts(removal_timeout=REMOVAL_LIMIT, removal_linger=linger, warm_timeout=30)
    settings, delta = StreamSettings(timeouts=timeouts), variant == "DELTA_GRPC"
    async with running_front(directory, cache, port=port, delta=delta, settings=settings) as front:
        await front.listens()
        traffic = Traffic(port)
        running = asyncio.create_task(traffic.run())
        try:
            await traffic.reaches("200 a")
            yield front, traffic
            assert not running.done()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("variant", VARIANTS)
async def test_rule_19_the_second_replaced_cluster_fails_no_request_either(variant: str, tmp_path: Path):
    async with (
        backend("a") as a,
        backend("b") as b,
        slow_to_warm("c") as c,
        led_to_a(variant, tmp_path, a) as world,
    ):
        front, traffic = world
        await lead_to(front.cache, front.port, cluster("b"), b)
        await traffic.reaches("200 b")
        await front.removed("a")
        traffic.pause = 0.05
        await asyncio.sleep(REMOVAL_LIMIT)  # the limit of the first removal is over
        traffic.pause = 0.0

        await lead_to(front.cache, front.port, checked("c"), c)
        await traffic.reaches("200 c")
        await front.removed("b")
    assert traffic.answers.keys() == {"200 a", "200 b", "200 c"}


@pytest.mark.parametrize("variant", VARIANTS)
async def test_rule_18_a_listener_with_a_new_route_name_fails_no_request(variant: str, tmp_path: Path):
    async with (
        backend("a") as a,
        slow_to_warm("b") as b,
        led_to_a(variant, tmp_path, a, DRAINED) as world,
    ):
        front, traffic = world
        await lead_to(front.cache, front.port, checked("b"), b, route="r2")
        await traffic.reaches("200 b")
        traffic.pause = 0.01  # a connection that still goes by the old routes would fail until Envoy closes it
        await front.removed("a")
    assert traffic.answers.keys() == {"200 a", "200 b"}
