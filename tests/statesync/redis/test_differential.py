"""The commands beside a real Redis: the same sequences of commands give the same bytes, in RESP2 and RESP3.

What may differ: remaining times by the moment at which they are asked for; the order of the members of a set, which
Redis has by its way of storing it, and the order of fields of a hash that was large at some time (a small one has the
order of insertion in both); the figures of MEMORY USAGE
and OBJECT IDLETIME; the place in a script at which an error came.
"""

import re
import time
from collections.abc import Iterator, Sequence
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.statesync.redis.generated import INTEGERS, LONG, LOOKS, NO_INTEGERS, STATES, Argv, grid, sequence
from tests.statesync.redis.server import RawConnection, end_of_reply, running_redis
from understudy.statesync.redis import commands
from understudy.statesync.redis.command import Rule
from understudy.statesync.redis.command_names import NOT_SUPPORTED
from understudy.statesync.redis.commands import KeyCommand, KeyCommands, apply, is_read, parse
from understudy.statesync.redis.keys import delete
from understudy.statesync.redis.reply import RedisError, encode
from understudy.statesync.redis.value import Kind, Value, decode_hash

TOLERANCE = {b"TTL": (2, 1), b"PTTL": (2000, 1000), b"EXPIRETIME": (2, 1), b"PEXPIRETIME": (2000, 1000)}
"""Command -> by how much two replies may differ, and by how much more for each second for which Redis was asked; but
dates that were set as dates are exact."""
SET_AS_DATES = {b"EXPIRETIME": range(3_900_000_000, 6_000_000_000)}
SET_AS_DATES[b"PEXPIRETIME"] = range(3_900_000_000_000, 6_000_000_000_000)
OF_HASHES = {b"HGETALL", b"HKEYS", b"HVALS"}
LONGEST_IN_ORDER = 64


