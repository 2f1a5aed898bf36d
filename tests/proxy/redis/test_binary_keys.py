"""Redis keys of any bytes: they replicate between members like others, and survive the death of their owner."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.proxy.members import SLOTS, InProcessMember, InProcessPool, in_process_pool
from understudy.proxy.http.problems import Reply
from understudy.proxy.sessions.call import Call
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.redis.command import KeyCommand
from understudy.statesync.redis.commands import parse
from understudy.statesync.sessions.command_batch import CommandBatch

ALL = list(range(SLOTS))
BINARY = (b"\xff", b"\xc3", b"k\xf4\x8f\xbf\xbf\x80", b"a\0b", "käse".encode())


@pytest_asyncio.fixture
async def pool(client: EtcdClient, pool_name: str) -> AsyncIterator[InProcessPool]:
    async with in_process_pool(client, pool_name, "a", "b") as pool:
        yield pool


async def command(member: InProcessMember, *words: bytes) -> Reply:
    parsed = parse(list(words))
    assert isinstance(parsed, KeyCommand)
    return await member.service.handle(Call.of_commands(CommandBatch((parsed,), 2), {}))


@pytest.mark.parametrize("joins", ["before the writes", "after the writes"])
async def test_a_standby_has_keys_of_any_bytes_when_their_owner_dies(pool: InProcessPool, joins: str) -> None:
    order = ("b",) if joins == "before the writes" else ()
    a, b = await pool.give("a", *order), pool["b"]
    for key in BINARY:
        assert (await command(a, b"SET", key, b"of " + key)).body == b"+OK\r\n"
    if not order:
        await pool.give("a", "b")

    pool.network.dead.add("a")
    await b.claimer.open(await b.claimer.win(b.pool.view(), ALL, b.takeovers.cause("a", "a1", "a lost")))

    assert b.copies.replica.copies == 0, "all slots are served from memory"
    assert [(await command(b, b"GET", key)).body for key in BINARY] == [
        b"$%d\r\n%s\r\n" % (len(key) + 3, b"of " + key) for key in BINARY
    ]


async def test_a_key_without_a_byte_is_refused(pool: InProcessPool) -> None:
    a = await pool.give("a", "b")
    for words in ([b"SET", b"", b"v"], [b"GET", b""]):
        reply = await command(a, *words)
        assert reply.status == 400
        assert b"the key has 0 bytes; keys have 1 to 512" in reply.body
