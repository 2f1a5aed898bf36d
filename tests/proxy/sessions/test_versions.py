"""The versions of sessions, on real sidecars: who numbers the writes, and what clients and other releases see of it."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.harness.etcd import EtcdServer
from tests.harness.sidecars import SidecarPool, sidecar_pool
from tests.harness.waiting import until
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.replication.history import version_of
from understudy.statesync.sessions.request_log import decode_entries, request_hash
from understudy.statesync.sessions.session import Session

A_FIRST, B_FIRST = (("a", "b"),), (("b", "a"),)
OF_0_1_0 = b'{"epoch":1,"expires":9007199254740992,"type":"text/plain"}\nhello'
OF_0_1_0_WITH_ANSWERS = (
    b'{"epoch":1,"expires":9007199254740992,"type":"text/plain","since":3,'
    b'"answers":[["GoGkjZ8vXV5cX9cC","1f2e3d4c5b6a",201,5],["QoGkjZ8vXV5cX9cC","2f2e3d4c5b6a",200,0]]}\nhello'
)
"""Sessions as release 0.1.0 has stored them."""


@pytest_asyncio.fixture
async def pool(etcd: EtcdServer, pool_name: str) -> AsyncIterator[SidecarPool]:
    async with sidecar_pool(etcd, pool_name) as pool:
        yield pool


async def stored(pool: SidecarPool, key: str) -> Session:
    kv = await pool.client.get(pool.keys.session(slot_of(key, 16), key))
    assert kv is not None
    return Session.decode(kv.value, kv.mod_revision)


async def test_the_owner_numbers_its_writes_and_every_member_tells_the_same_version(pool: SidecarPool) -> None:
    await pool.start("a", "b")
    await pool.settle(*A_FIRST)
    other = next(f"other-{n}" for n in range(99) if slot_of(f"other-{n}", 16) == slot_of("k", 16))

    told = [(await pool.call("ab"[n % 2], "PUT", "/k", str(n)))[1]["etag"] for n in range(3)]
    assert told == ['"1.1"', '"1.2"', '"1.3"']
    assert (await pool.call("a", "PUT", f"/{other}", "x"))[1]["etag"] == '"1.4"', "numbers are of the slot"
    assert (await stored(pool, "k")).version == version_of(1, 3)
    assert (await pool.call("a", "PUT", "/k", "x", Understudy_Durability="async"))[0] == 200
    for consistency in ({}, {"Understudy_Consistency": "linearizable"}):
        assert (await pool.call("a", "GET", "/k", **consistency))[1]["etag"] == '"1.5"'

    async def copied() -> bool:
        _, headers, _ = await pool.call("b", "GET", "/k", Understudy_Consistency="stale")
        return headers["etag"] == '"1.5"'

    await until(copied, what="the copy shows the version")
    assert (await pool.call("a", "PUT", "/k", "x", If_Match='"1.3"'))[0] == 412
    assert (await pool.call("a", "DELETE", "/k", If_Match='"1.5"'))[0] == 204
    assert (await pool.call("a", "PUT", "/k", "again"))[1]["etag"] == '"1.7"'


async def test_versions_rise_over_handovers_and_takeovers(pool: SidecarPool) -> None:
    await pool.start("a", "b")
    await pool.settle(*A_FIRST)
    told = [(await pool.call("a", "PUT", "/k", "x"))[1]["etag"] for _ in range(2)]
    await pool.settle(*B_FIRST)
    assert (await pool.call("b", "GET", "/k"))[1]["etag"] == told[-1], "a change of owner changes no session"
    told += [(await pool.call("b", "PUT", "/k", "x", If_Match=told[-1]))[1]["etag"] for _ in range(1)]
    pool.kill("b")

    async def taken_over() -> tuple[int, dict[str, str], bytes] | None:
        answer = await pool.call("a", "PUT", "/k", "x", If_Match=told[-1])
        return None if answer[0] == 503 else answer

    status, headers, _ = await until(taken_over, 40, "the member that is left serves")
    assert status == 200
    assert [*told, headers["etag"]] == ['"1.1"', '"1.2"', '"2.1"', f'"{headers["understudy-epoch"]}.1"']
    assert int(headers["understudy-epoch"]) > 2


async def test_an_outcome_is_kept_with_the_version_that_it_has_made(pool: SidecarPool) -> None:
    await pool.start("a", "b")
    await pool.settle(*A_FIRST)
    first = await pool.call("a", "PUT", "/k", "x", Idempotency_Key="once")
    await pool.call("a", "PUT", "/k", "y")
    assert (await pool.call("a", "PUT", "/k", "z", If_None_Match="*", Idempotency_Key="refused"))[0] == 412

    await pool.settle(*B_FIRST)
    status, headers, _ = await pool.call("b", "PUT", "/k", "x", Idempotency_Key="once")
    assert (status, headers["etag"], headers["understudy-repeated"]) == (201, '"1.1"', "true")
    assert first[1]["etag"] == '"1.1"'

    page = await pool.client.range(prefix_range(pool.keys.requests))
    kept = {entry.request: entry.version for kv in page.kvs for entry in decode_entries(kv.value)}
    assert kept[request_hash("k", "key:once")] == version_of(1, 1)
    assert kept[request_hash("k", "key:refused")] == 0


@pytest.mark.parametrize("value", [OF_0_1_0, OF_0_1_0_WITH_ANSWERS], ids=["plain", "with answers"])
async def test_a_session_of_an_earlier_release_is_served_and_overwritten(pool: SidecarPool, value: bytes) -> None:
    revision = await pool.client.put(pool.keys.session(slot_of("k", 16), "k"), value)
    await pool.start("a")
    await pool.settle(("a",))

    _, headers, body = await pool.call("a", "GET", "/k")
    assert (headers["etag"], body) == (f'"0.{revision}"', b"hello")
    assert (await pool.call("a", "GET", "/k", If_None_Match=f'"{revision:x}"'))[0] == 304
    assert (await pool.call("a", "PUT", "/k", "x", If_Match=f'"{revision + 1:x}"'))[0] == 412
    status, headers, _ = await pool.call("a", "PUT", "/k", "x", If_Match=f'"{revision:x}"')
    assert (status, headers["etag"]) == (200, '"1.1"')
    now = await stored(pool, "k")
    assert (await pool.call("a", "PUT", "/k", "y", If_Match=f'"{now.revision:x}"'))[0] == 412
    assert (await pool.call("a", "PUT", "/k", "y", If_Match='"1.1"'))[1]["etag"] == '"1.2"'
