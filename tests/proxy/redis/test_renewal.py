"""Sessions that are renewed with every request: what it costs, and what a crash takes back."""

import asyncio

from tests.harness.redis_client import redis_client
from tests.harness.sidecars import SidecarPool, sidecar_pool
from tests.harness.waiting import until

ORDERS = (("a", "b"), ("b", "a"))
LIFETIME = 1000
SLOW = 20
"""Seconds that a loaded machine may take between two commands here."""


async def committed(pool: SidecarPool, member: str) -> int:
    async with pool.http.get(f"http://{pool.members[member].peer}/peer/v1/status") as answer:
        return int((await answer.json())["committed_writes"])


async def test_a_renewal_is_committed_when_a_tenth_of_the_lifetime_is_at_stake_and_no_sooner(etcd, pool_name):
    async with sidecar_pool(etcd, pool_name) as pool:
        await pool.start("a", "b")
        await pool.settle(*ORDERS)
        await pool.await_copies("a", "b")
        key = pool.key_in(ORDERS, "a")
        async with redis_client(pool.members["a"].redis) as client, redis_client(pool.members["b"].redis) as other:
            await client("SET", key, "v", "EX", LIFETIME)
            before = await committed(pool, "a")
            for extra in range(95):
                assert await client("EXPIRE", key, LIFETIME + extra) == 1
                assert LIFETIME + extra - SLOW <= await client("TTL", key) <= LIFETIME + extra
            assert await other("EXPIRE", key, LIFETIME + 96) == 1, "also where it is forwarded"
            assert await client("GETEX", key, "EX", LIFETIME + 97) == b"v"
            assert await committed(pool, "a") == before, "no commit below a tenth"
            assert await client("EXPIRE", key, LIFETIME + 150) == 1
            assert await committed(pool, "a") == before + 1
            assert await client("EXPIRE", key, LIFETIME // 2) == 1
            assert await committed(pool, "a") == before + 2, "a shorter life is committed at once"
            assert await client("SET", key, "v", "EX", LIFETIME // 2) == b"OK"
            assert await committed(pool, "a") == before + 3, "a value is always committed"

            await client("EXPIRE", key, LIFETIME // 2 + 49)
            await client("APPEND", key, "w")
            assert await client("TTL", key) >= LIFETIME // 2 + 49 - SLOW, "the next write contains the renewal"
            await client("SET", key, "v", "EX", LIFETIME)
            await client("EXPIRE", key, LIFETIME + 99)
            pool.kill("a")
            assert await other("GET", key) == b"v"
            left = await other("TTL", key)
            assert isinstance(left, int)
            assert LIFETIME * 0.9 <= left <= LIFETIME + 99, "a crash costs a tenth at the most"


async def test_reads_over_http_tell_the_lifetime_and_renew_it_when_asked(etcd, pool_name):
    async with sidecar_pool(etcd, pool_name, "slots: 16\nsession_ttl: 500") as pool:
        await pool.start("a", "b")
        await pool.settle(*ORDERS)
        key = pool.key_in(ORDERS, "a")
        await pool.call("a", "PUT", f"/{key}", b"v", Understudy_TTL="100")

        async def lifetime(member: str, **headers: str) -> int:
            status, answered, _ = await pool.call(member, "GET", f"/{key}", **headers)
            assert status == 200
            return int(answered["understudy-expires-in"])

        assert 90 <= await lifetime("a") <= 100
        assert 90 <= await lifetime("b", Understudy_Touch="true") <= 100
        assert 490 <= await lifetime("b") <= 500
        assert await lifetime("a", Understudy_Touch="true", Understudy_TTL="900") <= 500
        assert 890 <= await lifetime("a") <= 900
        status, _, body = await pool.call("a", "GET", f"/{key}", Understudy_Touch="yes")
        assert (status, b"Understudy-Touch" in body) == (400, True)


async def test_a_renewed_session_outlives_its_first_expiry_and_an_expired_one_is_gone(etcd, pool_name):
    async with sidecar_pool(etcd, pool_name) as pool:
        await pool.start("a", "b")
        await pool.settle(("a", "b"))
        async with redis_client(pool.members["a"].redis) as client:
            await client("SET", "kept", "v", "PX", 1500)
            await client("SET", "lost", "v", "PX", 1500)
            await client("PEXPIRE", "kept", 1600)

            renewing = asyncio.create_task(_renew(client, "kept"))
            async with redis_client(pool.members["a"].redis) as reader:
                await until(lambda: _gone(reader, "lost"), 20, "the one that nobody renewed has expired")
                assert await reader("GET", "kept") == b"v"
            renewing.cancel()


async def _renew(client, key: str) -> None:
    while True:
        await client("PEXPIRE", key, 1600)
        await asyncio.sleep(0.05)


async def _gone(client, key: str) -> bool:
    return await client("EXISTS", key) == 0
