"""The session API as an application sees it, on real sidecars and a real etcd."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from functools import partial

import pytest_asyncio

from tests.harness.cable import cable_to
from tests.harness.etcd import EtcdServer
from tests.harness.sidecars import SidecarPool, sidecar_pool
from tests.harness.waiting import until
from understudy.statesync.pool.slots import slot_of

A_FIRST = (("a", "b"),)
SHARED = (("a", "b"), ("b", "a"))


@pytest_asyncio.fixture
async def pool(etcd: EtcdServer, pool_name: str) -> AsyncIterator[SidecarPool]:
    async with sidecar_pool(etcd, pool_name) as pool:
        yield pool


async def test_a_session_is_created_read_changed_and_deleted(pool: SidecarPool) -> None:
    await pool.start("a")
    await pool.settle(*A_FIRST)

    status, headers, body = await pool.call("a", "POST", "", '{"n":1}', Content_Type="application/json")
    key = json.loads(body)["key"]
    assert (status, headers["location"]) == (201, f"/v1/sessions/{key}")

    status, headers, body = await pool.call("a", "GET", f"/{key}")
    assert (status, body, headers["content-type"]) == (200, b'{"n":1}', "application/json")
    assert (headers["understudy-served-by"], headers["understudy-epoch"]) == ("a", "1")
    first = headers["etag"]

    patch = "application/merge-patch+json"
    status, headers, _ = await pool.call("a", "PATCH", f"/{key}", '{"m":2}', Content_Type=patch, If_Match=first)
    assert (status, headers["understudy-durability"]) == (200, "sync")
    assert headers["etag"] != first
    assert json.loads((await pool.call("a", "GET", f"/{key}"))[2]) == {"n": 1, "m": 2}

    assert (await pool.call("a", "PUT", f"/{key}", "x", If_Match=first))[0] == 412
    assert (await pool.call("a", "DELETE", f"/{key}"))[0] == 204
    assert (await pool.call("a", "GET", f"/{key}"))[0] == 404


async def test_a_new_session_falls_into_a_slot_of_the_member_that_made_it(pool: SidecarPool) -> None:
    await pool.start("a", "b")
    await pool.settle(*SHARED)

    for _ in range(20):
        _, headers, _ = await pool.call("b", "POST", "", "x")
        assert headers["understudy-served-by"] == "b"
        assert int(headers["understudy-slot"]) % 2 == 1


async def test_a_session_that_is_made_while_its_member_still_claims_its_slots_waits_for_them(
    pool: SidecarPool, etcd: EtcdServer
) -> None:
    async with cable_to(etcd.endpoint) as cable:
        await pool.start("a")
        await pool.start("b", etcd=cable.address)
        cable.delay = 0.2
        await pool.settle(*SHARED)

        made = await asyncio.gather(*(until(partial(made_at, pool, "b"), what="a session") for _ in range(8)))
    assert set(made) == {(201, "b")}


async def made_at(pool: SidecarPool, member: str) -> tuple[int, str] | None:
    """The answer to a new session, and whose it is; None if it is refused since commits take long just now."""
    status, headers, body = await pool.call(member, "POST", "", "x")
    return None if b"/overloaded" in body else (status, headers.get("understudy-served-by", ""))


async def test_a_call_at_the_wrong_member_is_corrected(pool: SidecarPool) -> None:
    await pool.start("a", "b")
    await pool.settle(*SHARED)
    key = pool.key_in(SHARED, "a")

    status, headers, _ = await pool.call("b", "PUT", f"/{key}", "hello")
    assert (status, headers["understudy-served-by"]) == (201, "a")
    status, headers, body = await pool.call("b", "GET", f"/{key}")
    assert (status, headers["understudy-served-by"], body) == (200, "a", b"hello")


async def test_a_repeated_write_has_its_effect_once_and_gets_the_same_answer(pool: SidecarPool) -> None:
    await pool.start("a")
    await pool.settle(*A_FIRST)

    first = await pool.call("a", "PUT", "/k", "one", Idempotency_Key="w1")
    await pool.call("a", "PUT", "/k", "two", Idempotency_Key="w2")
    again = await pool.call("a", "PUT", "/k", "one", Idempotency_Key="w1")

    assert (again[0], again[1]["etag"]) == (first[0], first[1]["etag"]) == (201, first[1]["etag"])
    assert (await pool.call("a", "GET", "/k"))[2] == b"two"
    assert (await pool.call("a", "PUT", "/k", "three", Idempotency_Key="w1"))[0] == 422

    gone = await pool.call("a", "DELETE", "/k", Idempotency_Key="d1")
    assert gone[0] == (await pool.call("a", "DELETE", "/k", Idempotency_Key="d1"))[0] == 204
    assert (await pool.call("a", "DELETE", "/k", Idempotency_Key="d2"))[0] == 404


async def test_a_repeated_creation_finds_the_same_session_on_any_member(pool: SidecarPool) -> None:
    await pool.start("a", "b")
    await pool.settle(*SHARED)

    made = []
    for scope in (
        {"Understudy_Caller": "anna"},
        {"Understudy_Caller": "bert"},
        {"Understudy_Request": f"{time.time():.3f};of-anna"},
        {"Understudy_Request": f"{time.time():.3f};of-bert"},
    ):
        first = await pool.call("a", "POST", "", "x", Idempotency_Key="order-1", **scope)
        again = await pool.call("b", "POST", "", "x", Idempotency_Key="order-1", **scope)
        assert (first[0], first[2]) == (again[0], again[2]) == (201, first[2])
        assert again[1]["understudy-repeated"] == "true"
        made.append(first[2])
    made += [(await pool.call(member, "POST", "", "x", Idempotency_Key="order-1"))[2] for member in ("a", "b")]
    assert len(set(made)) == len(made), "the key alone leads to nobody's session"
    status, _, _ = await pool.call("a", "POST", "", "x", Idempotency_Key="order-1", Understudy_Caller="")
    assert status == 400

    pool.kill("a")
    await pool.call("b", "GET", "/anything")
    again = await pool.call("b", "POST", "", "x", Idempotency_Key="order-1", Understudy_Caller="anna")
    assert (again[0], again[2]) == (201, made[0])


async def test_bad_requests_get_problem_documents(pool: SidecarPool) -> None:
    await pool.start("a")
    await pool.settle(*A_FIRST)
    await pool.call("a", "PUT", "/text", "not json", Content_Type="text/plain")
    merge = "application/merge-patch+json"

    for expected, answer in [
        ((400, "bad-key"), await pool.call("a", "PUT", "/no%20spaces", "x")),
        ((400, "bad-request"), await pool.call("a", "PUT", "/k", "x", Understudy_TTL="soon")),
        ((400, "bad-request"), await pool.call("a", "GET", "/k", Understudy_Consistency="lineraizable")),
        ((400, "not-json"), await pool.call("a", "PUT", "/k", "{", Content_Type="application/json")),
        ((400, "not-json"), await pool.call("a", "POST", "", "[" * 50_000, Content_Type="application/a+json")),
        ((404, "no-such-session"), await pool.call("a", "GET", "/absent")),
        ((413, "session-too-large"), await pool.call("a", "PUT", "/k", b"x" * 70_000)),
        ((413, "session-too-large"), await pool.call("a", "PUT", "/k", b"x" * 2_000_000)),
        ((415, "unsupported-patch"), await pool.call("a", "PATCH", "/text", "{}", Content_Type="text/plain")),
        ((422, "not-json"), await pool.call("a", "PATCH", "/text", "{", Content_Type=merge)),
        ((422, "session-not-json"), await pool.call("a", "PATCH", "/text", "{}", Content_Type=merge)),
        ((404, "no-such-session"), await pool.call("a", "GET", "/k")),
        ((405, "method-not-allowed"), await pool.call("a", "POST", "/k", "x")),
    ]:
        status, headers, body = answer
        problem = json.loads(body)
        assert (status, problem["type"].rpartition("/")[2]) == expected
        assert headers["content-type"] == "application/problem+json"
        assert problem["status"] == status
        assert problem["detail"]


async def test_a_session_is_gone_after_its_ttl(pool: SidecarPool) -> None:
    await pool.start("a", "b")
    await pool.settle(*A_FIRST)

    await pool.call("a", "PUT", "/k", "x", Understudy_TTL="1")

    async def gone() -> bool:
        return (await pool.call("a", "GET", "/k"))[0] == 404

    await until(gone, what="the session has expired")
    assert (await pool.call("a", "PUT", "/k", "y"))[0] == 201


async def test_what_is_no_session_in_etcd_is_neither_shown_nor_overwritten(pool: SidecarPool) -> None:
    """Somebody has changed values in etcd by hand; the next owner that reads the slot from there finds them."""
    await pool.start("a", "b")
    await pool.settle(("a",))
    values = {"k": b"a hand's slip", "l": b"[]\n", "m": b'{"sealed":"\nx', "n": b'{"type":"text/plain"}\n'}
    pool.kill("a")
    for key, broken in values.items():
        await pool.client.put(pool.keys.session(slot_of(key, pool.spec.slots), key), broken)
    await pool.start("a")
    await pool.settle(("a",))
    for key, broken in values.items():
        for method in ("GET", "PUT", "DELETE", "GET"):
            status, _, body = await pool.call("b", method, f"/{key}", "overwritten")
            assert (status, json.loads(body)["type"].rpartition("/")[2]) == (503, "session-unreadable")
        status, _, body = await pool.call("a", "GET", f"/{key}", Understudy_Consistency="linearizable")
        assert (status, json.loads(body)["type"].rpartition("/")[2]) == (503, "session-unreadable")
        kv = await pool.client.get(pool.keys.session(slot_of(key, pool.spec.slots), key))
        assert kv is not None
        assert kv.value == broken


async def test_an_async_write_is_answered_before_its_commit_and_read_after_it(pool: SidecarPool) -> None:
    await pool.start("a", "b")
    await pool.settle(*A_FIRST)

    for n in range(20):
        status, headers, _ = await pool.call("a", "PUT", "/k", str(n), Understudy_Durability="async")
        assert (status, headers["understudy-durability"]) == (201 if n == 0 else 200, "async")
        assert "etag" not in headers
        assert (await pool.call("b", "GET", "/k"))[2] == str(n).encode()


async def test_a_stale_read_is_answered_by_the_standbys_copy_with_its_age(pool: SidecarPool) -> None:
    await pool.start("a", "b")
    await pool.settle(*A_FIRST)
    await pool.call("a", "PUT", "/k", "hello")

    async def copied() -> bool:
        status, headers, body = await pool.call("b", "GET", "/k", Understudy_Consistency="stale")
        return (status, body, headers["understudy-served-by"]) == (200, b"hello", "b") and int(
            headers["understudy-lag-ms"]
        ) >= 0

    await until(copied, what="the standby's copy has the session")
