"""Claims of more slots than one transaction holds, and what is left alone until they are open."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.harness.etcd import EtcdServer
from tests.harness.sidecars import SidecarPool, sidecar_pool
from tests.harness.sidecars_here import sidecars_here
from tests.harness.waiting import until
from understudy.proxy.ownership.claims import Claimer
from understudy.proxy.sidecar.parts import Sidecar
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.ownership import CLAIM_MOST
from understudy.statesync.pool.records import FailoverRecord

A_FIRST = (("a", "b"),)
SLOTS = 3 * CLAIM_MOST + 20


@pytest_asyncio.fixture
async def pool(etcd: EtcdServer, pool_name: str) -> AsyncIterator[SidecarPool]:
    async with sidecar_pool(etcd, pool_name, f"slots: {SLOTS}\ntakeover: lease") as pool:
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

        assert (await pool.call("b", "GET", "/k"))[2] == b"kept"
        await until(lambda: len(here["b"].owned.open_slots()) == SLOTS, 40, "all slots are served")
        assert waits == [SLOTS]
        page = await pool.client.range(prefix_range(pool.keys.failovers))
        (taken,) = [FailoverRecord.decode(kv.value) for kv in page.kvs]
        assert sorted(taken.slots) == list(range(SLOTS))


async def test_a_slot_that_was_claimed_is_not_handed_over_before_it_is_open(pool: SidecarPool) -> None:
    await pool.start("a", "c")
    async with sidecars_here(pool, "b") as here:
        await pool.settle(*A_FIRST)
        b, early = here["b"], set[int]()

        pool.kill("a")
        caller = asyncio.create_task(pool.call("b", "GET", "/k"))
        await until(lambda: b.owned.preparing, 40, "the slots are claimed")
        await pool.write_table((("c", "b"),))
        await until(lambda: _opened(b, early), 40, "the slots are open")

        assert early == set()
        assert (await caller)[0] == 404
        await pool.await_owners((("c", "b"),))


def _opened(sidecar: Sidecar, early: set[int]) -> bool:
    preparing = sidecar.owned.preparing
    early |= preparing & sidecar.reconciler._handing
    return not preparing
