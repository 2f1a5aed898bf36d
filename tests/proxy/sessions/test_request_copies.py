"""Copies of one request at real sidecars: one effect, and a refusal is final, wherever and whenever a copy arrives."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.harness.etcd import EtcdServer
from tests.harness.sidecars import PATIENT, SidecarPool, sidecar_pool
from tests.harness.sidecars_here import sidecars_here
from tests.harness.waiting import until
from understudy.proxy.member.identity import MemberIdentity
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.sessions.request_sweep import RequestSweep
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Member, MemberState, SyncRecord
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.state import At
from understudy.statesync.replication.history import version_of
from understudy.statesync.sessions.request_log import LogEntry, RequestLog, Window, decode_entries
from understudy.statesync.sessions.session import ANSWERS_KEPT

A_FIRST, B_FIRST = (("a", "b"),), (("b", "a"),)
MERGE = "application/merge-patch+json"


@pytest_asyncio.fixture
async def pool(etcd: EtcdServer, pool_name: str) -> AsyncIterator[SidecarPool]:
    # A request may take a minute here: this machine may be busy.
    async with sidecar_pool(etcd, pool_name, f"slots: 16\ntimeouts: {{request_seconds: 60}}\n{PATIENT}") as pool:
        yield pool


def stamp(age: float = 0.0, name: str = "r1") -> str:
    return f"{time.time() - age:.3f};{name}"


async def two_members(pool: SidecarPool) -> None:
    await pool.start("a", "b")
    await pool.settle(*A_FIRST)


async def move_to_b(pool: SidecarPool, how: str) -> None:
    """The slots go to b: with a's agreement, or because it was killed."""
    if how == "takeover":
        pool.kill("a")
        await pool.call("b", "GET", "/anything")  # the witness
        boot = (await pool.owners())[0].boot
        await pool.write_table(B_FIRST, lost={"a": boot})
        await pool.await_owners(B_FIRST)
    elif how == "handover":
        await pool.settle(*B_FIRST)


def named(by: str, name: str) -> dict[str, str]:
    return {"Idempotency_Key": name} if by == "key" else {"Understudy_Request": stamp(name=name)}


EVERYWHERE = pytest.mark.parametrize("how", ["same owner", "handover", "takeover"])
BY = pytest.mark.parametrize("by", ["key", "stamp"])


@EVERYWHERE
@BY
async def test_an_effect_is_had_once_however_many_writes_come_between(pool: SidecarPool, how: str, by: str) -> None:
    await two_members(pool)
    await pool.call("a", "PUT", "/k", "{}", Content_Type="application/json")
    asked = {"Content_Type": MERGE, **named(by, "gold")}
    first = await pool.call("a", "PATCH", "/k", '{"gold":1}', **asked)
    for number in range(2 * ANSWERS_KEPT):
        await pool.call("a", "PATCH", "/k", '{"gold":null}', Content_Type=MERGE, Idempotency_Key=f"other-{number}")
    await move_to_b(pool, how)

    again = await pool.call("b", "PATCH", "/k", '{"gold":1}', **asked)

    assert (again[0], again[1]["etag"], again[1]["understudy-repeated"]) == (200, first[1]["etag"], "true")
    assert json.loads((await pool.call("b", "GET", "/k"))[2]) == {}


@EVERYWHERE
@BY
async def test_a_delete_that_found_nothing_removes_nothing_later(pool: SidecarPool, how: str, by: str) -> None:
    await two_members(pool)
    asked = named(by, "d")
    assert (await pool.call("a", "DELETE", "/k", **asked))[0] == 404
    await move_to_b(pool, how)
    assert (await pool.call("b", "PUT", "/k", "made since"))[0] == 201

    assert (await pool.call("b", "DELETE", "/k", **asked))[0] == 404

    assert (await pool.call("b", "GET", "/k"))[2] == b"made since"


@EVERYWHERE
@BY
async def test_a_creation_that_found_a_session_makes_no_ghost_of_it(pool: SidecarPool, how: str, by: str) -> None:
    await two_members(pool)
    await pool.call("a", "PUT", "/k", "there")
    asked = {"If_None_Match": "*", **named(by, "c")}
    assert (await pool.call("a", "PUT", "/k", "ghost", **asked))[0] == 412
    assert (await pool.call("a", "DELETE", "/k"))[0] == 204
    await move_to_b(pool, how)

    assert (await pool.call("b", "PUT", "/k", "ghost", **asked))[0] == 412

    assert (await pool.call("b", "GET", "/k"))[0] == 404


