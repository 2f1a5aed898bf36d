"""Sidecars with little CPU: they serve slowly, and nobody takes a slow member for a dead one."""

import asyncio
import contextlib
import time

import aiohttp
import pytest

from tests.faults.pool import FaultPool, fault_pool
from tests.harness.cpu_limit import cpu_limit, cpu_seconds, unable
from tests.harness.lateness import lateness
from tests.harness.waiting import until

SHARE = 0.1
"""Of a core, for each sidecar."""
RATE = 60
SECONDS = 8.0


async def ask(http: aiohttp.ClientSession, pool: FaultPool, number: int, keys: dict[str, str]) -> int:
    """One request at the owner of its session; every third writes."""
    member = pool.names[number % len(pool.names)]
    url = f"http://{pool.members[member].api}/v1/sessions/{keys[member]}"
    async with http.put(url, data=b"x") if number % 9 < 3 else http.get(url) as answer:
        await answer.read()
        return answer.status


@pytest.mark.skipif(bool(unable()), reason=unable())
async def test_sidecars_on_a_tenth_of_a_core_serve_and_are_not_taken_for_dead(tmp_path):
    async with fault_pool(takeover="fast", home=tmp_path) as pool, aiohttp.ClientSession() as http:
        sidecars = [member.process.pid for member in pool.members.values()]
        keys = {name: await pool.key_at(name) for name in pool.names}
        for number in range(9):
            assert await ask(http, pool, number, keys) in (200, 201)
        before = len(pool.owner_changes)

        with contextlib.ExitStack() as limits:
            late = limits.enter_context(lateness())
            for pid in sidecars:
                limits.enter_context(cpu_limit(pid, SHARE))
            begin, used = time.monotonic(), sum(map(cpu_seconds, sidecars))
            asked = []
            for number in range(int(RATE * SECONDS)):
                await asyncio.sleep(max(begin + number / RATE - time.monotonic(), 0))
                asked.append(asyncio.create_task(ask(http, pool, number, keys)))
            statuses = await asyncio.gather(*asked)
            used = (sum(map(cpu_seconds, sidecars)) - used) / (time.monotonic() - begin)

        await until(pool.followed, 40, "the owner records are followed")
        assert pool.moves(before) == []
        assert used < SHARE * len(sidecars) * 1.2, "the limit was in force"
        if not late.busy:
            assert not pool.silence(before)
        table = await pool.table()
        assert table is not None
        assert pool.silence(before) or not table.table.lost
        if not pool.silence(before):
            assert set(statuses) == {200}
