"""Faults of the copies in a pool with ``durability: replicas``: cut off, slow, killed while they join."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.faults.clients import CLASSES
from tests.faults.history import History
from tests.faults.judged import judged_clients
from tests.faults.pool import FaultPool, fault_pool
from tests.harness.cable import Way
from tests.harness.cpu_limit import cpu_limit, unable
from tests.harness.waiting import until

COPIES = 3


@contextlib.asynccontextmanager
async def replica_pool(home) -> AsyncIterator[tuple[FaultPool, History]]:
    """A pool whose slots have all their copies, with clients at work; at the end they have them again."""
    async with fault_pool(takeover="lease", home=home, more="durability: replicas") as pool:
        await all_copies(pool)
        async with judged_clients(pool, CLASSES) as history:
            yield pool, history
            await until(pool.settled, 90, "the pool is whole again")
            await all_copies(pool)
        assert {change.losses for change in pool.sync_changes} == {0}


async def all_copies(pool: FaultPool) -> None:
    await until(lambda: pool.protected(COPIES), 90, f"every slot has {COPIES} copies in its sync set")


async def progress(history: History, writes: int = 30) -> None:
    """Wait until so many more writes of class ``replicas`` are acknowledged."""

    def done() -> int:
        return sum(op.durability == "replicas" for op in history.ops)

    goal = done() + writes
    await until(lambda: done() >= goal, 60, f"{writes} replicas writes are acknowledged")


async def counts_on(pool: FaultPool, active: str, name: str) -> bool:
    """Whether a member is in a sync set of the slots of ``active``."""
    owners = await pool.owners()
    return any(
        name in one.names and owners[slot].active == active for slot, one in (await pool.valid_sync_sets()).items()
    )


@pytest.mark.parametrize(
    "way", [pytest.param(Way.REQUESTS, id="to it", marks=pytest.mark.nightly), pytest.param(Way.ANSWERS, id="from it")]
)
async def test_a_standby_that_is_cut_off_one_way_from_its_active_is_left_out_until_it_is_back(way, tmp_path):
    async with replica_pool(tmp_path) as (pool, history):
        cable = pool.members["m2"].from_peers
        assert cable is not None
        cable.cut(way, "m1")

        async def left_out() -> bool:
            return not await counts_on(pool, "m1", "m2")

        await until(left_out, 60, "no slot of m1 counts on m2")
        await progress(history)
        cable.mend("m1")


@pytest.mark.nightly
async def test_a_standby_that_gets_little_cpu_breaks_no_promise(tmp_path):
    if reason := unable():
        pytest.skip(reason)
    async with replica_pool(tmp_path) as (pool, history):
        with cpu_limit(pool.members["m2"].pid, 0.1):
            await progress(history, 60)


@pytest.mark.nightly
async def test_a_standby_that_is_killed_again_and_again_while_it_joins_breaks_no_promise(tmp_path):
    async with replica_pool(tmp_path) as (pool, history):
        standby = pool.members["m2"]
        for delay in (0.3, 1.0, 2.0):
            standby.kill()
            standby.start()
            await asyncio.sleep(delay)  # somewhere in its start, in its copies, or in a set
        standby.kill()
        await progress(history)
        standby.start()


@pytest.mark.nightly
async def test_a_member_that_has_joined_under_load_can_serve_alone(tmp_path):
    async with replica_pool(tmp_path) as (pool, history):
        pool.members["m2"].kill()
        await progress(history)
        pool.members["m2"].start()
        await until(pool.settled, 90, "m2 is back")
        await all_copies(pool)
        for name in ("m1", "m3"):
            pool.members[name].kill()
        for name in ("m1", "m3"):
            await until(lambda name=name: pool.owns_nothing(name), 60, f"m2 takes the slots of {name}")
