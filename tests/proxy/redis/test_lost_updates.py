"""Lost updates of Redis clients: counted or refused at the owner, whichever member the clients are connected to."""

import hashlib
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from tests.harness.redis_client import RedisClient, redis_client
from tests.harness.sidecars import PATIENT, SidecarPool, sidecar_pool
from tests.harness.waiting import until
from tests.proxy.redis.three_owners import NAMES, ORDERS, three_owners

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(etcd) -> AsyncIterator[SidecarPool]:
    async with three_owners(etcd) as sidecars:
        yield sidecars


@pytest_asyncio.fixture(loop_scope="module")
async def clients(pool) -> AsyncIterator[tuple[RedisClient, RedisClient]]:
    """Two connections, to two members."""
    async with redis_client(pool.members["a"].redis) as one, redis_client(pool.members["b"].redis) as other:
        yield one, other


async def seen_by(pool: SidecarPool, members: Sequence[str] = NAMES) -> tuple[int, int, set[str]]:
    """The lost updates that the members have counted and refused, and the digests of their keys."""
    written, refused, keys = 0, 0, set[str]()
    for name in members:
        async with pool.http.get(f"http://{pool.members[name].peer}/peer/v1/status") as answer:
            found = (await answer.json())["overwrites"]
        written, refused = written + found["written"], refused + found["refused"]
        keys |= {entry["key_sha256"] for entry in found["keys"]}
    return written, refused, keys


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:16]


@pytest.mark.parametrize("owner", NAMES)
async def test_a_write_of_a_client_that_read_an_older_value_is_counted(pool, clients, owner):
    one, other = clients
    key = pool.key_in(ORDERS, owner, number=1)
    written, _, _ = await seen_by(pool)
    await one("SET", key, "v1")
    assert await one("GET", key) == await other("GET", key) == b"v1"
    assert await other("SET", key, "v2") == b"OK"
    assert (await seen_by(pool))[0] == written, "it had read what it replaced"
    assert await one("SET", key, "v3", "EX", 100) == b"OK"
    now, _, keys = await seen_by(pool)
    assert now == written + 1
    assert digest(key) in keys
    assert await one("SET", key, "v4") == b"OK"
    assert (await seen_by(pool))[0] == written + 1, "a client knows what it has written"
    async with pool.http.get(f"http://{pool.members[owner].peer}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    assert any(line.startswith("understudy_overwrites_total") and not line.endswith(" 0.0") for line in lines)


@pytest.mark.parametrize("owner", NAMES)
async def test_what_is_no_lost_update_is_not_counted(pool, clients, owner):
    one, other = clients
    key = pool.key_in(ORDERS, owner, number=2)
    before, _, _ = await seen_by(pool)
    await one("SET", key, "v", "EX", 1000)
    await one("GET", key)
    await other("EXPIRE", key, 500)
    await other("SET", key, "v", "EX", 800)
    await one("SET", key, "w")
    await one("GET", key)
    await one("INCR", f"{{{key}}}n")
    await one("APPEND", key, "x")
    await one("SET", key, "y")
    await other("SET", key, "it has read nothing")
    await one("GET", key)
    await one("MULTI")
    await one("SET", key, "z")
    await one("EXPIRE", key, 100)
    await one("EXEC")
    await one("SET", key, "1")
    assert await one("SET", key, "2", "NX") is None
    await one("DEL", key)
    await one("SET", key, "3")
    assert (await seen_by(pool))[0] == before


@pytest.mark.parametrize("owner", NAMES)
async def test_a_deletion_and_a_creation_that_were_not_seen_count(pool, clients, owner):
    one, other = clients
    key = pool.key_in(ORDERS, owner, number=3)
    before, _, _ = await seen_by(pool)
    await one("SET", key, "v")
    await one("GET", key)
    await other("DEL", key)
    await one("SET", key, "a session comes back after its user has logged out")
    assert (await seen_by(pool))[0] == before + 1
    await one("DEL", key)
    assert await one("GET", key) is None
    await other("SET", key, "v")
    await one("SETEX", key, 100, "w")
    assert (await seen_by(pool))[0] == before + 2


async def test_a_pool_may_refuse_lost_updates(etcd, pool_name):
    async with sidecar_pool(etcd, pool_name, f"slots: 16\n{PATIENT}\nconcurrency: refuse") as pool:
        await pool.start("a", "b")
        await pool.settle(("a", "b"), ("b", "a"))
        await pool.await_copies("a", "b")
        key = pool.key_in((("a", "b"), ("b", "a")), "a")
        async with redis_client(pool.members["a"].redis) as one, redis_client(pool.members["b"].redis) as other:
            for first, second in ((one, other), (other, one)):
                await first("DEL", key)
                await first("SET", key, "v1")
                await first("GET", key)
                await second("GET", key)
                await second("SET", key, "v2")
                refusal = str(await first("SET", key, "v3"))
                assert refusal.startswith("CONFLICT overwrite: another client has changed the value")
                assert await first("GET", key) == b"v2"
                assert await first("SET", key, "v3") == b"OK", "it has read the value now"
            written, refused, _ = await seen_by(pool, ("a", "b"))
            assert (written, refused) == (0, 2)

            pool.kill("a")
            await until(lambda: _takes(other, key), 30, "the other member has taken over")
            await other("GET", key)
            async with redis_client(pool.members["b"].redis) as third:
                await third("SET", key, "v4")
            assert str(await other("SET", key, "v5")).startswith("CONFLICT")


async def _takes(client: RedisClient, key: str) -> bool:
    return await client("SET", key, "v3") == b"OK"


async def test_a_pool_may_ignore_lost_updates(etcd, pool_name):
    async with sidecar_pool(etcd, pool_name, f"slots: 16\n{PATIENT}\nconcurrency: ignore") as pool:
        await pool.start("a")
        await pool.settle(("a",))
        async with redis_client(pool.members["a"].redis) as one, redis_client(pool.members["a"].redis) as other:
            await one("SET", "k", "v1")
            await one("GET", "k")
            await other("SET", "k", "v2")
            assert await one("SET", "k", "v3") == b"OK"
        assert (await seen_by(pool, ("a",)))[:2] == (0, 0)
