"""Requests under way at a member of a real Envoy: in a pool of low priority what is beyond gets 503 at once."""

import asyncio
from pathlib import Path

from tests.harness.waiting import until
from tests.xds.envoy.served_pool import UNHURRIED, served_pool
from understudy.statesync.pool.spec_parts import Limits

LOW = UNHURRIED.model_copy(update={"priority": "low", "limits": Limits(concurrent_requests=3)})


async def test_requests_beyond_those_that_may_be_under_way_get_503_and_no_member_sees_them(tmp_path: Path) -> None:
    async with served_pool(tmp_path, spec=LOW) as pool:
        held = pool.requests_under_way(3, "POST", "held", x_session_id="k")
        await until(lambda: len(pool.who_saw("held")) == 3, 40, "the member has as many as it may")
        beyond = await pool.request("GET", x_session_id="k", x_request="beyond")
        assert beyond.status == 503
        assert pool.who_saw("beyond") == []
        pool.answer_now()
        assert {answer.status for answer in await asyncio.gather(*held)} == {200}
        assert (await pool.request("GET", x_session_id="k")).status == 200
