"""The commands beside a real Redis: the same sequences of commands give the same bytes, in RESP2 and RESP3."""

import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness.examples import examples
from tests.statesync.redis.comparison import Peer
from tests.statesync.redis.generated import INTEGERS, LONG, LOOKS, NO_INTEGERS, STATES, Argv, grid, sequence
from tests.statesync.redis.server import RawConnection, running_redis
from understudy.statesync.redis import commands
from understudy.statesync.redis.command import Rule
from understudy.statesync.redis.command_names import NOT_SUPPORTED
from understudy.statesync.redis.keys import delete


@pytest.fixture(scope="module", params=[2, 3], ids=["RESP2", "RESP3"])
def redis(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as path:
        connection = RawConnection(path, request.param)
        yield Peer(connection, request.param)
        connection.close()


@pytest.mark.parametrize("state", STATES, ids=["no key", "integer", "string", "empty", "hash", "set"])
def test_every_option_of_every_command_is_that_of_redis(redis: Peer, state: tuple[Argv, ...]) -> None:
    redis.check([argv for asked in grid() for argv in ((b"DEL", b"a"), *state, asked, *LOOKS)])


@settings(max_examples=examples(150))
@given(commands=sequence)
def test_the_same_commands_give_the_same_bytes(redis: Peer, commands: list[Argv]) -> None:
    redis.check(commands)


@settings(max_examples=examples(100))
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
