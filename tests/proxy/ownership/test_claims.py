"""Claims of more slots than one transaction holds, and what is left alone until they are open."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.harness.etcd import EtcdServer
from tests.harness.sidecars import PATIENT, SidecarPool, sidecar_pool
from tests.harness.sidecars_here import sidecars_here
from tests.harness.waiting import stays, until
from understudy.proxy.ownership.claims import Claimer
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.claims import CLAIM_MOST
from understudy.statesync.pool.records import FailoverRecord

A_FIRST = (("a", "b"),)
SLOTS = 3 * CLAIM_MOST + 20


@pytest_asyncio.fixture
async def pool(etcd: EtcdServer, pool_name: str) -> AsyncIterator[SidecarPool]:
    async with sidecar_pool(etcd, pool_name, f"slots: {SLOTS}\ntakeover: lease\n{PATIENT}") as pool:
        yield pool


async def test_a_takeover_of_many_slots_waits_once_for_the_old_owners_reads(
    pool: SidecarPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []
    outwait = Claimer._outwait_readers

    async def counted(claimer: Claimer, claims):
        waits.append(len(claims))
        await outwait(claimer, claims)

    monkeypatch.setattr(Claimer, "_outwait_readers", counted)
    await pool.start("a")
    async with sidecars_here(pool, "b") as here:
        await pool.settle(*A_FIRST)
        await pool.call("a", "PUT", "/k", "kept")
        waits.clear()

        pool.kill("a")

        assert await until(lambda: _answer(pool), 40, "b answers") == (200, b"kept")
        await until(lambda: len(here["b"].owned.open_slots()) == SLOTS, 40, "all slots are served")
        assert waits == [SLOTS]
        page = await pool.client.range(prefix_range(pool.keys.failovers))
        (taken,) = [FailoverRecord.decode(kv.value) for kv in page.kvs]
        assert sorted(taken.slots) == list(range(SLOTS))


async def test_a_slot_that_was_claimed_is_not_handed_over_before_it_is_open(
    pool: SidecarPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_out = asyncio.Event()
    monkeypatch.setattr(Claimer, "_outwait_readers", lambda *_: read_out.wait())
    await pool.start("a", "c")
    async with sidecars_here(pool, "b") as here:
        await pool.settle(*A_FIRST)
        b = here["b"]

        pool.kill("a")
        caller = asyncio.create_task(_answer(pool))
        await until(lambda: b.owned.preparing, 40, "the slots are claimed")
        table = await pool.write_table((("c", "b"),))
        await until(lambda: b.pool.view().table == table, 40, "b is to hand them over")
        await stays(lambda: not b.reconciler._handing, 1.0, "no slot is handed over")
        read_out.set()

        assert await caller in {(404, b""), None}
        await pool.await_owners((("c", "b"),))
        assert await until(lambda: _answer(pool), 40, "the slots are served") == (404, b"")


async def _answer(pool: SidecarPool) -> tuple[int, bytes] | None:
    """What b says of a session: found, or not found; None while nobody serves its slot."""
    status, _, body = await pool.call("b", "GET", "/k")
    return (status, body if status == 200 else b"") if status in (200, 404) else None