async def test_a_new_owner_whose_watch_lags_behind_reads_the_log_from_etcd(
    pool: SidecarPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pool.start("a")
    async with sidecars_here(pool, "b") as here:
        await pool.settle(*A_FIRST)
        monkeypatch.setattr(here["b"].copies.informer, "caught_up", lambda *_: asyncio.Event().wait())
        assert (await pool.call("a", "DELETE", "/k", Idempotency_Key="d"))[0] == 404
        pool.kill("a")

        assert (await pool.call("b", "PUT", "/k", "made since"))[0] == 201

        assert (await pool.call("b", "DELETE", "/k", Idempotency_Key="d"))[0] == 404


async def test_a_member_that_came_later_knows_the_requests_of_before(etcd: EtcdServer, pool_name: str) -> None:
    """It gets them with its copy of the slot: it claims the slot from memory, and reads nothing from etcd."""
    spec = f"slots: 4\ndurability: replicas\nreplication: {{checkpoint_ms: 100}}\n{PATIENT}"
    async with sidecar_pool(etcd, pool_name, spec) as pool:
        await pool.start("a")
        await pool.settle(("a",))
        asked = {"Content_Type": MERGE, "Idempotency_Key": "gold"}
        await pool.call("a", "PUT", "/k", "{}", Content_Type="application/json")
        first = await pool.call("a", "PATCH", "/k", '{"gold":1}', **asked)
        assert first[0] == 200
        assert (await pool.call("a", "DELETE", "/none", Idempotency_Key="d"))[0] == 404
        await until(lambda: is_saved(pool, first[1]["etag"]), what="etcd has the write, and so the active has saved it")
        await pool.call("a", "PATCH", "/k", '{"gold":null}', Content_Type=MERGE, Idempotency_Key="other")

        await pool.start("b")
        await pool.write_table(A_FIRST)
        await until(lambda: in_every_set(pool, "b"), 60, "b is in all sync sets")
        await pool.client.delete(prefix_range(pool.keys.requests))  # nothing of it is needed
        await move_to_b(pool, "takeover")

        again = await pool.call("b", "PATCH", "/k", '{"gold":1}', **asked)
        assert (again[0], again[1]["etag"], again[1].get("understudy-repeated")) == (200, first[1]["etag"], "true")
        assert json.loads((await pool.call("b", "GET", "/k"))[2]) == {}
        assert (await pool.call("b", "PUT", "/none", "made since"))[0] == 201
        assert (await pool.call("b", "DELETE", "/none", Idempotency_Key="d"))[0] == 404


async def is_saved(pool: SidecarPool, etag: str) -> bool:
    """Whether etcd has an outcome of the write that made this version."""
    epoch, _, index = etag.strip('"').partition(".")
    page = await pool.client.range(prefix_range(pool.keys.requests))
    versions = {entry.version for kv in page.kvs for entry in decode_entries(kv.value)}
    return version_of(int(epoch), int(index)) in versions


async def in_every_set(pool: SidecarPool, name: str) -> bool:
    page = await pool.client.range(prefix_range(pool.keys.sync_sets))
    return page.count == pool.spec.slots and all(
        name in {process.member for process in SyncRecord.decode(kv.value).sync_set().members} for kv in page.kvs
    )


async def test_a_request_that_is_too_old_or_from_the_future_is_refused_and_does_nothing(pool: SidecarPool) -> None:
    await two_members(pool)
    oldest = pool.spec.timeouts.request_seconds + 10
    for age in (oldest + 1, 3600, -60):
        for member in ("a", "b"):
            status, _, body = await pool.call(member, "PUT", "/k", "late", Understudy_Request=stamp(age))
            assert (status, json.loads(body)["type"].rpartition("/")[2]) == (409, "request-expired")
            assert "nothing was done" in json.loads(body)["detail"]
    assert (await pool.call("a", "GET", "/k"))[0] == 404
    assert (await pool.call("b", "PUT", "/k", "in time", Understudy_Request=stamp(oldest - 30)))[0] == 201
    status, _, body = await pool.call("a", "PUT", "/k", "x", Understudy_Request="yesterday")
    assert (status, json.loads(body)["type"].rpartition("/")[2]) == (400, "bad-request")


async def test_what_waited_while_its_sidecar_stood_still_counts_as_that_old(pool: SidecarPool) -> None:
    async with sidecars_here(pool, "a") as here:
        await pool.settle(("a",))
        stall = here["a"].loop_lag
        stall.standstill = lambda: 3600.0  # type: ignore[method-assign]
        assert (await pool.call("a", "PUT", "/k", "late"))[0] == 409
        assert (await pool.call("a", "PUT", "/k", "late", Idempotency_Key="w"))[0] == 409
        assert (await pool.call("a", "PUT", "/k", "new", Understudy_Request=stamp()))[0] == 201
        assert here["a"].recorder.counters.expired == 2


async def test_a_request_whose_write_was_refused_for_an_old_version_may_try_the_new_one(pool: SidecarPool) -> None:
    await two_members(pool)
    old = (await pool.call("a", "PUT", "/k", "1"))[1]["etag"]
    new = (await pool.call("a", "PUT", "/k", "2"))[1]["etag"]
    asked = {"Understudy_Request": stamp()}
    assert (await pool.call("a", "PUT", "/k", "3", If_Match=old, **asked))[0] == 412
    assert (await pool.call("a", "PUT", "/k", "3", If_Match=new, **asked))[0] == 200


async def test_a_request_that_found_nothing_to_patch_may_create_it(pool: SidecarPool) -> None:
    await two_members(pool)
    asked = {"Understudy_Request": stamp()}
    assert (await pool.call("a", "PATCH", "/k", "{}", Content_Type=MERGE, **asked))[0] == 404
    assert (await pool.call("a", "PUT", "/k", "{}", Content_Type="application/json", **asked))[0] == 201
    assert (await pool.call("b", "PATCH", "/k", "{}", Content_Type=MERGE, **asked))[0] == 422


@pytest.mark.parametrize("member", ["a", "b"])
async def test_an_application_can_make_its_own_refusal_final(pool: SidecarPool, member: str) -> None:
    await two_members(pool)
    refused, done = {"Understudy_Request": stamp(name="no")}, {"Understudy_Request": stamp(name="yes")}
    assert (await pool.call(member, "POST", "/k/refusal", **refused))[0] == 204
    assert (await pool.call(member, "PUT", "/k", "late", **refused))[0] == 409
    assert (await pool.call(member, "POST", "/k/refusal", **refused))[0] == 204
    assert (await pool.call(member, "PUT", "/k", "done", **done))[0] == 201
    status, headers, _ = await pool.call(member, "POST", "/k/refusal", **done)
    assert (status, headers["understudy-repeated"]) == (201, "true")
    assert (await pool.call(member, "POST", "/k/refusal"))[0] == 400
    assert (await pool.call(member, "GET", "/k"))[2] == b"done"


async def test_when_no_more_outcomes_can_be_kept_identified_writes_are_refused_and_others_go_on(
    etcd: EtcdServer, pool_name: str
) -> None:
    async with sidecar_pool(etcd, pool_name, "slots: 16\nlimits: {requests: 2}") as pool:
        await pool.start("a")
        await pool.settle(("a",))
        answers = [await pool.call("a", "PUT", "/k", "x", Idempotency_Key=f"w{number}") for number in range(3)]
        assert [status for status, _, _ in answers] == [201, 200, 503]
        assert json.loads(answers[2][2])["type"].endswith("/overloaded")
        assert (await pool.call("a", "PUT", "/new", "x", Idempotency_Key="w4"))[0] == 503
        assert (await pool.call("a", "DELETE", "/none", Idempotency_Key="w5"))[0] == 503
        assert (await pool.call("a", "PUT", "/k", "x", Idempotency_Key="w1"))[0] == 200
        assert (await pool.call("a", "PUT", "/k", "x"))[0] == 200


SPEC = PoolSpec(pool="cart")
KEEP = Window.of(SPEC.timeouts.request_seconds).keep


def sweep_of(client: EtcdClient, name: str, me: str = "a", *others: str) -> tuple[RequestSweep, RequestLog, PoolView]:
    """The sweep of a member, with what it works on; ``others`` are registered beside it."""
    keys = PoolKeys(name)
    pool, log = PoolView(MemberIdentity(me, "boot", keys)), RequestLog(keys, me, "boot")
    pool.state.spec = At(SPEC, 1)
    for member in (me, *others):
        pool.state.members[member] = At(Member(member, "boot", "", "", MemberState.UP), 1)
    return RequestSweep(pool, log, client), log, pool


async def processes(client: EtcdClient, keys: PoolKeys) -> list[str]:
    """The processes that have records in etcd."""
    page = await client.range(prefix_range(keys.requests))
    return list(dict.fromkeys(kv.key.removeprefix(keys.requests).rpartition("/")[0] for kv in page.kvs))


async def test_records_are_deleted_once_their_time_is_over(client: EtcdClient, pool_name: str) -> None:
    sweep, log, pool = sweep_of(client, pool_name)
    records = prefix_range(pool.identity.keys.requests)
    old, fresh = time.monotonic() - 1000, time.monotonic()
    for number in range(300):
        seen = old if number < 290 else fresh
        log.note(0, LogEntry(f"r{number}", "f", 200), seen)
        log.committed(log.record_key(number), seen)
        await client.put(log.record_key(number), b"[]")
    await client.put(f"{records.start}b/boot/{1:012d}", b"[]")
    sweep.interval = 0.01
    running = asyncio.create_task(sweep.run())
    try:

        async def only_the_fresh_are_left() -> bool:
            return (await client.range(records)).count == 11

        await until(only_the_fresh_are_left, what="old records are deleted")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert len(log) == 10
    assert await processes(client, pool.identity.keys) == ["a/boot", "b/boot"]


async def test_records_of_processes_that_are_gone_are_deleted_and_those_of_living_ones_stay(
    client: EtcdClient, pool_name: str
) -> None:
    sweep, _, pool = sweep_of(client, pool_name, "a", "b")
    keys, now = pool.identity.keys, 1000.0
    odd = ["odd", "odd/", "/", "//1", "a//1", "a/boot"]
    for name in ("a/boot", "a/before", "b/boot", "b/boo", "b/boots", "c/gone"):
        for number in range(3):
            await client.put(f"{keys.requests}{name}/{number:012d}", b"[]")
    for name in odd:
        await client.put(keys.requests + name, b"[]")

    await sweep._delete_gone(now)
    await client.put(f"{keys.requests}b/boots/{3:012d}", b"[]")  # this one still writes
    await sweep._delete_gone(now + KEEP - 1)
    assert {"a/before", "b/boo", "c/gone"} <= set(await processes(client, keys)), "it may still be needed"
    await sweep._delete_gone(now + KEEP)
    left = await client.range(prefix_range(keys.requests), keys_only=True)
    names = [kv.key.removeprefix(keys.requests) for kv in left.kvs]
    living = [f"{name}/{number:012d}" for name in ("a/boot", "b/boot") for number in range(3)]
    writes = [f"b/boots/{number:012d}" for number in range(4)]
    assert sorted(names) == sorted([*living, *writes, *odd])

    await sweep._delete_gone(now + 2 * KEEP)
    assert "b/boots" not in await processes(client, keys), "it has not written since"


async def test_only_the_first_member_deletes_records_of_others(client: EtcdClient, pool_name: str) -> None:
    sweep, _, pool = sweep_of(client, pool_name, "b", "a")
    keys = pool.identity.keys
    await client.put(f"{keys.requests}c/gone/{1:012d}", b"[]")
    for now in (0.0, 2 * KEEP):
        await sweep._delete_gone(now)
    assert await processes(client, keys) == ["c/gone"]
    del pool.state.members["a"]
    await sweep._delete_gone(3 * KEEP)
    assert await processes(client, keys) == ["c/gone"], "it may have ended just now"
    await sweep._delete_gone(4 * KEEP)
    assert await processes(client, keys) == []


async def test_a_process_that_comes_back_into_view_keeps_its_records(client: EtcdClient, pool_name: str) -> None:
    sweep, _, pool = sweep_of(client, pool_name)
    keys = pool.identity.keys
    await client.put(f"{keys.requests}b/boot/{1:012d}", b"[]")
    await sweep._delete_gone(0.0)
    pool.state.members["b"] = At(Member("b", "boot", "", "", MemberState.UP), 1)
    await sweep._delete_gone(KEEP)
    del pool.state.members["b"]
    await sweep._delete_gone(KEEP + 1)
    assert await processes(client, keys) == ["b/boot"]


async def test_the_sweep_goes_on_after_etcd_was_away(
    etcd_server: EtcdServer, pool_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with etcd_server.client(timeout=0.2) as client:
        sweep, log, pool = sweep_of(client, pool_name)
        keys = pool.identity.keys
        await client.put(f"{keys.requests}b/gone/{1:012d}", b"[]")
        await client.put(log.record_key(1), b"[]")
        log.committed(log.record_key(1), time.monotonic() - 1000)
        sweep.interval = sweep.gone_interval = 0.01
        etcd_server.pause()
        running = asyncio.create_task(sweep.run())
        try:
            for what in ("records of requests", "records of requests of processes that are gone"):
                await until(lambda what=what: f"{what} cannot be deleted yet" in caplog.text, what="etcd is away")
            etcd_server.resume()

            async def own_records_are_gone() -> bool:
                return await processes(client, keys) == ["b/gone"]

            await until(own_records_are_gone, what="its own record is deleted")
            await until(lambda: f"{keys.requests}b/gone/" in sweep._gone, what="the other process is seen to be gone")
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
