"""The sidecar process as its supervisor sees it: its exit code."""

import asyncio

import pytest

from tests.harness.etcd import EtcdServer
from tests.harness.sidecars import sidecar_pool
from tests.harness.waiting import free_port
from understudy.proxy.sessions.request_sweep import RequestSweep
from understudy.proxy.sidecar import sidecar as sidecar_module
from understudy.proxy.sidecar.sidecar import SidecarSettings, run_sidecar
from understudy.statesync.etcd.settings import EtcdSettings


async def test_a_sidecar_whose_service_failed_drains_and_exits_with_1(
    etcd: EtcdServer, pool_name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_: RequestSweep) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(RequestSweep, "run", broken)
    monkeypatch.setattr(sidecar_module, "_freeze_objects", lambda: None)
    async with sidecar_pool(etcd, pool_name) as pool, asyncio.timeout(60):
        app, api, peer = (f"127.0.0.1:{free_port()}" for _ in range(3))
        settings = SidecarSettings("cart-1", pool_name, app, api, peer, etcd=EtcdSettings((etcd.endpoint,)))
        assert await run_sidecar(settings) == 1
        assert await pool.client.get(pool.keys.member("cart-1")) is None
    assert "service request sweep failed (ValueError: a defect); this process cannot go on" in caplog.text
