"""Copies that are made anew under load: nothing acknowledged is lost, whoever dies meanwhile."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiohttp
import pytest

from tests.faults.pool import FaultPool
from tests.harness.waiting import until
from tests.replicas.load import under_load
from tests.replicas.pool import in_all_sets, kill_at_once, replica_pool, served_by, started_again
from tests.replicas.test_replicas import assert_kept


class Repairs:
    """How many copies were made anew, by member, and what the others answered."""

    def __init__(self) -> None:
        self.made: dict[str, int] = {}
        self.refused: set[str] = set()

    async def go_on(self, *members: str, copies: int = 20) -> None:
        """Wait until each of these members has made so many more copies anew."""
        goals = {member: self.made.get(member, 0) + copies for member in members}
        await until(
            lambda: all(self.made.get(member, 0) >= goal for member, goal in goals.items()),
            60,
            f"{members} make {copies} copies anew",
        )


@asynccontextmanager
async def repairing(pool: FaultPool, members: Sequence[str]) -> AsyncIterator[Repairs]:
    """Have members make all their copies anew, slot by slot, again and again."""
    repairs = Repairs()
    peers = {member: (await pool.record(member)).peer for member in members}

    async def repair(member: str) -> None:
        while True:
            for slot in range(pool.spec.slots):
                url = f"http://{peers[member]}/peer/v1/slots/{slot}/resync"
                with contextlib.suppress(aiohttp.ClientError):  # it is dead
                    async with pool.http.post(url) as answer:
                        if answer.status == 200:
                            repairs.made[member] = repairs.made.get(member, 0) + 1
                        else:
                            repairs.refused.add((await answer.json())["detail"])
                await asyncio.sleep(0.01)

    tasks = [asyncio.create_task(repair(member)) for member in members]
    try:
        yield repairs
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.nightly
async def test_nothing_is_lost_while_all_copies_are_made_anew_again_and_again(tmp_path):
    async with replica_pool(tmp_path) as pool:
        async with under_load(pool) as load:
            async with repairing(pool, pool.names) as repairs:
                await repairs.go_on(*pool.names)
                await load.progress()
            await in_all_sets(pool)
            await load.progress(durability="replicas")
        await assert_kept(pool, load)
        assert set((await pool.losses()).values()) == {0}
        assert load.failures == []


async def test_nothing_is_lost_when_an_active_is_killed_whose_copies_are_made_anew(tmp_path):
    async with replica_pool(tmp_path) as pool:
        async with under_load(pool, via=("m1", "m3")) as load:
            async with repairing(pool, ("m1", "m3")) as repairs:
                await repairs.go_on("m1", "m3")
                kill_at_once(pool, ["m2"])
                await served_by(pool, {"m1", "m3"})
                await load.progress()
            await started_again(pool, "m2")
            await in_all_sets(pool)
        await assert_kept(pool, load)
        assert set((await pool.losses()).values()) == {0}
