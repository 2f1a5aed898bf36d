"""What a sidecar tells about slots that are replicated between members: its status and its metrics."""

from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio

from tests.harness.etcd import EtcdServer
from tests.harness.sidecars import PATIENT, SidecarPool, sidecar_pool
from tests.harness.waiting import until
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.inspect.views import status_view
from understudy.statesync.pool.spec_reader import parse_spec

SLOTS = 4
REPLICAS = f"""
slots: {SLOTS}
copies: 2
durability: replicas
replication: {{patience_ms: 10000, checkpoint_ms: 60000}}
{PATIENT}
"""
"""A minute passes before anything is saved by itself, so what is unsaved stays so while a test looks."""
A_FIRST = (("a", "b"),)
METRICS = ("replicated_slots", "slots_with_one_copy", "unsaved_bytes", "sync_set_losses")


@pytest_asyncio.fixture
async def pool(etcd: EtcdServer, pool_name: str) -> AsyncIterator[SidecarPool]:
    async with sidecar_pool(etcd, pool_name, REPLICAS) as pool:
        yield pool


async def status(pool: SidecarPool, member: str) -> Any:
    async with pool.http.get(f"http://{pool.members[member].peer}/peer/v1/status") as answer:
        return (await answer.json())["replication"]


async def metrics(pool: SidecarPool, member: str) -> tuple[float, ...]:
    """The member's :data:`METRICS`."""
    async with pool.http.get(f"http://{pool.members[member].peer}/metrics") as answer:
        lines = (line.rpartition(" ") for line in (await answer.text()).splitlines() if not line.startswith("#"))
        found = {name: float(value) for name, _, value in lines}
    return tuple(found[f"understudy_{name}"] for name in METRICS)


async def test_a_sidecar_tells_of_its_copies_its_unsaved_writes_and_of_losses(pool: SidecarPool) -> None:
    async def seen(member: str, expected: dict[str, int]) -> None:
        async def as_expected() -> bool:
            found = await status(pool, member)
            return expected.items() <= found.items()

        await until(as_expected, 60, f"{member} says {expected}")

    await pool.start("a")
    await pool.settle(("a",))
    await seen("a", {"active": SLOTS, "one_copy": SLOTS, "copies": 0, "unsaved_bytes": 0})
    assert await metrics(pool, "a") == (SLOTS, SLOTS, 0, 0)

    await pool.start("b")
    await pool.settle(*A_FIRST)
    await seen("a", {"active": SLOTS, "one_copy": 0, "copies": 0})
    await seen("b", {"active": 0, "one_copy": 0, "copies": SLOTS})

    _, headers, _ = await pool.call("a", "PUT", "/k", "x" * 100)
    assert headers["understudy-durability"] == "replicas"
    found = await status(pool, "a")
    assert (found["unsaved_sessions"], found["unsaved_sessions_most"], found["unsaved_bytes"] >= 100) == (1, 1, True)
    assert await metrics(pool, "a") == (SLOTS, 0, found["unsaved_bytes"], 0)

    pool.kill("a")
    pool.kill("b")
    await pool.start("a")
    await pool.settle(("a",))
    await seen("a", {"active": SLOTS, "one_copy": SLOTS})
    assert await metrics(pool, "a") == (SLOTS, SLOTS, 0, SLOTS)


async def test_status_says_when_etcd_has_everything_after_a_pool_was_switched_to_sync(pool: SidecarPool) -> None:
    async def replication() -> Any:
        state, revision = await read_pool(pool.client, pool.keys.pool)
        return status_view(state, revision=revision)["replication"]

    async def all_in_memory() -> bool:
        return bool((await replication())["memory"] == SLOTS)

    async def nothing_in_memory() -> bool:
        found = await replication()
        return (found["wanted"], found["memory"], found["slots"]) == (False, 0, SLOTS)

    await pool.start("a", "b")
    await pool.settle(*A_FIRST)
    await until(all_in_memory, 60, "all slots have two copies")
    _, headers, _ = await pool.call("a", "PUT", "/k", "x")
    assert headers["understudy-durability"] == "replicas"
    slot = int(headers["understudy-slot"])
    assert await pool.client.get(pool.keys.session(slot, "k")) is None

    sync = f"pool: {pool.keys.pool}\nslots: {SLOTS}\ncopies: 2\n{PATIENT}"
    await pool.apply(parse_spec(sync, where="test"))
    await until(nothing_in_memory, 60, "no write is in memory alone")
    assert await pool.client.get(pool.keys.session(slot, "k")) is not None
