"""The real Envoy on our server, in both variants."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.harness.front import NODE, Front, running_front
from tests.harness.http_app import http_app
from tests.harness.waiting import free_port, until
from tests.xds.server.made import cluster, endpoints, listener, routes
from understudy.xds.server import types
from understudy.xds.server.cache import ConfigRejected, ResourceCache
from understudy.xds.server.responses import ConfigStatus

VARIANTS = ("DELTA_GRPC", "GRPC")


@contextlib.asynccontextmanager
async def backend(name: str, *, healthy_after: float = 0.0) -> AsyncIterator[int]:
    """An application that says its name; its health checks take ``healthy_after`` seconds."""

    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(healthy_after if request.path == "/health" else 0)
        return web.Response(text=name)

    async with http_app(answer) as port:
        yield port


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
    async with running_front(directory, cache, port=port, delta=variant == "DELTA_GRPC") as made:
        yield made


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
        assert str(await user.request()) == "200 two"


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
        assert str(await user.request()) == "200 one"


def state_of(user: Front, type_url: str) -> ConfigStatus:
    return next(one.state for one in user.cache.status() if one.type_url == type_url)


@pytest.mark.parametrize("variant", VARIANTS)
async def test_rule_03_and_04_a_restarted_server_with_equal_content_sends_nothing(variant: str, tmp_path: Path):
    async with backend("one") as one, front(variant, tmp_path, one) as user:
        await user.answers("200 one")
        await user.cache.acknowledged(30)
        before = await user.envoy.stat("listener_manager.lds.update_success")
        await user.stop_server()
        assert str(await user.request()) == "200 one"

        cache = ResourceCache()
        await pool_of(cache, user.port, one)
        cache.ready()
        await user.start_server(cache)
        await until(lambda: len([s for s in cache.status() if s.state is ConfigStatus.SYNCED]) == 4, 30)
        await cache.acknowledged(30)

        assert cache.counters.pushed_resources == 0
        assert await user.envoy.stat("listener_manager.lds.update_success") == before
        assert str(await user.request()) == "200 one"


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
            await user.removed(previous)
            previous = name
        stop.set()
        await asking

        assert answers == {"200 one", "200 two"}
