"""What a pool may have and do: each member enforces its share, and says clearly what it refuses."""

import asyncio
import json
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tests.harness.sidecars import PATIENT, SidecarPool, sidecar_pool
from tests.harness.waiting import until
from understudy.proxy.http.problems import problem
from understudy.proxy.redis.executor import error_of
from understudy.proxy.sessions.pool_quotas import used_up
from understudy.proxy.sessions.write_rate import WriteRate

QUOTAS = f"slots: 16\nlimits: {{sessions: 4, total_bytes: 100, writes_per_second: 40}}\n{PATIENT}"
TIMES = st.lists(st.floats(0, 0.5), max_size=60)


@given(st.integers(1, 500), st.lists(st.integers(1, 8), min_size=1, max_size=8))
def test_the_shares_of_all_members_together_are_the_limit_but_for_rounding(limit: int, owned: list[int]) -> None:
    slots = sum(owned)
    held = []
    for share in owned:
        used = 0
        while not used_up(used, share, limit=limit, of=slots):
            used += 1
        held.append(used)
    assert limit <= sum(held) < limit + len(owned)


@given(st.floats(0.1, 50), TIMES)
def test_writes_are_admitted_at_the_rate_with_one_second_saved_up(rate: float, pauses: list[float]) -> None:
    bucket, now, admitted = WriteRate(), 1000.0, 0
    for pause in pauses:
        now += pause
        admitted += bucket.take(rate, now)
    assert admitted <= rate * (now - 1000.0) + max(rate, 1.0) + 1e-6


@given(st.integers(1, 50), TIMES)
def test_writes_slower_than_the_rate_are_all_admitted(rate: int, pauses: list[float]) -> None:
    bucket, now = WriteRate(), 1000.0
    for pause in pauses:
        now += pause + 1.001 / rate
        assert bucket.take(rate, now)


def test_a_share_that_grows_is_admitted_at_the_new_rate() -> None:
    bucket = WriteRate()
    assert [bucket.take(2, 0.0) for _ in range(3)] == [True, True, False]
    assert [bucket.take(4, 0.5) for _ in range(3)] == [True, True, False]


def test_redis_clients_get_the_word_that_they_know() -> None:
    assert error_of(problem(507, "too-many-bytes", "no room")).text == "OOM too-many-bytes: no room"
    assert error_of(problem(429, "too-many-writes", "too fast")).text == "ERR too-many-writes: too fast"


async def test_a_pool_at_its_limits_refuses_and_counts_what_is_beyond_and_nothing_else(etcd, pool_name):
    async with sidecar_pool(etcd, pool_name, QUOTAS) as pool:
        await pool.start("a")
        await pool.settle(("a",))

        assert (await pool.call("a", "PUT", "/k0", "x" * 70))[0] == 201
        refused = await pool.call("a", "PUT", "/k1", "x" * 31)
        assert (refused[0], kind_of(refused)) == (507, "too-many-bytes")
        assert (await pool.call("a", "PUT", "/k0", "x" * 101))[0] == 507
        assert (await pool.call("a", "PUT", "/k1", "x" * 30))[0] == 201
        assert (await pool.call("a", "PUT", "/k0", "x" * 70))[0] == 200  # no more than before
        assert (await pool.call("a", "PUT", "/k0", "x"))[0] == 200
        for key in ("/k2", "/k3"):
            assert (await pool.call("a", "PUT", key, "1"))[0] == 201
        refused = await pool.call("a", "PUT", "/k4", "1")
        assert (refused[0], kind_of(refused)) == (507, "too-many-sessions")
        assert await over_quota(pool) == {"sessions": 1, "bytes": 2, "writes": 0}

        answers: Counter[int] = Counter()
        refusals = []

        async def too_fast() -> bool:
            done = await asyncio.gather(*(pool.call("a", "PUT", f"/k{n % 4}", "1") for n in range(80)))
            answers.update(status for status, _, _ in done)
            refusals.extend(one for one in done if one[0] == 429)
            return bool(refusals)

        async def taken_again() -> bool:
            return (await pool.call("a", "PUT", "/k0", "1"))[0] == 200

        await until(too_fast, 30, "writes come faster than the pool may have them")
        assert answers.keys() == {200, 429}
        assert (kind_of(refusals[0]), refusals[0][1]["retry-after"]) == ("too-many-writes", "1")
        assert b"limits.writes_per_second" in refusals[0][2]
        assert (await over_quota(pool))["writes"] == answers[429]
        assert (await pool.call("a", "GET", "/k0"))[0] == 200  # reads are not limited
        await until(taken_again, 30, "writes are taken again")


def kind_of(answer) -> str:
    return json.loads(answer[2])["type"].rpartition("/")[2]


async def over_quota(pool: SidecarPool) -> dict[str, int]:
    async with pool.http.get(f"http://{pool.members['a'].peer}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    prefix = 'understudy_over_quota_total{limit="'
    found = (line.removeprefix(prefix).split('"} ') for line in lines if line.startswith(prefix))
    return {limit: int(float(count)) for limit, count in found}
