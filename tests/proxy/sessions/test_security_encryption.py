"""Sessions encrypted in etcd, from the first key to the second, on real sidecars."""

import base64
import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.harness.commands import commands
from tests.harness.etcd import EtcdServer
from tests.harness.secrets import write_secret
from tests.harness.sidecars import SidecarPool, sidecar_pool
from tests.harness.waiting import free_port, until
from understudy.statesync.etcd.key_range import prefix_range

A_FIRST = (("a", "b"),)
SECRET = "the customer's secret"


@pytest_asyncio.fixture
async def pool(etcd: EtcdServer, pool_name: str, tmp_path: Path) -> AsyncIterator[SidecarPool]:
    async with sidecar_pool(etcd, pool_name) as pool:
        pool.logs = tmp_path
        pool.flags = lambda name: ["--session-keys", tmp_path / f"{name}.keys", "--drain-seconds", 0]
        yield pool


def key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


def give(home: Path, members: str, *keys: str) -> None:
    for member in members:
        write_secret(home / f"{member}.keys", "\n".join(keys))


async def in_etcd(pool: SidecarPool) -> bytes:
    page = await pool.client.range(prefix_range(pool.keys.sessions))
    assert page.kvs
    return b"".join(kv.value for kv in page.kvs)


async def restart(pool: SidecarPool, name: str) -> None:
    before = await pool.record(name)
    pool.kill(name, application=False)
    await pool.start(name)
    await until(lambda: registered_anew(pool, name, before), 40, f"{name} is back")


async def registered_anew(pool: SidecarPool, name: str, before: object) -> bool:
    now = await pool.record(name)
    return now is not None and now != before


async def stored(pool: SidecarPool, member: str, path: str) -> bytes:
    """What a member answers once the slots have settled after a restart."""

    async def read() -> bool:
        return (await pool.call(member, "GET", path))[0] == 200

    await until(read, 30, f"{path} is answered by {member}")
    return (await pool.call(member, "GET", path))[2]


async def test_sessions_stay_secret_in_etcd_through_a_takeover_and_a_rotation(
    pool: SidecarPool, tmp_path: Path
) -> None:
    old, new = key(), key()
    give(tmp_path, "ab", old)
    await pool.start("a", "b")
    await pool.settle(*A_FIRST)
    once = {"Idempotency_Key": "w1"}
    assert (await pool.call("a", "PUT", "/k", SECRET, **once))[0] == 201
    assert (await pool.call("a", "PUT", "/later", SECRET))[0] == 201
    assert SECRET.encode() not in await in_etcd(pool)

    pool.kill("a")
    assert await stored(pool, "b", "/k") == SECRET.encode()
    again = await pool.call("b", "PUT", "/k", SECRET, **once)
    assert (again[0], again[1]["understudy-repeated"]) == (201, "true")

    await pool.start("a")
    for keys in ((old, new), (new, old)):
        give(tmp_path, "ab", *keys)
        for name in "ab":
            await restart(pool, name)
    assert await stored(pool, "b", "/k") == SECRET.encode()
    for path in ("/k", "/later"):
        assert (await pool.call("b", "PUT", path, f"{SECRET}, again"))[0] == 200
    give(tmp_path, "ab", new)
    for name in "ab":
        await restart(pool, name)
    assert await stored(pool, "a", "/later") == f"{SECRET}, again".encode()
    assert SECRET.encode() not in await in_etcd(pool)


async def test_a_sidecar_without_the_pools_key_does_not_start(pool: SidecarPool, tmp_path: Path) -> None:
    give(tmp_path, "a", key())
    give(tmp_path, "b", key())
    await pool.start("a")
    await pool.settle(("a",))
    await pool.call("a", "PUT", "/k", SECRET)
    where = ("--member", "b", "--pool", pool.keys.pool, "--app", "127.0.0.1:1", "--etcd", pool.etcd.endpoint)
    ports = ("--session-api", f"127.0.0.1:{free_port()}", "--peer", f"127.0.0.1:{free_port()}")
    async with commands(tmp_path) as running:
        for options, words in (((), "give --session-keys"), (("--session-keys", tmp_path / "b.keys"), "has")):
            code, told = await running.run("sidecar", *where, *ports, *map(str, options))
            assert (code, words in told, "Traceback" in told) == (2, True, False), told
        code, told = await running.run("sessions", "--pool", pool.keys.pool, "--etcd", pool.etcd.endpoint, "-o", "json")
        assert code == 0
        assert "encrypted" in json.loads(told)["sessions"][0]["content_type"]
        assert SECRET not in told


async def test_a_running_sidecar_that_lacks_a_new_key_neither_serves_nor_overwrites(
    pool: SidecarPool, tmp_path: Path
) -> None:
    old, new = key(), key()
    give(tmp_path, "a", new, old)
    give(tmp_path, "b", old)
    await pool.start("b")
    await pool.start("a")
    await pool.settle(*A_FIRST)
    assert (await pool.call("a", "PUT", "/k", SECRET))[0] == 201
    sealed = await in_etcd(pool)

    async def unfit() -> bool:
        record = await pool.record("b")
        return record is not None and record.state == "DOWN" and "--session-keys" in record.reason

    await until(unfit, 40, "b says that it lacks a key")
    pool.kill("a")

    async def told() -> bool:
        return b"/no-owner" not in (await pool.call("b", "GET", "/k"))[2]

    await until(told, 40, "b has taken over")
    for method in ("GET", "PUT", "DELETE", "GET"):
        status, _, body = await pool.call("b", method, "/k", "overwritten")
        assert (status, json.loads(body)["type"].rpartition("/")[2]) == (503, "session-unreadable")
    assert await in_etcd(pool) == sealed
    await pool.start("a")
    await pool.settle(*A_FIRST)
    assert await stored(pool, "a", "/k") == SECRET.encode()
