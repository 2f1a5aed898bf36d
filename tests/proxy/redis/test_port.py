"""The Redis port of real sidecars on a real etcd, beside a real Redis where the answers must be the same bytes."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import hiredis
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings

from tests.harness.examples import examples
from tests.harness.redis_client import RedisClient, redis_client
from tests.harness.sidecars import SidecarPool
from tests.proxy.redis.three_owners import ORDERS, three_owners
from tests.statesync.redis.comparison import Peer
from tests.statesync.redis.generated import KEYS, RELEASE, Argv, sequence
from tests.statesync.redis.server import RawConnection, running_redis

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(etcd) -> AsyncIterator[SidecarPool]:
    async with three_owners(etcd) as sidecars:
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


class Both(Peer):
    """A real Redis, and our port beside it."""

    def __init__(self, reference: RawConnection, port: RawConnection, protocol: int) -> None:
        super().__init__(reference, protocol)
        self.port = port
        self.once_large = set(KEYS)

    def check(self, commands: Sequence[Argv]) -> None:
        """Both give the same answers to these commands, which are sent at once.

        Ours has no empty key (docs/redis.md): where a command names one, the two differ from then on.
        """
        theirs = self.connection.ask([(b"FLUSHALL",), *commands])[1:]
        ours = self.port.ask([*((b"DEL", key) for key in KEYS), *commands])[len(KEYS) :]
        for argv, our, their in zip(commands, ours, theirs, strict=True):
            if b"" in argv and our.startswith(b"-ERR bad-key: the key has 0 bytes"):
                return
            assert self.same(argv, our, their), f"{argv}: {our!r} instead of {their!r}"


@pytest.mark.parametrize("protocol", [2, 3])
async def test_generated_commands_give_the_bytes_of_redis_whoever_owns_their_keys(pool, real, protocol):
    both = Both(RawConnection(real, protocol), RawConnection(pool.members["a"].redis, protocol), protocol)

    @settings(max_examples=examples(30), suppress_health_check=list(HealthCheck))
    @given(commands=sequence)
    def play(commands: list[Argv]) -> None:
        both.check(commands)

    await asyncio.to_thread(play)


CONVERSATIONS = {
    "greetings": b"PING\r\nPING hi\r\nPING a b\r\nECHO x\r\nECHO\r\n*1\r\n$4\r\nping\r\n",
    "versions": b"HELLO 4\r\nHELLO x\r\nHELLO 3 FOO\r\nHELLO 2 SETNAME\r\nGET none\r\n",
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


async def test_the_greeting_in_version_3_has_what_clients_look_for(ours):
    ours.send(("HELLO", 3, "SETNAME", "x"), ("GET", fresh()), ("CLIENT", "GETNAME"))
    greeting, nothing, name = await ours.answers(3)
    assert (greeting[b"server"], greeting[b"proto"], greeting[b"mode"], greeting[b"role"]) == (
        *(b"redis", 3, b"standalone", b"master"),
    )
    assert (type(greeting[b"id"]), nothing, name) == (int, None, b"x")


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
    assert await ours.answers(3) == [b"OK", b"v\r\n", b"PONG"]
    ours.send(("GET", key))
    assert await ours.answer() == b"v\r\n"


async def test_a_pipeline_over_the_keys_of_all_members_is_answered_in_order(ours):
    keys = [fresh() for _ in range(12)]
    commands = [command for n in range(10) for key in keys for command in (("SET", key, n), ("GET", key))]
    ours.send(*commands)
    answers = await ours.answers(len(commands))
    assert answers[::2] == [b"OK"] * (len(commands) // 2)
    assert answers[1::2] == [str(n).encode() for n in range(10) for _ in keys]


async def test_commands_on_several_keys_reach_every_owner(ours):
    keys = [fresh() for _ in range(9)]
    assert await ours("MSET", *(word for key in keys for word in (key, key[:3]))) == b"OK"
    assert await ours("MGET", *keys, "none") == [*(key[:3].encode() for key in keys), None]
    assert await ours("EXISTS", *keys, keys[0]) == 10
    assert await ours("MSET", *(word for n in range(40) for word in (keys[n % 9], n))) == b"OK"
    assert await ours("MGET", *keys) == [b"36", b"37", b"38", b"39", *(b"%d" % n for n in range(31, 36))]
    assert await ours("DEL", *keys, *keys, "none") == 9
    assert await ours("MGET", *keys) == [None] * 9


async def test_a_key_is_renamed_from_one_member_to_another(ours):
    for source, target in [(fresh(), fresh()) for _ in range(8)]:
        await ours("HSET", source, "f", b"\xff")
        await ours("PEXPIRE", source, 500_000)
        expires = await ours("PEXPIRETIME", source)
        assert await ours("RENAME", source, target) == b"OK"
        assert (await ours("EXISTS", source), await ours("HGETALL", target)) == (0, [b"f", b"\xff"])
        assert await ours("PEXPIRETIME", target) == expires
        await ours("SET", source, "other")
        assert await ours("RENAMENX", source, target) == 0
        assert (await ours("GET", source), await ours("TYPE", target)) == (b"other", b"hash")
        assert await ours("RENAME", source, source) == b"OK"
        assert str(await ours("RENAME", fresh(), target)) == "ERR no such key"


async def test_a_transaction_is_on_one_key_and_the_others_see_all_of_it_or_nothing(pool, ours):
    key = fresh()
    async with redis_client(pool.members["b"].redis) as other:
        ours.send(("MULTI",), ("SET", key, "v", "EX", 100), ("APPEND", key, "w"), ("GET", key))
        await ours.answers(4)
        assert await other("GET", key) is None
        assert await ours("EXEC") == [b"OK", 2, b"vw"]
        assert await other("GET", key) == b"vw"
    ours.send(("MULTI",), ("SET", key, "1"), ("SET", fresh(), "2"), ("EXEC",))
    _, _, crossing, outcome = await ours.answers(4)
    assert str(crossing).startswith("CROSSSLOT")
    assert str(outcome).startswith("EXECABORT")
    assert await ours("GET", key) == b"vw"


async def test_sessions_are_the_same_over_redis_and_http(pool, ours):
    key = fresh()
    await ours("SET", key, "from redis", "EX", 100)
    status, headers, body = await pool.call("b", "GET", f"/{key}")
    assert (status, body) == (200, b"from redis")
    await pool.call("c", "PUT", f"/{key}", b"from http", If_Match=headers["etag"])
    assert await ours("GET", key) == b"from http"
    assert 0 < await ours("TTL", key) <= pool.spec.session_ttl


async def test_a_scan_finds_the_keys_of_all_members(pool, ours):
    mark = fresh()
    keys = {f"{mark}:{n}".encode() for n in range(40)}
    await ours("MSET", *(word for key in keys for word in (key, "v")))
    await ours("HSET", f"{mark}:hash", "f", "v")
    await ours("SET", f"{mark}:gone", "v")
    await ours("DEL", f"{mark}:gone")

    async def found(*options: str) -> set[bytes]:
        cursor, everything = b"0", set()
        while True:
            cursor, some = await ours("SCAN", cursor, *options)
            everything |= set(some)
            if cursor == b"0":
                return everything

    assert await found("MATCH", f"{mark}:[0-9]*") == keys
    assert await found("MATCH", f"{mark}*", "COUNT", "1000") == {*keys, f"{mark}:hash".encode()}
    assert await found("MATCH", f"{mark}*", "TYPE", "hash") == {f"{mark}:hash".encode()}
    assert await ours("DBSIZE") >= len(keys) + 1
    for wrong, error in ((("x",), "ERR invalid cursor"), (("0", "COUNT", "0"), "ERR syntax error"), ((), "ERR wrong")):
        assert str(await ours("SCAN", *wrong)).startswith(error)


async def test_wait_counts_the_members_that_have_the_last_write(pool, ours):
    await ours("SET", fresh(), "v")
    assert await ours("WAIT", 2, 0) == 2
    assert await ours("WAIT", 5, 100) == 2
    assert str(await ours("WAIT", "x", 0)).startswith("ERR value is not an integer")


async def test_scripts_are_known_by_their_text_and_their_digest(ours):
    key, text = fresh(), RELEASE
    digest = await ours("SCRIPT", "LOAD", text)
    assert await ours("SCRIPT", "EXISTS", digest, "0" * 40) == [1, 0]
    await ours("SET", key, "me")
    assert await ours("EVALSHA", digest, 1, key, "other") == 0
    assert await ours("EVALSHA", digest, 1, key, "me") == 1
    assert await ours("EXISTS", key) == 0
    assert "docs/redis.md" in str(await ours("SCRIPT", "LOAD", "return 1"))


async def test_a_value_beyond_the_limit_is_refused_and_the_connection_goes_on(pool, ours):
    key = fresh()
    assert str(await ours("SET", key, b"x" * (pool.spec.limits.session_bytes + 1))).startswith("OOM session-too-large")
    assert await ours("EXISTS", key) == 0
    assert str(await ours("SET", "k" * 513, "v")).startswith("ERR bad-key")
    assert await ours("SET", key, b"x" * pool.spec.limits.session_bytes) == b"OK"


async def test_a_client_that_reads_nothing_costs_no_memory_and_no_neighbour(pool, ours):
    key = pool.key_in(ORDERS, "a")
    await ours("SET", key, b"x" * 60_000)
    before = memory_of(pool)
    async with redis_client(pool.members["a"].redis) as lazy:
        lazy.writer.transport.set_write_buffer_limits(1 << 30)
        lazy.send(*[("GET", key)] * 20_000)  # 1.2 GB of answers
        for _ in range(200):
            assert await ours("GET", key) == b"x" * 60_000
        assert memory_of(pool) - before < 60_000_000


async def test_a_thousand_idle_connections_cost_little(pool, ours):
    before = memory_of(pool)
    idle = [await RedisClient.connect(pool.members["a"].redis) for _ in range(1000)]
    try:
        assert await idle[-1]("PING") == b"PONG"
        assert await ours("SET", fresh(), "v") == b"OK"
        assert (memory_of(pool) - before) / len(idle) < 30_000
    finally:
        for client in idle:
            client.close()


def memory_of(pool: SidecarPool) -> int:
    """Resident bytes of the sidecar that the clients are connected to."""
    status = Path(f"/proc/{pool.members['a'].sidecar.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) * 1024


async def test_a_transaction_and_subscriptions_have_an_end(ours):
    await ours("MULTI")
    ours.send(*[("SET", "k", "v")] * 1001)
    answers = await ours.answers(1001)
    assert answers[:1000] == [b"QUEUED"] * 1000
    assert str(answers[1000]) == "ERR a transaction has at most 1000 commands"
    assert str(await ours("EXEC")).startswith("EXECABORT")
    ours.send(*[("SUBSCRIBE", f"c{n}") for n in range(101)])
    assert str((await ours.answers(101))[100]) == "ERR a connection has at most 100 subscriptions here"
