"""Values in etcd that nobody of the pool wrote: a sidecar and a control server go on, and name those values."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.harness.etcd import running_etcd
from tests.harness.sidecars import SidecarPool, sidecar_pool
from tests.harness.waiting import until
from tests.xds.control.control_pool import Control, ControlPool
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Table
from understudy.statesync.pool.slots import slot_of

POISON = (
    b"[" * 100_000,
    b'{"sealed":"a","sealed":["b"]}',
    b"\xff\xfe",
    b'{"a":[[1e400,"\\ud800"]]}',
    b'[[["a"],{},[]]]',
)


@pytest_asyncio.fixture
async def pool(tmp_path: Path) -> AsyncIterator[SidecarPool]:
    async with running_etcd() as server, sidecar_pool(server, "cart") as pool:
        pool.logs = tmp_path
        pool.flags = lambda _: ["--drain-seconds", 0]
        yield pool


def poisoned_keys(keys: PoolKeys, number: int) -> list[str]:
    """A key under every prefix, and those of which there is one; the owner record of slot 3 among them."""
    prefixes = (keys.members, keys.admin, keys.site_intents, keys.controls, keys.failovers, keys.commits, keys.probes)
    named = [f"{prefix}odd-{number}" for prefix in prefixes]
    odd = [f"{keys.owners}odd", f"{keys.sessions}odd", f"{keys.slot_sessions(4)}\udcff", keys.session(4, f"k{number}")]
    return [*named, *odd, f"{keys.requests}odd/b/{number}", keys.owner(3), keys.table, keys.spec]


async def poison(client: EtcdClient, keys: PoolKeys) -> None:
    for number, value in enumerate(POISON):
        for key in poisoned_keys(keys, number):
            await client.put(key, value)


async def test_poison_under_every_prefix_ends_nobody_and_is_named(pool: SidecarPool, tmp_path: Path) -> None:
    controls = ControlPool(pool.etcd, pool.client, tmp_path)
    try:
        control = await controls.control()
        await pool.start("a")
        await pool.await_owners([("a",)])
        assert (await pool.call("a", "PUT", "/key", "before"))[0] == 201

        await poison(pool.client, pool.keys)

        await until(lambda: names_poison(control, pool.keys), 60, "the control server names what it cannot read")
        await until(lambda: applied(pool, "a"), 60, "the sidecar has seen all of it")
        assert (await pool.call("a", "GET", "/key"))[2] == b"before"
        assert (await pool.call("a", "PUT", "/key", "after"))[0] == 200
        for key in (pool.keys.owner(3), pool.keys.table, pool.keys.spec, pool.keys.member("odd-0")):
            assert f"unreadable record at {key}" in pool.log("a")

        await pool.client.put(pool.keys.spec, pool.spec.encode())
        await pool.start("b")  # a process that starts with all of it there
        assert (await pool.call("b", "GET", "/key"))[2] == b"after"
        await until(lambda: table_is_new(pool), 60, "the leader replaces the table that nobody can read")

        third = next(key for key in map(str, range(1000)) if slot_of(key, pool.spec.slots) == 3)
        await pool.client.delete(pool.keys.owner(3))
        await until(lambda: is_written(pool, third), 60, "the slot of a deleted owner record is served again")
        assert [pool.members[name].sidecar.runs for name in "ab"] == [True, True]
        assert control.runs
    finally:
        controls.close()


async def names_poison(control: Control, keys: PoolKeys) -> bool:
    faults = (await control.ask("/v1/status"))["faults"]
    return {keys.owner(3), keys.table, keys.spec, keys.member("odd-4"), keys.failovers + "odd-4"} <= faults.keys()


async def table_is_new(pool: SidecarPool) -> bool:
    kv = await pool.client.get(pool.keys.table)
    try:
        return kv is not None and Table.decode(kv.value).slots == pool.spec.slots
    except ValueError:
        return False


async def is_written(pool: SidecarPool, key: str) -> bool:
    return (await pool.call("a", "PUT", f"/{key}", "x"))[0] in (200, 201)


async def applied(pool: SidecarPool, name: str) -> bool:
    """Whether a member's watch is past everything that is in etcd now."""
    newest = await pool.client.put(pool.keys.probe("test"), b"")
    async with pool.http.get(f"http://{pool.members[name].api}/v1/status") as answer:
        return bool((await answer.json())["applied_revision"] >= newest - 1)
