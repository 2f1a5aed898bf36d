"""A pool's requests a second at a real Envoy: what is beyond gets 429, is counted, and changes with the routes."""

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

import aiohttp

from tests.harness.waiting import until
from tests.xds.envoy.served_pool import UNHURRIED, served_pool
from understudy.statesync.pool.spec_parts import Limits

LIMITED = UNHURRIED.model_copy(update={"limits": Limits(requests_per_second=20)})
AT_ONCE = 60


async def test_requests_beyond_the_limit_get_429_and_a_new_limit_touches_no_connection(tmp_path: Path) -> None:
    async with served_pool(tmp_path, spec=LIMITED) as pool, aiohttp.ClientSession() as client:
        answers: Counter[int] = Counter()

        async def ask() -> int:
            async with client.get(f"http://127.0.0.1:{pool.port}/", headers={"x-session-id": "k"}) as answer:
                assert answer.status != 429 or answer.headers["retry-after"] == "1"
                await answer.read()
                return answer.status

        async def statuses() -> set[int]:
            found = await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
            answers.update(found)
            return set(found)

        async def refused() -> bool:
            return 429 in await statuses()

        async def all_taken() -> bool:
            return await statuses() == {200}

        await until(refused, 40, "requests come faster than the pool may have them")
        assert answers.keys() == {200, 429}
        assert await pool.front.envoy.stat("cart.http_local_rate_limit.rate_limited") == answers[429]

        closed = await pool.front.envoy.stat("http.cart.downstream_cx_destroy")
        spec = pool.view.spec.model_copy(update={"limits": Limits()})
        await pool.cache.publish(replace(pool.view, spec=spec))
        await until(all_taken, 40, "no limit any more")
        assert await pool.front.envoy.stat("http.cart.downstream_cx_destroy") == closed
