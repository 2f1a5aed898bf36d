"""Commands one by one: errors, rules of expiry, and what is one key's business."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.harness.examples import examples
from tests.harness.places import ROOT
from tests.statesync.redis.generated import command as some_command
from understudy.statesync.redis import commands, strings
from understudy.statesync.redis.commands import Effect, KeyCommand, KeyCommands, apply, is_read, parse, refusal
from understudy.statesync.redis.reply import OK, WRONG_TYPE, RedisError, encode
from understudy.statesync.redis.value import HASH_TYPE, SET_TYPE, Kind, Value, encode_hash, encode_set, kind_of

NOW = 1_800_000_000_000
TEXT = Value(Kind.STRING, b"text", None)
LASTING = Value(Kind.STRING, b"10", NOW + 60_000)
HASH = Value(Kind.HASH, encode_hash({b"f": b"1"}), NOW + 60_000)
SET = Value(Kind.SET, encode_set([b"m"]), NOW + 60_000)
CORRUPT = Value(Kind.HASH, b"{}", None)


def run(line: str, before: Value | None = None) -> Effect:
    """The effect of a command on one key."""
    command = parse(line.encode().split())
    assert isinstance(command, KeyCommand), command
    return apply(command, before, NOW)


def refused(*argv: bytes) -> str:
    """The text of the error that a command gets before its key is looked at."""
    found = parse(argv)
    assert isinstance(found, RedisError)
    return found.text


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("get", "ERR wrong number of arguments for 'get' command"),
        ("GET a b", "ERR wrong number of arguments for 'get' command"),
        ("mset a 1 b", "ERR wrong number of arguments for 'mset' command"),
        ("hset a f 1 g", "ERR wrong number of arguments for 'hset' command"),
        ("object encoding", "ERR wrong number of arguments for 'object|encoding' command"),
        ("object", "ERR wrong number of arguments for 'object' command"),
        ("object foo a", "ERR unknown subcommand 'foo'. Try OBJECT HELP."),
        ("set a b EX", "ERR syntax error"),
        ("set a b NX XX", "ERR syntax error"),
        ("set a b EX 1 KEEPTTL", "ERR syntax error"),
        ("set a b EX 0", "ERR invalid expire time in 'set' command"),
        ("setex a -1 b", "ERR invalid expire time in 'setex' command"),
        ("set a b PX 1.5", "ERR value is not an integer or out of range"),
        ("expire a 1 GT LT", "ERR GT and LT options at the same time are not compatible"),
        ("expire a 1 NX GT", "ERR NX and XX, GT or LT options at the same time are not compatible"),
        ("expire a 1 foo", "ERR Unsupported option foo"),
        ("decrby a -9223372036854775808", "ERR decrement would overflow"),
        ("foo a b", "ERR unknown command 'foo', with args beginning with: 'a' 'b' "),
        ("get|key a", "ERR unknown command 'get|key', with args beginning with: 'a' "),
        ("script:release a 1", "ERR unknown command 'script:release', with args beginning with: 'a' '1' "),
        ("lpush a b", "ERR command 'lpush' is not supported by Understudy's Redis port; see docs/redis.md"),
        ("object help", "ERR command 'object|help' is not supported by Understudy's Redis port; see docs/redis.md"),
        ("rename a b", "ERR command 'rename' is not supported by Understudy's Redis port; see docs/redis.md"),
    ],
)
def test_a_wrong_command_gets_its_error_before_any_key_is_looked_at(line: str, text: str) -> None:
    assert refused(*line.encode().split()) == text


def test_the_arguments_of_an_unknown_command_are_cut() -> None:
    assert refused(b"x" * 200, b"y" * 100, b"z" * 100, b"w") == (
        f"ERR unknown command '{'x' * 128}', with args beginning with: '{'y' * 100}' '{'z' * 25}' "
    )


def test_no_command_at_all_is_an_error() -> None:
    assert refused().startswith("ERR unknown command ''")


def test_a_space_makes_no_subcommand() -> None:
    assert refused(b"OBJECT ENCODING", b"a", b"b").startswith("ERR unknown command 'OBJECT ENCODING'")


def test_options_are_no_business_of_the_check_at_queueing() -> None:
    assert refusal([b"SET", b"a", b"b", b"FOO"]) is None
    assert refusal([b"EVAL", b"x", b"0"]) is None
    assert refusal([b"SET", b"a"]) == parse([b"SET", b"a"])


@pytest.mark.parametrize(
    ("line", "before", "expires"),
    [
        ("SET a b", LASTING, None),
        ("SET a b KEEPTTL", LASTING, NOW + 60_000),
        ("SET a b KEEPTTL", None, None),
        ("SET a b EX 5", LASTING, NOW + 5_000),
        ("SET a b px 5", None, NOW + 5),
        ("SET a b EXAT 1800000001", None, NOW + 1_000),
        ("SETEX a 5 b", None, NOW + 5_000),
        ("GETSET a b", LASTING, None),
        ("GETEX a", LASTING, NOW + 60_000),
        ("GETEX a PERSIST", LASTING, None),
        ("GETEX a EX 5", LASTING, NOW + 5_000),
        ("APPEND a b", LASTING, NOW + 60_000),
        ("SETRANGE a 1 b", LASTING, NOW + 60_000),
        ("INCR a", LASTING, NOW + 60_000),
        ("INCRBYFLOAT a 0.5", LASTING, NOW + 60_000),
        ("HSET a g 1", HASH, NOW + 60_000),
        ("HMSET a g 1", HASH, NOW + 60_000),
        ("HINCRBY a f 1", HASH, NOW + 60_000),
        ("SADD a n", SET, NOW + 60_000),
        ("PERSIST a", LASTING, None),
        ("EXPIRE a 100 GT", LASTING, NOW + 100_000),
        ("EXPIRE a 30 GT", LASTING, NOW + 60_000),
        ("EXPIRE a 30 LT", LASTING, NOW + 30_000),
        ("EXPIRE a 60 LT", LASTING, NOW + 60_000),
        ("EXPIRE a 30 LT", TEXT, NOW + 30_000),
        ("EXPIRE a 30 GT", TEXT, None),
        ("EXPIRE a 30 XX", TEXT, None),
        ("EXPIRE a 30 NX", TEXT, NOW + 30_000),
        ("EXPIRE a 30 NX", LASTING, NOW + 60_000),
    ],
)
def test_what_becomes_of_the_expiry(line: str, before: Value | None, expires: int | None) -> None:
    after = run(line, before).after
    assert after is not None
    assert after.expires == expires


@pytest.mark.parametrize(
    ("line", "before", "reply"),
    [
        ("EXPIRE a 0", TEXT, 1),
        ("PEXPIRE a -1 LT", LASTING, 1),
        ("EXPIREAT a 1", HASH, 1),
        ("SET a b PXAT 1", TEXT, OK),
        ("SET a b PXAT 1", None, OK),
        ("GETEX a PXAT 1", TEXT, b"text"),
        ("GETDEL a", TEXT, b"text"),
        ("DEL a", SET, 1),
        ("HDEL a f", HASH, 1),
        ("SREM a m x", SET, 1),
    ],
)
def test_what_deletes_the_key(line: str, before: Value | None, reply: object) -> None:
    assert run(line, before) == Effect(reply, None)


@pytest.mark.parametrize(
    ("line", "before", "reply"),
    [
        ("SET a b NX", TEXT, None),
        ("SET a b XX", None, None),
        ("SET a b NX GET", TEXT, b"text"),
        ("SETNX a b", TEXT, 0),
        ("SETRANGE a 0 x", HASH, WRONG_TYPE),
        ("SET a b GET", HASH, WRONG_TYPE),
        ("HSETNX a f 2", HASH, 0),
        ("HDEL a g", HASH, 0),
        ("SADD a m", SET, 0),
        ("EXPIRE a 5", None, 0),
        ("PERSIST a", TEXT, 0),
        ("GETEX a EX nonsense", None, None),
        ("TTL a", None, -2),
        ("TTL a", TEXT, -1),
        ("TTL a", LASTING, 60),
        ("PTTL a", LASTING, 60_000),
        ("EXPIRETIME a", LASTING, 1_800_000_060),
        ("EXISTS a", TEXT, 1),
        ("TOUCH a", None, 0),
        ("INCR a", TEXT, RedisError("ERR value is not an integer or out of range")),
        ("HGET a f", TEXT, WRONG_TYPE),
        ("SMEMBERS a", HASH, WRONG_TYPE),
        ("SETRANGE a 536870912 x", TEXT, RedisError("ERR string exceeds maximum allowed size (proto-max-bulk-len)")),
        (
            "HGETALL a",
            CORRUPT,
            RedisError("ERR the stored value is no RESP"),
        ),
    ],
)
def test_what_changes_nothing_leaves_the_very_value(line: str, before: Value | None, reply: object) -> None:
    effect = run(line, before)
    assert effect.reply == reply
    assert effect.after is before


@pytest.mark.parametrize("line", ["MGET a b a", "DEL a b a", "UNLINK a b a", "EXISTS a b a", "TOUCH a b a"])
def test_a_command_on_several_keys_is_one_on_each(line: str) -> None:
    command = parse(line.encode().split())
    assert isinstance(command, KeyCommands)
    assert [part.key for part in command.parts] == [b"a", b"b", b"a"]
    no = RedisError("OOM no")
    assert command.combine([1, no, 1]) == no
    assert command.combine([1, 0, 1]) == ([1, 0, 1] if line.startswith("MGET") else 2)


def test_mset_is_a_set_of_each() -> None:
    command = parse([b"MSET", b"a", b"1", b"b", b"2"])
    assert isinstance(command, KeyCommands)
    assert command.parts == (KeyCommand(b"SET", b"a", (b"1",)), KeyCommand(b"SET", b"b", (b"2",)))
    assert command.combine([OK, OK]) == OK
    assert command.combine([OK, WRONG_TYPE]) == WRONG_TYPE


def test_a_single_key_needs_no_combination() -> None:
    assert parse([b"del", b"a"]) == KeyCommand(b"DEL", b"a", ())


def test_mget_has_nothing_for_a_key_that_holds_no_string() -> None:
    command = parse([b"MGET", b"a"])
    assert isinstance(command, KeyCommands)
    assert apply(command.parts[0], HASH, NOW).reply is None


@pytest.mark.parametrize("line", ["GET a", "get a", "TTL a", "TOUCH a", "HGETALL a", "OBJECT ENCODING a", "SMEMBERS a"])
def test_reads_are_known(line: str) -> None:
    command = parse(line.encode().split())
    assert isinstance(command, KeyCommand)
    assert is_read(command)


@pytest.mark.parametrize("line", ["SET a b", "GETEX a", "EXPIRE a 1", "DEL a", "HSET a f 1", "SREM a m"])
def test_writes_are_no_reads(line: str) -> None:
    command = parse(line.encode().split())
    assert isinstance(command, KeyCommand)
    assert not is_read(command)


def test_a_command_of_a_newer_version_is_refused() -> None:
    reply, after = apply(KeyCommand(b"NEWER", b"a", ()), TEXT, NOW)
    assert isinstance(reply, RedisError)
    assert after is TEXT


def test_long_options_are_not_remembered() -> None:
    kept = strings._remembered_options.cache_info().currsize
    assert refused(b"SET", b"a", b"b", b"EX", b"1" * 100_000) == "ERR value is not an integer or out of range"
    assert strings._remembered_options.cache_info().currsize == kept


NAMES = (
    *(b"SET", b"GETEX", b"SETRANGE", b"GETRANGE", b"APPEND", b"INCRBYFLOAT", b"INCRBY", b"HSET", b"HINCRBYFLOAT"),
    *(b"EXPIRE", b"PEXPIREAT", b"OBJECT", b"MEMORY", b"EVAL", b"EVALSHA", b"MSET", b"MGET", b"SADD", b"HGETALL"),
)
NASTY = (
    b"",
    b"\x00",
    b"\r\n",
    b"\xff",
    b"1e999999999999",
    b"1e-99999",
    b"0x" + b"f" * 5000,
    b"9" * 5119,
    b"." + b"0" * 5000,
)


@settings(max_examples=examples(200))
@given(
    argv=st.lists(st.sampled_from(NASTY) | st.binary(max_size=4), max_size=5).flatmap(
        lambda args: st.sampled_from(NAMES).map(lambda name: (name, *args)) | st.just(tuple(args))
    )
    | some_command,
    before=st.sampled_from([None, TEXT, LASTING, HASH, SET, CORRUPT]),
    now_ms=st.integers(0, 1 << 63),
)
@example(argv=(b"INCRBYFLOAT", b"a", b"1e4900"), before=Value(Kind.STRING, b"9" * 4900, None), now_ms=0)
def test_no_input_raises(argv: tuple[bytes, ...], before: Value | None, now_ms: int) -> None:
    command = parse(argv)
    for part in command.parts if isinstance(command, KeyCommands) else (command,):
        reply, after = apply(part, before, now_ms) if isinstance(part, KeyCommand) else Effect(part, None)
        assert encode(reply, 2)
        assert encode(reply, 3)
        assert after is None or after.expires is None or after.expires <= (1 << 63)


def test_the_kinds_of_sessions_are_those_of_values() -> None:
    assert [kind_of(HASH_TYPE), kind_of(SET_TYPE)] == [Kind.HASH, Kind.SET]


def test_the_page_names_every_command() -> None:
    table = (ROOT / "docs/redis.md").read_text().partition("| commands |")[2].partition("\n\n")[0]
    named = {name for row in table.splitlines() for name in re.findall(r"`([A-Z ]+)`", "|".join(row.split("|")[2:3]))}
    rules = {name.decode() for name in commands._RULES if not name.startswith(b"SCRIPT:")}
    assert named == rules | {"MSET", "EVAL", "EVALSHA"}
