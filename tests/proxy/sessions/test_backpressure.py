"""A sidecar whose commits lag behind, on a real etcd that goes away and comes back."""

import asyncio
import time

from tests.harness.cable import cable_to
from tests.harness.sidecars import PATIENT, SidecarPool, sidecar_pool
from tests.harness.waiting import until
from understudy.proxy.sessions.service import CALL_TIMEOUT

A_ONLY = (("a",),)
BOUNDED = f"slots: 16\nlimits: {{queued_writes: 3}}\n{PATIENT}"


async def oldest_write(pool: SidecarPool) -> int:
    async with pool.http.get(f"http://{pool.members['a'].api}/v1/status") as answer:
        return int((await answer.json())["oldest_write_ms"])


async def metric(pool: SidecarPool, name: str) -> float:
    async with pool.http.get(f"http://{pool.members['a'].peer}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


async def test_while_etcd_is_away_new_sessions_are_refused_and_established_ones_wait(etcd, pool_name):
    async with sidecar_pool(etcd, pool_name) as pool, cable_to(etcd.endpoint) as cable:
        await pool.start("a", etcd=cable.address)
        await pool.settle(*A_ONLY)
        await pool.call("a", "PUT", "/old", "1")
        await pool.call("a", "PUT", "/older", "1")

        cable.cut()
        first = asyncio.create_task(_written(pool, "/old"))
        await until(lambda: _waits_longer(pool, 1050), what="a write has been waiting for more than a second")
        second = asyncio.create_task(_written(pool, "/older"))
        status, headers, body = await pool.call("a", "PUT", "/new", "1")
        cable.mend()

        assert (status, headers["retry-after"]) == (503, "1")
        assert b"overloaded" in body
        assert [await write for write in (first, second)] == [200, 200]
        assert await metric(pool, "understudy_new_sessions_refused_total") == 1
        assert (await pool.call("a", "PUT", "/new", "1"))[0] == 201


async def test_what_may_wait_is_bounded_for_established_sessions_too(etcd, pool_name):
    async with sidecar_pool(etcd, pool_name, BOUNDED) as pool, cable_to(etcd.endpoint) as cable:
        await pool.start("a", etcd=cable.address)
        await pool.settle(*A_ONLY)
        for number in range(4):
            await pool.call("a", "PUT", f"/k{number}", "1")

        cable.cut()
        waiting = [asyncio.create_task(_written(pool, f"/k{number}")) for number in range(3)]
        await until(lambda: _queued(pool, 3), what="three writes wait")
        status, _, body = await pool.call("a", "PUT", "/k3", "2")
        cable.mend()

        assert (status, b"overloaded" in body) == (503, True)
        assert [await write for write in waiting] == [200, 200, 200]
        assert (await pool.call("a", "GET", "/k3"))[2] == b"1"


async def test_while_etcd_is_away_reads_wait_for_one_look_at_it_and_ask_nothing_each(etcd, pool_name):
    async with sidecar_pool(etcd, pool_name) as pool, cable_to(etcd.endpoint) as cable:
        await pool.start("a", etcd=cable.address)
        await pool.settle(*A_ONLY)
        await pool.call("a", "PUT", "/k", "1")

        cable.cut()
        await until(lambda: _refused(pool, "/k"), what="memory may not answer any more")
        before = await etcd.handled("Txn")
        reads = [asyncio.create_task(pool.call("a", "GET", "/k")) for _ in range(200)]
        await oldest_write(pool)  # a call that is answered after they have come
        cable.mend()
        found = {(status, body if status == 200 else b"") for status, _, body in await asyncio.gather(*reads)}

        assert (200, b"1") in found
        assert found <= {(200, b"1"), (503, b"")}
        assert await etcd.handled("Txn") < before + 50


async def _written(pool: SidecarPool, path: str) -> int:
    """The status of a write; 200 also for one that etcd did not commit within the time that any call has."""
    began = time.monotonic()
    status, _, _ = await pool.call("a", "PUT", path, "2")
    return 200 if status == 503 and time.monotonic() - began >= CALL_TIMEOUT else status


async def _refused(pool: SidecarPool, path: str) -> bool:
    return (await pool.call("a", "GET", path))[0] == 503


async def _waits_longer(pool: SidecarPool, milliseconds: int) -> bool:
    return await oldest_write(pool) > milliseconds


async def _queued(pool: SidecarPool, count: int) -> bool:
    async with pool.http.get(f"http://{pool.members['a'].api}/v1/status") as answer:
        status = await answer.json()
    return status["unresolved_writes"] == count