@pytest.fixture(scope="module", params=[2, 3], ids=["RESP2", "RESP3"])
def redis(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Peer"]:
    with running_redis(tmp_path_factory.mktemp("redis")) as path:
        connection = RawConnection(path, request.param)
        yield Peer(connection, request.param)
        connection.close()


class Peer:
    """A real Redis, and beside it a dictionary of values that our commands change."""

    def __init__(self, connection: RawConnection, protocol: int) -> None:
        self.connection = connection
        self.protocol = protocol
        self.values: dict[bytes, Value | None] = {}
        self.once_large: set[bytes] = set()

    def run(self, argv: Argv, now_ms: int) -> bytes:
        """Our reply."""
        command = parse(argv)
        if isinstance(command, RedisError):
            return encode(command, self.protocol)
        if isinstance(command, KeyCommand):
            return encode(self._apply(command, now_ms), self.protocol)
        assert isinstance(command, KeyCommands)
        return encode(command.combine([self._apply(part, now_ms) for part in command.parts]), self.protocol)

    def _apply(self, command: KeyCommand, now_ms: int) -> object:
        before = self.values.get(command.key)
        if before is not None and before.expires is not None and before.expires <= now_ms:
            before = None
        reply, after = apply(command, before, now_ms)
        assert after is before or not (is_read(command) or isinstance(reply, RedisError))
        self.values[command.key] = after
        if after is None:
            self.once_large.discard(command.key)
        elif after.kind is Kind.HASH and len(max(chain(*decode_hash(after.data).items()), key=len)) > LONGEST_IN_ORDER:
            self.once_large.add(command.key)
        return reply

    def check(self, commands: Sequence[Argv]) -> None:
        """Both give the same replies to these commands."""
        self.values.clear()
        self.once_large.clear()
        asked_ms = time.time_ns() // 1_000_000
        theirs = self.connection.ask([(b"FLUSHALL",), *commands])[1:]
        now_ms = time.time_ns() // 1_000_000
        for argv, their in zip(commands, theirs, strict=True):
            our = self.run(argv, now_ms)
            assert self.same(argv, our, their, now_ms - asked_ms), f"{argv}: {our!r} instead of {their!r}"

    def same(self, argv: Argv, our: bytes, their: bytes, took_ms: int = 0) -> bool:
        if our == their:
            return True
        name = argv[0].upper()
        if name == b"SMEMBERS" or (name in OF_HASHES and argv[1] in self.once_large):
            return items_of(our, pairs=name == b"HGETALL") == items_of(their, pairs=name == b"HGETALL")
        if name in {b"MEMORY", b"OBJECT"}:
            return our[:1] == their[:1] == b":"
        if name == b"EVAL" and their[:1] == b"-":
            return our == re.sub(rb" script: .*\r\n", b"\r\n", their)
        if our[:1] != b":" or their[:1] != b":" or int(our[1:]) <= 0 or int(their[1:]) in SET_AS_DATES.get(name, ()):
            return False
        tolerance, per_second = TOLERANCE.get(name, (0, 0))
        return abs(int(our[1:]) - int(their[1:])) <= tolerance + took_ms * per_second / 1000


def items_of(reply: bytes, *, pairs: bool) -> tuple[bytes, list[object]]:
    """The head of an array, and its items (or pairs of items) in some fixed order."""
    at = reply.index(b"\r\n") + 2
    head, items = reply[:at], []
    while at < len(reply):
        end = end_of_reply(reply, at)
        assert end is not None
        items.append(reply[at:end])
        at = end
    return head, sorted(zip(items[::2], items[1::2], strict=True) if pairs else items)


@pytest.mark.parametrize("state", STATES, ids=["no key", "integer", "string", "empty", "hash", "set"])
def test_every_option_of_every_command_is_that_of_redis(redis: Peer, state: tuple[Argv, ...]) -> None:
    redis.check([argv for asked in grid() for argv in ((b"DEL", b"a"), *state, asked, *LOOKS)])


@settings(max_examples=150)
@given(commands=sequence)
def test_the_same_commands_give_the_same_bytes(redis: Peer, commands: list[Argv]) -> None:
    redis.check(commands)


@settings(max_examples=100)
@given(
    one=st.floats().map(repr) | st.decimals(allow_nan=False).map(str),
    other=st.floats(-1e9, 1e9).map(repr) | st.integers().map(str),
)
def test_floats_are_read_added_and_written_alike(redis: Peer, one: str, other: str) -> None:
    a, b = one.encode(), other.encode()
    redis.check(
        [(b"SET", b"a", a), (b"INCRBYFLOAT", b"a", b), (b"HSET", b"b", b"f", a), (b"HINCRBYFLOAT", b"b", b"f", b)]
    )


@pytest.mark.parametrize(
    "argv",
    [
        *((b"SET", b"a", text) for text in (*INTEGERS, *NO_INTEGERS, b"9999", b"10000", *LONG)),
        (b"HSET", b"a", b"f", b"v" * 64),
        (b"HSET", b"a", b"f", b"v" * 65),
        (b"HSET", b"a", b"f" * 65, b"v"),
        (b"HSET", b"a", *(b"%d" % (i // 2) for i in range(1024))),
        (b"HSET", b"a", *(b"%d" % (i // 2) for i in range(1026))),
        (b"SADD", b"a", b"1", b"2"),
        (b"SADD", b"a", b"1", b"two"),
        (b"SADD", b"a", *(b"%d" % i for i in range(512))),
        (b"SADD", b"a", *(b"%d" % i for i in range(513))),
    ],
    ids=lambda argv: repr(b" ".join(argv)[:30]),
)
def test_a_new_key_has_the_encoding_that_redis_gives_it(redis: Peer, argv: Argv) -> None:
    redis.check([argv, (b"OBJECT", b"ENCODING", b"a"), (b"OBJECT", b"REFCOUNT", b"a")])


def test_the_number_of_arguments_is_that_of_redis(redis: Peer) -> None:
    for name, rule in (commands._RULES | {b"MSET": Rule(-3, read=False, apply=delete)}).items():
        if not name.startswith(b"SCRIPT:"):
            (info,) = redis.connection.ask([(b"COMMAND", b"INFO", name.replace(b" ", b"|"))])
            assert re.search(rb":(-?\d+)\r\n", info)[1] == b"%d" % rule.arity, name


def test_every_command_of_redis_is_supported_or_said_not_to_be(redis: Peer) -> None:
    (listed,) = redis.connection.ask([(b"COMMAND", b"LIST")])
    theirs = {name.upper() for name in re.findall(rb"\$\d+\r\n([a-z_-]+)\r\n", listed)}
    ours = {name for name in commands._RULES if not name.startswith(b"SCRIPT:") and b" " not in name}
    assert theirs == NOT_SUPPORTED | ours | {b"MSET", b"OBJECT", b"MEMORY", b"EVAL", b"EVALSHA"}
    assert not NOT_SUPPORTED & ours
