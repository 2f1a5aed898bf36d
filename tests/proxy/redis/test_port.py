"""The Redis port of real sidecars on a real etcd, beside a real Redis where the answers must be the same bytes."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import hiredis
import pytest
import pytest_asyncio

from tests.harness.redis_client import RedisClient, redis_client
from tests.harness.sidecars import SidecarPool, sidecar_pool
from tests.harness.waiting import until
from tests.statesync.redis.server import running_redis

pytestmark = pytest.mark.asyncio(loop_scope="module")
NAMES = ("a", "b", "c")
ORDERS = (("a", "b", "c"), ("b", "c", "a"), ("c", "a", "b"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(etcd) -> AsyncIterator[SidecarPool]:
    async with sidecar_pool(etcd, f"pool-{uuid.uuid4().hex[:12]}") as sidecars:
        await sidecars.start(*NAMES)
        await sidecars.settle(*ORDERS)
        await sidecars.await_copies(*NAMES)
        yield sidecars


@pytest_asyncio.fixture(loop_scope="module")
async def ours(pool) -> AsyncIterator[RedisClient]:
    async with redis_client(pool.members["a"].redis) as client:
        yield client


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    with running_redis(tmp_path_factory.mktemp("redis")) as path:
        yield path


def fresh() -> str:
    return uuid.uuid4().hex


CONVERSATIONS = {
    "greetings": b"PING\r\nPING hi\r\nPING a b\r\nECHO x\r\nECHO\r\n*1\r\n$4\r\nping\r\n",
    "versions": b"HELLO 4\r\nHELLO x\r\nHELLO 3 FOO\r\nHELLO 2 SETNAME\r\nHELLO 3 SETNAME a\r\nCLIENT GETNAME\r\nGET none\r\n",
    "passwords": b"AUTH\r\nAUTH x\r\nAUTH a b c\r\n",
    "names": b'CLIENT SETNAME "a b"\r\nCLIENT GETNAME\r\nCLIENT SETNAME ok\r\nCLIENT GETNAME\r\nCLIENT SETNAME\r\n'
    b"CLIENT NO-EVICT on\r\nCLIENT REPLY ON\r\nCLIENT TRACKING OFF\r\nRESET\r\nCLIENT GETNAME\r\n",
    "databases": b"SELECT 0\r\nSELECT x\r\nSELECT\r\n",
    "transactions": b"EXEC\r\nDISCARD\r\nMULTI\r\nMULTI\r\nDISCARD\r\nMULTI\r\nEXEC\r\nMULTI\r\nGET\r\nEXEC\r\n"
    b"MULTI\r\nSET tk 1\r\nINCR tk\r\nHGET tk f\r\nGET tk\r\nEXEC\r\nDEL tk\r\n",
    "subscriptions": b"SUBSCRIBE one\r\n",
    "clusters": b"CLUSTER INFO\r\nREADONLY\r\n",
    "inline": b"  \r\n\r\nSET ik \"a\\x41\\n\" \r\nGET ik\r\nDEL ik\r\nset ik 'it\\'s'\nGET ik\nDEL ik\n",
    "empty": b"*0\r\n*-1\r\nPING\r\n",
    "mixed": b"*1\r\n$4\r\nPING\r\nPING\r\n*1\r\n$4\r\nPING\r\n",
    "unknown": b"NOSUCH a b\r\nGET\r\n",
}


@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_conversations_are_those_of_redis(ours, real, name):
    said = CONVERSATIONS[name] + b"QUIT\r\n"
    async with redis_client(f"unix:{real}") as reference:
        expected = await reference.until_closed(said)
    assert await ours.until_closed(said) == expected


BROKEN = {
    "unbalanced quotes": b'SET "a\r\n',
    "text after a quote": b'SET "a"b\r\n',
    "a count that is no number": b"*x\r\n",
    "a count that is too large": b"*2147483648\r\n",
    "no bulk": b"*1\r\n:1\r\n",
    "nested arrays": b"*1\r\n" * 2000,
    "a null": b"*1\r\n$-1\r\n",
    "a length that is no number": b"*1\r\n$x\r\n",
    "a bulk of 2 GB": b"*2\r\n$3\r\nGET\r\n$2147483648\r\n",
    "a bulk beyond 64 bits": b"*1\r\n$99999999999999999999999\r\n",
    "an endless line": b"x" * 70_000,
    "an endless count": b"*" + b"1" * 70_000,
    "an endless length": b"*1\r\n$" + b"1" * 70_000,
    "after good ones": b"PING\r\n*1\r\n$4\r\nPING\r\n*1\r\n$x\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
async def test_broken_input_ends_the_connection_as_in_redis(ours, real, name):
    async with redis_client(f"unix:{real}") as reference:
        expected = await reference.until_closed(BROKEN[name])
    assert await ours.until_closed(BROKEN[name]) == expected


async def test_input_in_single_bytes_is_understood(ours):
    key = fresh()
    whole = hiredis.pack_command(("SET", key, "v\r\n")) + hiredis.pack_command(("GET", key)) + b"PING\r\n"
    for byte in whole:
        ours.writer.write(bytes([byte]))
        await ours.writer.drain()
        await asyncio.sleep(0)
    assert await ours.answers(3) == ["OK", b"v\r\n", "PONG"]
    ours.send(("GET", key))
    assert await ours.answer() == b"v\r\n"
