"""Two control servers on one etcd, as an operator runs them, and a real Envoy that loses the one it is on."""

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import AsyncIterator

import aiohttp
import grpc
import pytest
from aiohttp import web

from tests.harness.cable import Way, cable_to
from tests.harness.commands import ask
from tests.harness.waiting import free_port, stays, until
from tests.xds.control.control_pool import POOL, SLOTS, SPEC, Control, ControlPool, control_pool
from tests.xds.server.test_metrics import parsed
from understudy.proxy.front.envoy import EnvoyProcess, EnvoySettings
from understudy.statesync.pool.spec_parts import Retries
from understudy.xds.server import types, wire

ALL_TYPES = {types.CLUSTER, types.ENDPOINTS, types.LISTENER, types.ROUTES}
FIXED = SPEC.model_copy(update={"retries": Retries(hedge="fixed")})
"""Nothing that Envoys report of their answers changes the routes."""


class CommandControl(Control):
    """A control server started by the command line."""

    def __init__(self, pool: ControlPool, name: str, etcd: str) -> None:
        super().__init__(pool, name)
        self.etcd = etcd

    def command_line(self) -> list[str]:
        return [
            *(sys.executable, "-m", "understudy.deploy.cli", "control", "--name", self.name, "--pool", POOL),
            *("--etcd", self.etcd, "--grpc", self.grpc, "--http", self.http),
        ]

    async def serves(self, node: str) -> bool:
        """Whether an Envoy is connected here and has everything, as it is now."""
        rows = [row for row in await self.ask("/v1/xds") if row["node"] == node]
        return {row["type_url"] for row in rows} == ALL_TYPES and {row["state"] for row in rows} == {"SYNCED"}

    async def resources_sent(self) -> float:
        samples = parsed(await ask(self.http, "/metrics"))
        return sum(value for name, value in samples.items() if name[0] == "pushed_resources_total")


class Traffic:
    """Requests without a pause, each session after the other; ``answers`` counts what came back."""

    def __init__(self, listen: str) -> None:
        self.listen = listen
        self.answers: Counter[object] = Counter()
        self.sent = 0

    async def run(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as http:
            while True:
                self.sent += 1
                headers = {"x-session-id": f"session-{self.sent % 500}"}
                try:
                    async with http.get(f"http://{self.listen}/", headers=headers) as answer:
                        await answer.read()
                        self.answers[answer.status] += 1
                except (aiohttp.ClientError, TimeoutError) as error:
                    self.answers[str(error)] += 1
                await asyncio.sleep(0.002)


class Replicated:
    """A pool of three members with all slots claimed, behind a front Envoy that knows two control servers."""

    def __init__(self, pool: ControlPool, first: CommandControl, second: CommandControl, envoy: EnvoyProcess) -> None:
        self.pool, self.first, self.second, self.envoy = pool, first, second, envoy

    async def configuration(self) -> dict[str, object]:
        """What Envoy holds and how often it took something: versions of resources, counters of updates."""
        dump = await ask(str(self.envoy.admin), "/config_dump?include_eds")
        versions: dict[str, object] = {}
        for part in dump["configs"]:
            for kind in ("dynamic_active_clusters", "dynamic_listeners", "dynamic_route_configs"):
                for one in part.get(kind, ()):
                    state = one.get("active_state", one)
                    name = state.get(kind[8:-1].removeprefix("active_"), state.get("route_config", {})).get("name")
                    versions[f"{kind} {name}"] = state.get("version_info")
        stats = (await ask(str(self.envoy.admin), "/stats?format=json&filter=update_(success|rejected)$"))["stats"]
        return {**versions, **{stat["name"]: stat["value"] for stat in stats}}

    @contextlib.asynccontextmanager
    async def traffic(self) -> AsyncIterator[Traffic]:
        traffic = Traffic(self.envoy.settings.listen)
        task = asyncio.create_task(traffic.run())
        try:
            await until(lambda: traffic.answers[200] >= 200, 40, "requests flow")
            yield traffic
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def serve_application(stack: contextlib.AsyncExitStack, address: str) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=address)

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    host, port = address.split(":")
    await web.TCPSite(runner, host, int(port)).start()


