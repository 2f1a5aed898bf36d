"""Scripts of known clients, carried out natively."""

import pytest

from tests.statesync.redis.generated import (
    ADD,
    LOCK_EXTEND,
    LOCK_REACQUIRE,
    LOCK_RELEASE,
    REFRESH,
    RELEASE,
    SCRIPTS,
    STORE_HASH,
)
from understudy.statesync.redis import scripts
from understudy.statesync.redis.commands import (
    KeyCommand,
    apply,
    is_read,
    known_script,
    load_script,
    parse,
    script_sha1,
)
from understudy.statesync.redis.reply import OK, RedisError
from understudy.statesync.redis.scripts import NO_SCRIPT, NOT_SUPPORTED
from understudy.statesync.redis.value import Kind, Value, decode_hash

NOW = 1_800_000_000_000
MINE = Value(Kind.STRING, b"mine", NOW + 60_000)
FOR_EVER = Value(Kind.STRING, b"mine", None)
PHPREDIS = b"b70c2384248f88e6b75b9f89241a180f856ad852"


@pytest.fixture(autouse=True)
def _nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts, "_remembered", {})


def run(text: bytes, before: Value | None, *args: bytes) -> tuple[object, Value | None]:
    command = parse([b"EVAL", text, b"1", b"a", *args])
    assert isinstance(command, KeyCommand), command
    assert not is_read(command)
    return apply(command, before, NOW)


@pytest.mark.parametrize("text", [RELEASE, LOCK_RELEASE])
def test_only_the_owner_releases_a_lock(text: bytes) -> None:
    assert run(text, MINE, b"mine") == (1, None)
    assert run(text, MINE, b"yours") == (0, MINE)
    assert run(text, None, b"mine") == (0, None)


def test_add_sets_what_is_not_there() -> None:
    assert run(ADD, None, b"v", b"5") == (OK, Value(Kind.STRING, b"v", NOW + 5_000))
    assert run(ADD, MINE, b"v", b"5") == (None, MINE)


def test_a_lock_is_refreshed_or_made_to_last() -> None:
    assert run(REFRESH, MINE, b"mine", b"5") == (1, Value(Kind.STRING, b"mine", NOW + 5_000))
    assert run(REFRESH, MINE, b"mine", b"0") == (1, FOR_EVER)
    assert run(REFRESH, MINE, b"yours", b"5") == (0, MINE)


def test_a_lock_is_extended_by_a_time_or_to_it() -> None:
    assert run(LOCK_EXTEND, MINE, b"mine", b"5000", b"0") == (1, Value(Kind.STRING, b"mine", NOW + 65_000))
    assert run(LOCK_EXTEND, MINE, b"mine", b"5000", b"1") == (1, Value(Kind.STRING, b"mine", NOW + 5_000))
    assert run(LOCK_EXTEND, FOR_EVER, b"mine", b"5000", b"1") == (0, FOR_EVER)
    assert run(LOCK_EXTEND, MINE, b"yours", b"5000", b"1") == (0, MINE)


def test_a_lock_is_reacquired() -> None:
    assert run(LOCK_REACQUIRE, FOR_EVER, b"mine", b"5000") == (1, Value(Kind.STRING, b"mine", NOW + 5_000))
    assert run(LOCK_REACQUIRE, MINE, b"mine", b"0") == (1, None)


def test_an_entry_of_a_cache_is_stored() -> None:
    reply, after = run(STORE_HASH, None, b"-1", b"9", b"60", b"data")
    assert (reply, after and after.expires) == (1, NOW + 60_000)
    assert after is not None
    assert decode_hash(after.data) == {b"absexp": b"-1", b"sldexp": b"9", b"data": b"data"}
    _, after = run(STORE_HASH, None, b"-1", b"-1", b"-1", b"data")
    assert after is not None
    assert after.expires is None


def test_an_error_within_a_script_changes_nothing() -> None:
    reply, after = run(STORE_HASH, None, b"-1", b"9", b"soon", b"data")
    assert isinstance(reply, RedisError)
    assert after is None


def test_a_client_that_sends_the_sha1_first_is_understood() -> None:
    assert parse([b"EVALSHA", PHPREDIS, b"1", b"a", b"x"]) == KeyCommand(b"SCRIPT:release", b"a", (b"x",))
    assert parse([b"evalsha", PHPREDIS.upper(), b"1", b"a", b"x"]) == KeyCommand(b"SCRIPT:release", b"a", (b"x",))
    assert known_script(PHPREDIS)


@pytest.mark.parametrize("text", SCRIPTS)
def test_a_text_with_other_white_space_is_known_by_its_sha1_from_then_on(text: bytes) -> None:
    variant = b"\n\t" + text.replace(b" ", b"  ").replace(b'"', b"'") + b"\n"
    assert parse([b"EVALSHA", script_sha1(variant), b"1", b"a"]) == NO_SCRIPT
    assert load_script(variant) == script_sha1(variant)
    assert known_script(script_sha1(variant))
    assert isinstance(parse([b"EVALSHA", script_sha1(variant), b"1", b"a", b"1", b"2", b"3", b"4"]), KeyCommand)


def test_only_so_many_texts_are_remembered() -> None:
    for spaces in range(scripts._MOST_REMEMBERED + 5):
        load_script(b" " * spaces + ADD)
    assert len(scripts._remembered) == scripts._MOST_REMEMBERED


@pytest.mark.parametrize(
    "text",
    [b"return 1", b"", RELEASE.replace(b"del", b"get"), RELEASE.replace(b'"get"', b'"ge t"'), RELEASE + b" " * 4096],
)
def test_another_script_is_refused(text: bytes) -> None:
    assert parse([b"EVAL", text, b"1", b"a", b"x"]) == NOT_SUPPORTED
    assert load_script(text) == NOT_SUPPORTED
    assert "docs/redis.md" in NOT_SUPPORTED.text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((RELEASE, b"x", b"a"), "ERR value is not an integer or out of range"),
        ((RELEASE, b"3", b"a"), "ERR Number of keys can't be greater than number of args"),
        ((RELEASE, b"-1", b"a"), "ERR Number of keys can't be negative"),
        ((RELEASE, b"0", b"a"), "ERR this script takes exactly one key in Understudy's Redis port; see docs/redis.md"),
        ((RELEASE, b"1", b"a"), "ERR this script needs more arguments"),
        ((RELEASE,), "ERR wrong number of arguments for 'eval' command"),
    ],
)
def test_a_wrong_call_of_a_script_gets_its_error(words: tuple[bytes, ...], text: str) -> None:
    assert parse([b"EVAL", *words]) == RedisError(text)
