"""A pod of a Deployment replaced by a new one behind a real Envoy: no request fails, and nothing is lost."""

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest_asyncio

from tests.deploy.kubernetes.injection.harness import PLAIN
from tests.deploy.kubernetes.injection.kubelet import RunningPod
from tests.deploy.kubernetes.injection.shapes import container, pod
from tests.harness.etcd import EtcdServer
from tests.harness.forkserver import forked
from tests.harness.places import ROOT
from tests.harness.sidecars import SidecarPool, sidecar_pool
from tests.harness.waiting import free_port, until
from understudy.deploy.kubernetes.injection.pod import inject
from understudy.deploy.load.http_load import Load
from understudy.deploy.local.programs import EXAMPLE_APP

SPEC = "slots: 24\nretries: {hedge_ms: 0}\nliveness: {missed_beats: 30}"
"""No request goes to a second member because the first one stands still for a moment."""


@dataclass
class Cluster:
    """A control server, a front Envoy and pods, as processes of this machine."""

    pool: SidecarPool
    home: Path
    front: str
    pods: dict[str, RunningPod]

    async def create(self, name: str) -> None:
        """What happens to a pod of the Deployment: admission, a node, a kubelet."""
        ports = {f"{kind}-port": str(free_port()) for kind in ("session", "peer", "health", "metrics", "redis")}
        asked = pod(
            {"pool": self.pool.keys.pool, **ports}, containers=[container(ports=[{"containerPort": free_port()}])]
        )
        injected = inject(asked, replace(PLAIN, etcd=(self.pool.etcd.endpoint,))).pod
        injected["metadata"] |= {"name": name, "uid": name}
        injected["spec"]["nodeName"] = "node-7"
        running = RunningPod(injected, f"127.0.0.{len(self.pods) + 41}", self.home / f"{name}.log", EXAMPLE_APP)
        self.pods[name] = running
        await running.start()

    async def delete(self, name: str) -> None:
        """The end of a pod as its kubelet brings it."""
        assert await self.pods[name].hooks() == {"application": True, "sidecar": 0}
        await self.pods[name].stop()

    async def serves(self, *names: str) -> bool:
        """Whether these pods own all slots, each of them some, and stably."""
        owners = (await self.pool.owners()).values()
        return len(owners) == self.pool.spec.slots and {owner.active for owner in owners} == set(names)


@pytest_asyncio.fixture
async def cluster(etcd: EtcdServer, pool_name: str, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with sidecar_pool(etcd, pool_name, SPEC) as pool:
        grpc, http, front, admin = (f"127.0.0.1:{free_port()}" for _ in range(4))
        control = ("control", "--name", "control-1", "--grpc", grpc, "--http", http, "--etcd", etcd.endpoint)
        envoy = ("envoy", "--node", "front-1", "--control", grpc, "--listen", front, "--admin", admin, "--drain", "0")
        processes = []
        made = Cluster(pool, tmp_path, front, {})
        try:
            for command in (control, envoy):
                line = [sys.executable, "-m", "understudy.deploy.cli", *command, "--pool", pool_name]
                with (tmp_path / f"{command[0]}.log").open("wb") as log:
                    processes.append(await asyncio.create_subprocess_exec(*forked(line), cwd=ROOT, stderr=log))
            yield made
        finally:
            for running in made.pods.values():
                await running.kill()
            for process in processes:
                process.terminate()
                await process.wait()


async def test_a_rollout_under_load_fails_no_request_and_loses_no_write(cluster: Cluster) -> None:
    await asyncio.gather(*(cluster.create(f"cart-old-{number}") for number in range(2)))
    await until(lambda: cluster.serves("cart-old-0", "cart-old-1"), 60, "the old pods serve")
    load = Load(f"http://{cluster.front}", sessions=40, rate=80)

    async def shop_opens() -> bool:
        async with cluster.pool.http.get(f"http://{cluster.front}/cart", headers={"X-Session-Id": "none"}) as answer:
            return answer.status < 500

    await until(shop_opens, 60, "the front Envoy has its routes")
    try:
        await load.open_sessions()
        load.start()
        await cluster.create("cart-new-0")
        await until(lambda: cluster.serves("cart-old-0", "cart-old-1", "cart-new-0"), 60, "the new pod serves as well")
        await cluster.delete("cart-old-0")
        assert await cluster.serves("cart-old-1", "cart-new-0")
        await load.stop()
        final = await load.final_contents()
    finally:
        await load.close()
    failed = [op for op in load.history if not op.succeeded]
    assert failed == []
    # Nor was any answer had only by asking a second member: the application served until nobody came any more.
    assert [op for op in load.history if op.attempts > 1] == []
    for shopper in load.shoppers:
        wrote = {op.wrote for op in load.history if op.session == shopper.key and op.wrote}
        content = final[shopper.key]
        assert content is not None
        assert set(content) == wrote
    assert len(load.history) > 100