@contextlib.asynccontextmanager
async def replicated(pool: ControlPool, *, etcd_of_second: str) -> AsyncIterator[Replicated]:
    async with contextlib.AsyncExitStack() as stack:
        first = CommandControl(pool, "control-1", pool.etcd.endpoint)
        second = CommandControl(pool, "control-2", etcd_of_second)
        pool.controls = {control.name: control for control in (first, second)}
        first.start()
        await first.ready()
        members = await pool.join("cart-1", "cart-2", "cart-3")
        for member in members:
            await serve_application(stack, member.record.app)
        await first.hears(*members)
        everyone = pool.members.keys()
        seen = await pool.table_with(lambda table: {order[0] for order in table.orders if order} == everyone, "a table")
        await pool.claim_all(seen)
        await until(lambda: all_served(first), 40, "every slot has its owner")
        settings = EnvoySettings(
            node_id="front-1",
            pool=POOL,
            listen=f"127.0.0.1:{free_port()}",
            xds_addresses=(first.grpc, second.grpc),
            concurrency=1,
            drain=0.0,
        )
        envoy = await stack.enter_async_context(EnvoyProcess(settings))
        await until(lambda: first.serves("front-1"), 30, "Envoy is served by the only control server there is")
        second.start()
        await second.ready()
        await second.hears(*members)
        await until(lambda: all_served(second), 40, "the second has seen it all")
        yield Replicated(pool, first, second, envoy)


async def all_served(control: Control) -> bool:
    slots = (await control.ask("/v1/status"))["slots"]
    return slots["served"] == SLOTS and slots["moving"] == 0


@pytest.fixture
async def pool(tmp_path):
    async with control_pool(tmp_path, FIXED) as running:
        yield running


async def test_the_leader_that_envoy_is_on_dies_under_traffic_and_nobody_notices(pool):
    async with replicated(pool, etcd_of_second=pool.etcd.endpoint) as world, world.traffic() as traffic:
        before = await world.configuration()
        table, owned = await pool.table(), await pool.owners()
        assert any("route" in name for name in before)
        assert await world.first.leads()
        world.first.kill()
        del pool.controls["control-1"]

        await until(lambda: world.second.serves("front-1"), 30, "Envoy is with the second one")
        await until(world.second.leads, 40, "the second one leads")
        done = traffic.answers[200]
        await until(lambda: traffic.answers[200] > done + 200, 40, "requests go on")
        assert await world.second.resources_sent() == 0
        assert await world.configuration() == before
        assert (await pool.table(), await pool.owners()) == (table, owned)
        assert traffic.answers.keys() == {200}

        pool.members["cart-1"].kill()
        await until(lambda: changed(world, before), 40, "what happens now reaches Envoy")
        assert traffic.answers.keys() == {200}


async def changed(world: Replicated, before: dict[str, object]) -> bool:
    return await world.configuration() != before


async def test_a_replica_that_is_behind_rolls_envoy_back_to_nothing_older(pool):
    async with cable_to(pool.etcd.endpoint) as cable, replicated(pool, etcd_of_second=cable.address) as world:
        old = await world.configuration()
        cable.cut(Way.ANSWERS)
        # Other routes and no other table: the one that follows a claim would change the routes again.
        await pool.apply(FIXED.model_copy(update={"retries": Retries(hedge="fixed", attempts=2)}))
        await until(lambda: changed(world, old), 40, "Envoy has the new routes from the first one")
        await until(lambda: world.first.serves("front-1"), 40)
        new = await world.configuration()
        world.first.kill()
        del pool.controls["control-1"]

        await until(lambda: connected(world.second), 30, "Envoy is with the second one")
        await stays(lambda: same(world, new), 1.5, "Envoy keeps the newer routes")
        assert await world.second.resources_sent() == 0
        cable.mend()
        await until(lambda: world.second.serves("front-1"), 30, "the second one has caught up")
        assert await same(world, new)


async def connected(control: CommandControl) -> bool:
    return any(row["node"] == "front-1" for row in await control.ask("/v1/xds"))


async def same(world: Replicated, expected: dict[str, object]) -> bool:
    return await world.configuration() == expected


async def test_a_fresh_replica_refuses_streams_until_it_has_loaded(pool):
    spec = (await pool.client.get(pool.keys.spec)).value
    await pool.client.delete(pool.keys.spec)
    control = pool.controls["control-1"] = CommandControl(pool, "control-1", pool.etcd.endpoint)
    control.start()
    await until(control.leads, 40)
    first = wire.DeltaDiscoveryRequest(node={"id": "front-1"}, type_url=types.CLUSTER).SerializeToString()
    async with grpc.aio.insecure_channel(control.grpc) as channel:
        method = channel.stream_stream(f"/{types.AGGREGATED_SERVICE}/DeltaAggregatedResources")
        early = method()
        assert await early.code() is grpc.StatusCode.UNAVAILABLE
        assert "not loaded" in await early.details()

        await pool.client.put(pool.keys.spec, spec)
        await control.ready()
        call = method()
        await call.write(first)
        assert isinstance(await asyncio.wait_for(call.read(), 30), bytes)
