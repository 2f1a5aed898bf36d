"""An Istio gateway on a whole real pool: what the rendered resources make of it, when things die, and without them."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tests.deploy.kubernetes.istio.meshlike import GATEWAY, Istiod, envoy_filters, running_proxy
from tests.harness.envoy import Envoy
from tests.harness.local_pools import killed_at_the_end
from tests.harness.waiting import free_port, until
from understudy.deploy.inspect.converged import not_converged
from understudy.deploy.inspect.envoys import read_envoys
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.kubernetes.istio.plan import MeshPlan
from understudy.deploy.kubernetes.istio.tree import PREPARE, ROUTE
from understudy.deploy.load.history_checker import MemberKill, check_history
from understudy.deploy.load.http_load import Load
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Liveness, Mesh, Retries
from understudy.xds.envoy.routes import ORDER_HEADER

SPEC = PoolSpec(pool="cart", mesh=Mesh(host="cart-slots.cart.svc.cluster.local"), liveness=Liveness(missed_beats=30))


@dataclass
class Scene:
    """A pool, and a gateway's proxy before it that routes by slots if :meth:`slots` says so."""

    pool: LocalPool
    etcd: EtcdClient
    istiod: Istiod
    plan: MeshPlan
    envoy: Envoy
    http: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return f"http://{self.istiod.address}:{self.istiod.listen}"

    async def slots(self, *, on: bool) -> None:
        """Apply or delete the second directory, and wait until the proxy has heard of it."""
        self.istiod.filters = [
            f for folder in (PREPARE, *([ROUTE] if on else [])) for f in envoy_filters(self.plan, folder)
        ]
        await self.istiod.push()
        await self.istiod.cache.acknowledged()
        await until(lambda: self.by_slots(on), 40, "the listener has its routes")

    async def by_slots(self, on: bool) -> bool:
        async with self.http.get(f"{self.envoy.admin}/config_dump?resource=dynamic_active_clusters") as dump:
            patched = "override_host" in await dump.text()
        told = {await self.told_attempts() for _ in range(5)}
        return patched is on and told == {on}

    async def told_attempts(self) -> bool:
        """Whether our routes answered: they tell how often a request was sent."""
        async with self.http.get(f"{self.url}/healthz") as answer:
            return "x-envoy-attempt-count" in answer.headers

    async def served_by(self, key: str = "", **headers: str) -> str:
        """Which member answers a request; with a session key in the header or, with an odd number in it, a cookie."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if key:
            sent |= {"cookie": f"sid={key}"} if key[-1] in "13579" else {"x-session-id": key}
        async with self.http.get(f"{self.url}/healthz", headers=sent) as answer:
            assert answer.status == 200
            return answer.headers["X-Served-By"]

    async def owners(self) -> dict[int, str]:
        state = (await read_pool(self.etcd, "cart"))[0]
        return {slot: at.record.active for slot, at in state.owners.items()}

    async def settled(self, *absent: str) -> None:
        """Wait until every slot is owned as the table wants it, in fair shares, by all members but ``absent``."""
        names = [place.name for place in self.pool.layout.members if place.name not in absent]

        async def at_rest() -> bool:
            return not not_converged((await read_pool(self.etcd, "cart"))[0], names)

        await until(at_rest, 120, f"{', '.join(names)} own all slots")

    async def misrouted(self, keys: int = 150) -> list[str]:
        """Keys that another member answers than the one that owns their slot."""
        owners = await self.owners()
        names = [f"key-{number}" for number in range(keys)]
        served: list[str] = []
        for first in range(0, keys, 10):
            served += await asyncio.gather(*map(self.served_by, names[first : first + 10]))
        return [key for key, by in zip(names, served, strict=True) if by != owners[slot_of(key, SPEC.slots)]]

    async def routed(self) -> bool:
        """Whether the routes have followed the owners."""
        return not await self.misrouted()


@asynccontextmanager
async def gateway(directory: Path, spec: PoolSpec = SPEC) -> AsyncIterator[Scene]:
    settings = LocalSettings(directory=directory / "pool", spec=spec, members=3)
    async with (
        LocalPool(settings) as pool,
        EtcdClient(pool.etcd_endpoints) as etcd,
        aiohttp.ClientSession() as http,
        killed_at_the_end(pool),
    ):
        plan = MeshPlan(spec, "gateway", (1, 29), listener_port=free_port(), xds_tls="none")
        pods = [place.app for place in pool.layout.members]
        istiod = Istiod(GATEWAY, plan.mesh, plan.proxy_port, pods, envoy_filters(plan, PREPARE))
        controls = [place.grpc for place in pool.layout.controls]
        async with running_proxy(istiod, directory / "gateway", controls) as envoy:
            scene = Scene(pool, etcd, istiod, plan, envoy, http)
            await scene.settled()
            yield scene


@pytest.mark.nightly
async def test_slots_are_switched_on_and_off_by_one_directory(tmp_path: Path) -> None:
    # No request goes to a second member because the first one stands still for a moment.
    async with gateway(tmp_path, SPEC.model_copy(update={"retries": Retries(hedge_ms=10_000)})) as scene:
        await until(lambda: scene.by_slots(on=False), 40, "the gateway serves")
        assert len({await scene.served_by("key-2") for _ in range(20)}) > 1

        await scene.slots(on=True)
        await until(scene.routed, 40, "every request goes to the owner of its slot")
        assert {await scene.served_by() for _ in range(60)} == {"cart-1", "cart-2", "cart-3"}

        async def synced() -> bool:
            envoys = await read_envoys({place.name: place.http for place in scene.pool.layout.controls}, "cart")
            states = {node["node"].partition("~")[0]: node["types"] for node in envoys["nodes"]}
            return [(one["type"], one["state"]) for one in states["router"]] == [("RDS", "SYNCED")]

        await until(synced, 40, "the gateway has its routes from us, and nothing else")

        addresses = {place.name: place.app for place in scene.pool.layout.members}
        owner = await scene.served_by("key-2")
        wanted = next(app for name, app in addresses.items() if name != owner)
        spoofed = {ORDER_HEADER: wanted}
        assert {await scene.served_by("key-2", **spoofed) for _ in range(10)} == {owner}
        assert len({await scene.served_by(**spoofed) for _ in range(40)}) == 3

        wish = {"x-envoy-retry-on": "retriable-status-codes", "x-envoy-retriable-status-codes": "404"}
        async with scene.http.post(f"{scene.url}/nowhere", headers=wish) as answer:
            assert (answer.status, answer.headers["x-envoy-attempt-count"]) == (404, "1")

        os.kill(scene.pool.processes["control-1"].pid, signal.SIGSTOP)
        try:
            assert await scene.misrouted() == []
        finally:
            os.kill(scene.pool.processes["control-1"].pid, signal.SIGCONT)

        await scene.slots(on=False)
        assert len({await scene.served_by("key-2") for _ in range(20)}) > 1


async def test_nobody_notices_that_a_member_is_killed(tmp_path: Path) -> None:
    async with gateway(tmp_path) as scene:
        await scene.slots(on=True)
        load = Load(scene.url, sessions=60, rate=45.0)
        try:
            await load.open_sessions()
            load.start()
            await progress(load)
            killed_at = load.clock()
            for name in scene.pool.member_processes("cart-1"):
                scene.pool.processes.kill(name)
            await scene.settled("cart-1")
            await until(lambda: without_detours(scene), 40, "no request goes to the dead member first")
            await until(scene.routed, 40, "every request goes to the owner of its slot")
            await progress(load)
            await load.stop()
            result = check_history(load.history, await load.final_contents(), MemberKill("cart-1", killed_at))
        finally:
            await load.close()

    assert result.failures == ()
    assert result.flawless
    assert result.sessions_touched > 0


async def without_detours(scene: Scene) -> bool:
    async def attempts(key: str) -> str:
        async with scene.http.get(f"{scene.url}/healthz", headers={"x-session-id": key}) as answer:
            return answer.headers["x-envoy-attempt-count"]

    return set(await asyncio.gather(*(attempts(f"key-{number}") for number in range(60)))) == {"1"}


async def progress(load: Load, requests: int = 60) -> None:
    goal = sum(op.succeeded for op in load.history) + requests
    await until(lambda: sum(op.succeeded for op in load.history) >= goal, 40, "requests are answered")
