"""Writes while etcd does not answer: which of them have no effect, and which may have one."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.harness.cable import Cable, cable_to
from tests.harness.etcd import EtcdServer
from tests.harness.waiting import stays, until
from tests.proxy.members import SLOTS, InProcessMember, InProcessPool, in_process_pool
from understudy.proxy.http.problems import Reply
from understudy.proxy.sessions.call import Call
from understudy.proxy.sessions.owner_writes import Begun
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.pool.spec_parts import DurabilityRule, Limits, Timeouts
from understudy.statesync.redis.command import KeyCommand
from understudy.statesync.redis.commands import parse
from understudy.statesync.sessions.command_batch import CommandBatch


@asynccontextmanager
async def behind_a_cable(
    etcd: EtcdServer, name: str, request_seconds: float = 1.0, **spec: Any
) -> AsyncIterator[tuple[InProcessPool, Cable]]:
    """A pool in which a owns all slots and b has copies; the way to etcd can be cut."""
    async with cable_to(etcd.endpoint) as cable, EtcdClient([cable.address], timeout=0.5) as client:
        timeouts = Timeouts(request_seconds=request_seconds)
        async with in_process_pool(client, name, "a", "b", timeouts=timeouts, **spec) as pool:
            await pool.give("a", "b")
            yield pool, cable


def problem_of(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.body.decode().partition('"type":')[2].partition(",")[0].rpartition("/")[2].strip('" ')


def command(*words: bytes) -> Call:
    parsed = parse(list(words))
    assert isinstance(parsed, KeyCommand)
    return Call.of_commands(CommandBatch((parsed,), 2), {})


async def write_under_way(a: InProcessMember, cable: Cable) -> "asyncio.Task[Reply]":
    """Cut the way to etcd under a write to ``k``; returns when commits are stalled."""
    cable.cut()
    begun = asyncio.create_task(a.call("PUT", "k", "begun"))
    await until(lambda: a.committer.stalled(time.monotonic()), what="commits are stalled")
    return begun


async def test_a_write_to_an_etcd_that_does_not_answer_has_no_effect_and_one_begun_before_may_have(
    etcd: EtcdServer, pool_name: str
) -> None:
    async with behind_a_cable(etcd, pool_name) as (pool, cable), etcd.client() as near:
        a = pool["a"]
        begun = await write_under_way(a, cable)
        late = await a.call("PUT", "late", "v", Idempotency_Key="once")
        assert problem_of(late) == (503, "not-committed")
        assert b"nothing was done" in late.body
        assert problem_of(await begun) == (503, "outcome-unknown")

        cable.mend()
        await until(lambda: near.get(pool.keys.session(slot_of("k", SLOTS), "k")), what="the first write is saved")

        async def seen() -> bool:
            return (await a.call("GET", "k")).body == b"begun"

        await until(seen, what="its owner has heard so")
        assert (await a.call("GET", "late")).status == 404
        assert await near.get(pool.keys.session(slot_of("late", SLOTS), "late")) is None
        again = await a.call("PUT", "late", "v", Idempotency_Key="once")
        assert (again.status, "Understudy-Repeated" in again.headers) == (201, False)


async def test_commands_are_refused_in_the_same_way(etcd: EtcdServer, pool_name: str) -> None:
    async with behind_a_cable(etcd, pool_name) as (pool, cable):
        a = pool["a"]
        begun = await write_under_way(a, cable)
        call = command(b"SET", b"late", b"v")
        assert call.batch is not None
        assert a.service.write_now(call, lambda *_: None) is None, "it is not begun"
        assert problem_of(await a.service.handle(call)) == (503, "not-committed")
        cable.mend()
        await begun
        assert (await a.service.handle(command(b"GET", b"late"))).body == b"$-1\r\n"


async def test_a_write_that_waits_for_etcd_is_carried_out_when_it_answers_again(
    etcd: EtcdServer, pool_name: str
) -> None:
    async with behind_a_cable(etcd, pool_name, request_seconds=60.0) as (pool, cable):
        a = pool["a"]
        begun = await write_under_way(a, cable)
        waiting = asyncio.create_task(a.call("PUT", "late", "v"))
        await stays(lambda: not waiting.done(), 0.2, "it waits")
        cable.mend()
        assert [(await one).status for one in (begun, waiting)] == [201, 201]
        assert (await a.call("GET", "late")).body == b"v"


@pytest.mark.parametrize("wants", ["replicas", "async"])
async def test_what_memory_may_answer_does_not_wait_for_etcd(etcd: EtcdServer, pool_name: str, wants: str) -> None:
    spec = {"durability": "replicas", "replication": {"patience_ms": 60_000, "checkpoint_ms": 60_000}}
    async with behind_a_cable(etcd, pool_name, **spec) as (pool, cable):
        a = pool["a"]
        await until(lambda: all(one.from_memory for one in a.active.slots), 20, "memory may answer")
        begun = asyncio.create_task(a.call("PUT", "k", "begun", Understudy_Durability="sync"))
        cable.cut()
        await until(lambda: begun.done() or a.committer.stalled(time.monotonic()), what="commits are stalled")
        reply = await a.call("PUT", "other", "kept", Understudy_Durability=wants)
        assert (reply.status, reply.headers["Understudy-Durability"]) == (201, wants)
        cable.mend()
        await begun
        assert (await a.call("GET", "other")).body == b"kept"


async def test_what_waits_in_memory_for_etcd_is_bounded_and_goes_out_when_etcd_is_back(
    etcd: EtcdServer, pool_name: str
) -> None:
    spec = {
        "durability": "replicas",
        "replication": {"patience_ms": 60_000, "checkpoint_ms": 1000},
        "limits": Limits(unsaved_bytes=1_000_000),
    }
    body = "x" * 60_000
    async with behind_a_cable(etcd, pool_name, **spec) as (pool, cable), etcd.client() as near:
        a = pool["a"]
        await until(lambda: all(one.from_memory for one in a.active.slots), 20, "memory may answer")
        cable.cut()
        for _ in range(30):
            assert (await a.call("PUT", "same", body)).status in (200, 201), "only the newest version waits"
        kept = ["same"]
        while (reply := await a.call("PUT", f"k{len(kept)}", body)).status == 201:
            kept.append(f"k{len(kept)}")
            assert len(kept) < 1000, "the bound is looked at every 50 ms, and no machine writes so much in that time"
        assert problem_of(reply) == (503, "overloaded")
        assert len(kept) >= 17, "1,000,000 bytes of 60,000 each are more than the bound"
        assert b"limits.unsaved_bytes" in reply.body
        assert reply.headers["Retry-After"]
        for wants in ("async", "replicas", "sync"):
            refused = await a.call("PUT", "same", "y", Understudy_Durability=wants)
            assert problem_of(refused) == (503, "overloaded"), wants
        assert (await a.call("GET", "same")).body == body.encode(), "reads go on"

        cable.mend()

        async def taken() -> bool:
            return (await a.call("PUT", "later", "z")).status in (200, 201)

        await until(taken, 40, "writes are taken again")
        for key in kept:
            await until(lambda key=key: near.get(pool.keys.session(slot_of(key, SLOTS), key)), 40, f"{key} is in etcd")


RULES = (
    DurabilityRule(prefix="cache:", durability="async"),
    DurabilityRule(prefix="fast:", durability="replicas"),
    DurabilityRule(prefix="order:", durability="sync"),
)


@pytest.mark.parametrize("durability", ["sync", "replicas", "async"])
async def test_the_rule_for_a_key_decides_unless_the_write_asks_for_another_class(
    etcd: EtcdServer, pool_name: str, durability: str
) -> None:
    replication = {"patience_ms": 60_000, "checkpoint_ms": 60_000}
    spec = {"durability": durability, "durability_rules": RULES, "replication": replication}
    async with behind_a_cable(etcd, pool_name, request_seconds=60.0, **spec) as (pool, cable):
        a = pool["a"]
        ready = [key_in(slot, "fast:") for slot in range(SLOTS)]
        for key in (*ready, "order:0", "order:1", "order:2", "cache:0"):
            assert (await a.call("PUT", key, "v")).status == 201
        await until(lambda: all(one.from_memory for one in a.active.slots), 20, "memory may answer")
        begun = asyncio.create_task(a.call("PUT", "order:0", "begun"))
        cable.cut()
        await until(lambda: begun.done() or a.committer.stalled(time.monotonic()), what="commits are stalled")
        slow = [
            asyncio.create_task(a.call("PUT", "order:1", "more")),
            asyncio.create_task(a.service.handle(command(b"SET", b"order:2", b"more"))),
            asyncio.create_task(a.call("PUT", "cache:0", "more", Understudy_Durability="sync")),
        ]
        for key, got in (("cache:1", "async"), (ready[0], "replicas")):
            reply = await a.call("PUT", key, "kept")
            assert (reply.status // 100, reply.headers["Understudy-Durability"]) == (2, got)
            assert (await a.service.handle(command(b"SET", key.encode(), b"more"))).body == b"+OK\r\n"
        again = command(b"SET", ready[1].encode(), b"more")
        at_once = await until(
            lambda: a.service.write_now(again, lambda *_: None), what="a busy process does it at once"
        )
        assert isinstance(at_once, Begun)
        await until(at_once.write.done.done, what="it is acknowledged")
        assert a.service.write_now(command(b"SET", b"cache:1", b"more"), lambda *_: None) is None
        await stays(lambda: not any(one.done() for one in slow), 0.2, "the others wait for etcd")
        cable.mend()
        assert {(await one).status for one in (begun, *slow)} == {200}
        assert (await a.service.handle(command(b"GET", b"cache:1"))).body == b"$4\r\nmore\r\n"


def key_in(slot: int, prefix: str) -> str:
    return next(key for number in range(10_000) if slot_of(key := f"{prefix}{number}k", SLOTS) == slot)
