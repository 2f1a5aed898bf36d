"""The real Envoy on our server, in both variants."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.harness.envoy import Envoy, running_envoy
from tests.harness.waiting import free_port, until
from tests.xds.server.made import cluster, endpoints, listener, routes
from understudy.xds.server import types
from understudy.xds.server.ads import AdsServer
from understudy.xds.server.cache import ConfigRejected, ResourceCache
from understudy.xds.server.responses import ConfigStatus

VARIANTS = ("DELTA_GRPC", "GRPC")
NODE = "front-1"


def bootstrap(xds_port: int, variant: str) -> dict[str, Any]:
    xds_address = {"socket_address": {"address": "127.0.0.1", "port_value": xds_port}}
    ads = {"ads": {}, "resource_api_version": "V3"}
    return {
        "node": {"id": NODE, "cluster": "test"},
        "dynamic_resources": {
            "ads_config": {
                "api_type": variant,
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
            },
            "cds_config": ads,
            "lds_config": ads,
        },
        "static_resources": {
            "clusters": [
                {
                    "name": "xds",
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                            "explicit_http_config": {"http2_protocol_options": {}},
                        }
                    },
                    "load_assignment": {
                        "cluster_name": "xds",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": xds_address}}]}],
                    },
                }
            ]
        },
    }


@contextlib.asynccontextmanager
async def backend(name: str) -> AsyncIterator[int]:
    async def answer(_: web.Request) -> web.Response:
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


class Front:
    """An Envoy behind our server, and the traffic that a user sends through it."""

    def __init__(self, cache: ResourceCache, server: AdsServer, xds_port: int, envoy: Envoy, port: int) -> None:
        self.cache, self.server, self.xds_port, self.envoy, self.port = cache, server, xds_port, envoy, port

    async def get(self) -> str:
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{self.port}/") as reply:
            return f"{reply.status} {await reply.text()}"

    async def answers(self, text: str) -> None:
        async def same() -> bool:
            return await self.get() == text

        await until(same, 40, f"the answer {text!r}")


async def pool_of(cache: ResourceCache, port: int, *hosts: int, down: tuple[int, ...] = ()) -> None:
    await cache.set_all(
        {
            types.CLUSTER: {"a": cluster("a")},
            types.ENDPOINTS: {"a": endpoints("a", *hosts, down=down)},
            types.LISTENER: {"l": listener("l", port, "r")},
            types.ROUTES: {"r": routes("r", "a")},
        }
    )


@contextlib.asynccontextmanager
async def front(variant: str, directory: Path, *hosts: int) -> AsyncIterator[Front]:
    cache, port = ResourceCache(), free_port()
    await pool_of(cache, port, *hosts)
    cache.ready()
    server = AdsServer(cache)
    xds_port = await server.start("127.0.0.1:0")
    try:
        async with running_envoy(bootstrap(xds_port, variant), directory) as envoy:
            made = Front(cache, server, xds_port, envoy, port)
            yield made
    finally:
        await made.server.stop(0.2)


@pytest.mark.parametrize("variant", VARIANTS)
async def test_envoy_takes_all_four_types_and_an_endpoint_change_moves_traffic(variant: str, tmp_path: Path):
    async with backend("one") as one, backend("two") as two, front(variant, tmp_path, one, two) as user:
        await user.answers("200 one")
        await user.cache.acknowledged(30)
        asked = {status.type_url: status.state for status in user.cache.status()}
        assert asked == dict.fromkeys(
            (types.CLUSTER, types.ENDPOINTS, types.LISTENER, types.ROUTES), ConfigStatus.SYNCED
        )

        await user.cache.update(types.ENDPOINTS, {"a": endpoints("a", one, two, down=(one,))})
        await user.cache.acknowledged(30)
        assert await user.get() == "200 two"


@pytest.mark.parametrize("variant", VARIANTS)
async def test_rule_06_envoy_refuses_a_listener_and_says_why_and_is_not_asked_again(variant: str, tmp_path: Path):
    async with backend("one") as one, front(variant, tmp_path, one) as user:
        await user.answers("200 one")
        await user.cache.acknowledged(30)

        nonsense = b"\x0a\x03bad" + b"\x12\x00"
        await user.cache.update(types.LISTENER, {"bad": nonsense})
        with pytest.raises(ConfigRejected, match="bad") as rejected:
            await user.cache.acknowledged(30)
        assert rejected.value.node == NODE
        assert rejected.value.type_url == types.LISTENER
        status = next(one for one in user.cache.status() if one.type_url == types.LISTENER)
        assert status.state is ConfigStatus.ERROR
        assert status.error == rejected.value.error
        assert status.acked != status.sent
        assert user.cache.counters.nacks == 1

        await user.cache.update(types.ENDPOINTS, {"a": endpoints("a", one, 1)})
        await until(lambda: state_of(user, types.ENDPOINTS) is ConfigStatus.SYNCED, 40)
        assert user.cache.counters.nacks == 1

        await user.cache.remove(types.LISTENER, "bad")
        await user.cache.acknowledged(30)
        assert await user.get() == "200 one"


def state_of(user: Front, type_url: str) -> ConfigStatus:
    return next(one.state for one in user.cache.status() if one.type_url == type_url)


@pytest.mark.parametrize("variant", VARIANTS)
async def test_rule_03_and_04_a_restarted_server_with_equal_content_sends_nothing(variant: str, tmp_path: Path):
    async with backend("one") as one, front(variant, tmp_path, one) as user:
        await user.answers("200 one")
        await user.cache.acknowledged(30)
        before = await user.envoy.stat("listener_manager.lds.update_success")
        await user.server.stop(0.2)
        assert await user.get() == "200 one"

        cache = ResourceCache()
        await pool_of(cache, user.port, one)
        cache.ready()
        user.server = AdsServer(cache)
        await user.server.start(f"127.0.0.1:{user.xds_port}")
        await until(lambda: len([s for s in cache.status() if s.state is ConfigStatus.SYNCED]) == 4, 30)
        await cache.acknowledged(30)

        assert cache.counters.pushed_resources == 0
        assert await user.envoy.stat("listener_manager.lds.update_success") == before
        assert await user.get() == "200 one"


@pytest.mark.parametrize("variant", VARIANTS)
async def test_rule_18_and_19_a_replaced_cluster_fails_no_request(variant: str, tmp_path: Path):
    async with backend("one") as one, backend("two") as two, front(variant, tmp_path, one) as user:
        await user.answers("200 one")
        await user.cache.acknowledged(30)
        answers: set[str] = set()
        stop = asyncio.Event()

        async def keep_asking() -> None:
            async with aiohttp.ClientSession() as http:
                while not stop.is_set():
                    async with http.get(f"http://127.0.0.1:{user.port}/") as reply:
                        answers.add(f"{reply.status} {await reply.text()}")

        asking = asyncio.create_task(keep_asking())
        previous = "a"
        for round_ in range(6):
            name, host = f"c{round_}", (two, one)[round_ % 2]
            await user.cache.set_all(
                {
                    types.CLUSTER: {name: cluster(name)},
                    types.ENDPOINTS: {name: endpoints(name, host)},
                    types.LISTENER: {"l": listener("l", user.port, "r")},
                    types.ROUTES: {"r": routes("r", name)},
                }
            )
            await user.cache.acknowledged(30)
            await user.answers(f"200 {('two', 'one')[round_ % 2]}")
            await until(lambda gone=previous: cluster_gone(user, gone), 40, f"removal of {previous}")
            previous = name
        stop.set()
        await asking

        assert answers == {"200 one", "200 two"}


async def cluster_gone(user: Front, name: str) -> bool:
    return f"{name}::" not in await user.envoy.clusters()
