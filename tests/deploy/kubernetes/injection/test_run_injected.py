"""An injected pod run for real: the container's own command and environment on a real etcd, from start to end."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.deploy.kubernetes.injection.harness import PLAIN, named, validate
from tests.deploy.kubernetes.injection.kubelet import RunningPod, environment_of
from tests.deploy.kubernetes.injection.shapes import container, pod
from tests.harness.etcd import EtcdServer
from tests.harness.sidecars import SidecarPool, sidecar_pool
from tests.harness.waiting import free_port, stays, until
from understudy.deploy.kubernetes.base.injection_settings import CLASSIC, NATIVE
from understudy.deploy.kubernetes.injection.pod import inject

Start = Callable[..., Awaitable[RunningPod]]


@pytest_asyncio.fixture
async def pool(etcd: EtcdServer, pool_name: str) -> AsyncIterator[SidecarPool]:
    async with sidecar_pool(etcd, pool_name) as pool:
        yield pool


@pytest_asyncio.fixture
async def start(pool: SidecarPool, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts pods of the pool, as made by the injector; every pod has an address of this machine's loopback."""
    running: list[RunningPod] = []

    async def one(name: str, form: str = NATIVE, **annotations: str) -> RunningPod:
        ports = {f"{kind}-port": str(free_port()) for kind in ("session", "peer", "health", "metrics", "redis")}
        told = {"pool": pool.keys.pool, **ports, **{key.replace("_", "-"): text for key, text in annotations.items()}}
        created = pod(told, containers=[container(ports=[{"containerPort": free_port()}])])
        injected = inject(created, replace(PLAIN, etcd=(pool.etcd.endpoint,), form=form)).pod
        validate(injected, "1.37")
        # What happens to a pod between its admission and its kubelet: name and uid, then a node and its zone's label.
        injected["metadata"] |= {"name": name, "uid": f"uid-of-{name}"}
        injected["metadata"]["labels"]["topology.kubernetes.io/zone"] = "zone-a"
        injected["spec"]["nodeName"] = "node-7"
        made = RunningPod(injected, f"127.0.0.{len(running) + 11}", tmp_path / f"{name}.log")
        running.append(made)
        await made.start()
        return made

    yield one
    for each in running:
        await each.kill()


async def ask(at: RunningPod, method: str, path: str, body: str | None = None) -> tuple[int, str]:
    """What the application asks its sidecar, at the place that its environment tells."""
    url = environment_of(named(at.pod, "app"), at.pod, at.ip)["UNDERSTUDY_URL"]
    async with aiohttp.ClientSession() as http, http.request(method, f"{url}{path}", data=body) as answer:
        return answer.status, await answer.text()


async def call(at: RunningPod, method: str, path: str, body: str | None = None) -> tuple[int, str]:
    return await ask(at, method, f"/v1/sessions{path}", body)


async def owned_by(pool: SidecarPool, *names: str) -> bool:
    return {owner.active for owner in (await pool.owners()).values()} == set(names)


@pytest.mark.parametrize("form", [NATIVE, CLASSIC])
async def test_an_injected_pod_joins_its_pool_and_leaves_it_in_order(
    pool: SidecarPool, start: Start, form: str
) -> None:
    first = await start("cart-6f9c-x1", form, weight="20")
    second = await start("cart-6f9c-x2", form)
    await pool.settle(("cart-6f9c-x1", "cart-6f9c-x2"))

    record: Any = await until(lambda: pool.record("cart-6f9c-x1"), 40, "the member is registered")
    assert (record.site, record.node, record.weight) == ("zone-a", "node-7", 20)
    assert record.app.startswith(f"{first.ip}:")
    assert record.peer.startswith(f"{first.ip}:")
    assert record.health.startswith(f"{first.ip}:")
    assert await first.probe("livenessProbe")
    key = pool.key_in((("cart-6f9c-x1", "cart-6f9c-x2"),), "cart-6f9c-x1")
    assert (await call(first, "PUT", f"/{key}", "kept"))[0] == 201

    ends = asyncio.create_task(first.hooks() if form == NATIVE else classic_end(first))
    await until(lambda: owned_by(pool, "cart-6f9c-x2"), 40, "the slots are handed over")
    await pool.write_table((("cart-6f9c-x2",),))  # as the leader does for a member that drains
    assert await ends == {"application": True, "sidecar": 0}

    assert (await call(second, "GET", f"/{key}"))[1] == "kept"
    if form == NATIVE:
        assert (await call(first, "GET", f"/{key}"))[1] == "kept"  # the application may still ask, until it ends
    sidecar, _ = await first.stop(native=form == NATIVE)
    assert sidecar == 0
    await until(lambda: gone(pool, "cart-6f9c-x1"), 40, "the member's record is gone")


async def classic_end(pod: RunningPod) -> dict[str, object]:
    """Both hooks at once; the sidecar's lasts until the application has ended."""
    hooks = asyncio.create_task(pod.hooks())
    asked = named(pod.pod, "app")["lifecycle"]["preStop"]["httpGet"]
    await until(lambda: pod._get(asked["port"], "/drained"), 30, "the slots are handed over")
    await stays(lambda: not hooks.done(), 1.0, "the sidecar's hook waits for the application's end")
    pod.processes[1].terminate()
    return await hooks


async def gone(pool: SidecarPool, name: str) -> bool:
    return await pool.record(name) is None


async def test_what_the_sidecar_tells_others_says_which_pod_it_is(start: Start) -> None:
    running = await start("cart-0")
    told = dict(part.split("=") for part in running.environment["OTEL_RESOURCE_ATTRIBUTES"].split(","))
    assert told == {
        "k8s.namespace.name": "shop",
        "k8s.pod.name": "cart-0",
        "k8s.pod.uid": "uid-of-cart-0",
        "k8s.node.name": "node-7",
        "k8s.container.name": "understudy",
    }
    port = next(each["containerPort"] for each in running.container["ports"] if each["name"] == "us-metrics")
    assert await running._get(port, "/metrics")


async def test_an_etcd_that_is_away_makes_no_pod_unready_and_ends_no_sidecar(
    etcd_server: EtcdServer, pool_name: str, tmp_path: Path
) -> None:
    async with sidecar_pool(etcd_server, pool_name) as pool:
        ports = {f"{kind}-port": str(free_port()) for kind in ("session", "peer", "health", "metrics", "redis")}
        created = pod({"pool": pool_name, **ports}, containers=[container(ports=[{"containerPort": free_port()}])])
        injected = inject(created, replace(PLAIN, etcd=(etcd_server.endpoint,))).pod
        injected["metadata"] |= {"name": "cart-0", "uid": "u"}
        injected["spec"]["nodeName"] = "node-7"
        running = RunningPod(injected, "127.0.0.21", tmp_path / "log")
        try:
            await running.start()
            await pool.settle(("cart-0",))
            etcd_server.pause()

            async def cut_off() -> bool:
                return json.loads((await ask(running, "GET", "/v1/status"))[1])["state"] == "ATTENTION"

            await until(cut_off, 30, "the member notices")
            assert (await call(running, "GET", "/any"))[0] == 503
            assert await running.probe("livenessProbe")
            assert await running.probe("readinessProbe")
            assert await running.probe("startupProbe")
        finally:
            etcd_server.resume()
            await running.kill()
