"""Compressed bodies that are huge when decompressed, sent at real processes: a sidecar and a control server."""

from pathlib import Path

from tests.harness.bombs import Target, require_unharmed
from tests.harness.etcd import running_etcd
from tests.harness.sidecars import sidecar_pool
from tests.xds.control.control_pool import ControlPool


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


async def test_bombs_cost_a_sidecar_and_a_control_server_nothing(tmp_path: Path) -> None:
    async with running_etcd() as etcd, sidecar_pool(etcd, "cart") as pool:
        controls = ControlPool(etcd, pool.client, tmp_path)
        try:
            control = await controls.control()
            await control.ready()
            await pool.start("a")
            member = pool.members["a"]
            for target in (
                Target(member.sidecar.pid, port_of(member.api), "/healthz", ("/v1/sessions/k", "/v1/sessions", "/x")),
                Target(member.sidecar.pid, port_of(member.peer), "/peer/v1/probe", ("/peer/v1/take", "/x")),
                Target(control.pid, port_of(control.http), "/healthz", ("/healthz", "/v1/traces", "/x")),
            ):
                await require_unharmed(target)
        finally:
            controls.close()
