"""In which order the executor hands commands to the session service."""

import asyncio
from collections.abc import Iterator
from typing import cast

import pytest

from understudy.proxy.http.problems import RESP_TYPE, Reply, problem
from understudy.proxy.redis.client import Client
from understudy.proxy.redis.copies import CopyCount
from understudy.proxy.redis.executor import Executor
from understudy.proxy.redis.scan import KeyScan
from understudy.proxy.sessions.call import Call
from understudy.proxy.sessions.service import SessionService
from understudy.statesync.redis.command import KeyCommand, KeyCommands
from understudy.statesync.redis.commands import parse

OK = Reply(200, {"Content-Type": RESP_TYPE}, b"+OK\r\n")
UNKNOWN = problem(503, "outcome-unknown", "etcd does not answer")
CONFLICT = problem(409, "overwrite", "another client has changed the value")
BUSY = problem(503, "overloaded", "commits lag behind", retry_after=1)
TURNS = 100
"""Turns of the event loop in which every task that can go on has done so."""


class Service:
    """Answers calls after the turns of the event loop that ``delays`` has for each, and notes what was done."""

    def __init__(self, delays: Iterator[int] | None = None) -> None:
        self.takes = True
        self.refusals = 0
        self.reply = OK
        self.done: list[tuple[str, bytes]] = []
        self._delays = delays or iter(())

    def takes_writes(self) -> bool:
        return self.takes

    async def handle(self, call: Call) -> Reply:
        await turns(next(self._delays, 0))
        if self.refusals:
            self.refusals -= 1
            return BUSY
        assert call.batch is not None
        self.done.append((call.key, call.batch.commands[0].args[0]))
        return self.reply


def executor_of(service: Service) -> tuple[Executor, Client]:
    of_pool = (cast("KeyScan", None), cast("CopyCount", None))
    return Executor(cast("SessionService", service), *of_pool), Client(1, "here", True)


def command(*words: object) -> KeyCommand:
    parsed = parse([str(word).encode() for word in words])
    assert isinstance(parsed, KeyCommand)
    return parsed


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_the_parts_of_a_command_on_the_same_key_are_carried_out_in_their_order():
    service = Service(iter(range(30, 0, -1)))
    executor, client = executor_of(service)
    parts = parse([b"MSET", b"a", b"1", b"b", b"1", b"a", b"2", b"b", b"2", b"a", b"3"])
    assert isinstance(parts, KeyCommands)
    assert await executor.several(parts, client) == b"+OK\r\n"
    assert [value for key, value in service.done if key == "a"] == [b"1", b"2", b"3"]
    assert [value for key, value in service.done if key == "b"] == [b"1", b"2"]


async def test_a_write_does_not_overtake_those_that_wait():
    service = Service()
    executor, client = executor_of(service)
    service.takes = False
    waiting = [asyncio.create_task(executor.one(command("SET", f"k{n}", n), client)) for n in range(9)]
    await turns(TURNS)
    service.takes = True
    late = asyncio.create_task(executor.one(command("SET", "late", "late"), client))
    assert await asyncio.gather(*waiting, late) == [b"+OK\r\n"] * 10
    assert [value for _, value in service.done] == [*(b"%d" % n for n in range(9)), b"late"]


async def test_a_command_that_was_refused_for_a_moment_is_tried_again():
    service = Service()
    executor, client = executor_of(service)
    service.refusals = 3
    assert await executor.one(command("SET", "k", "v"), client) == b"+OK\r\n"


@pytest.mark.parametrize(("reply", "known"), [(OK, None), (UNKNOWN, None), (CONFLICT, 7)])
async def test_after_a_write_that_may_have_happened_a_client_knows_the_value_no_more(reply, known):
    service = Service()
    executor, client = executor_of(service)
    service.reply = reply
    client.knows(b"k", 7)
    await executor.one(command("SET", "k", "v"), client)
    assert client.version_of(b"k") == known
