"""Replies as bytes, in both versions of the protocol."""

import pytest

from understudy.statesync.redis.reply import (
    OK,
    OrderedSet,
    Push,
    RedisError,
    Simple,
    encode,
    error,
    text_of,
)


@pytest.mark.parametrize(
    ("value", "resp2", "resp3"),
    [
        (None, b"$-1\r\n", b"_\r\n"),
        (b"", b"$0\r\n\r\n", b"$0\r\n\r\n"),
        (b"a\r\nb", b"$4\r\na\r\nb\r\n", b"$4\r\na\r\nb\r\n"),
        ("é", b"$2\r\n\xc3\xa9\r\n", b"$2\r\n\xc3\xa9\r\n"),
        (-7, b":-7\r\n", b":-7\r\n"),
        (True, b":1\r\n", b":1\r\n"),
        (OK, b"+OK\r\n", b"+OK\r\n"),
        (Simple("hash"), b"+hash\r\n", b"+hash\r\n"),
        (1.5, b"$3\r\n1.5\r\n", b",1.5\r\n"),
        (float("inf"), b"$3\r\ninf\r\n", b",inf\r\n"),
        (float("-inf"), b"$4\r\n-inf\r\n", b",-inf\r\n"),
        (float("nan"), b"$3\r\nnan\r\n", b",nan\r\n"),
        ([], b"*0\r\n", b"*0\r\n"),
        ((1, [b"x", None]), b"*2\r\n:1\r\n*2\r\n$1\r\nx\r\n$-1\r\n", b"*2\r\n:1\r\n*2\r\n$1\r\nx\r\n_\r\n"),
        ({b"a": 1}, b"*2\r\n$1\r\na\r\n:1\r\n", b"%1\r\n$1\r\na\r\n:1\r\n"),
        ({}, b"*0\r\n", b"%0\r\n"),
        (frozenset({b"m"}), b"*1\r\n$1\r\nm\r\n", b"~1\r\n$1\r\nm\r\n"),
        (OrderedSet((b"b", b"a")), b"*2\r\n$1\r\nb\r\n$1\r\na\r\n", b"~2\r\n$1\r\nb\r\n$1\r\na\r\n"),
        (Push((b"m", 1)), b"*2\r\n$1\r\nm\r\n:1\r\n", b">2\r\n$1\r\nm\r\n:1\r\n"),
        ([error("no"), 1], b"*2\r\n-ERR no\r\n:1\r\n", b"*2\r\n-ERR no\r\n:1\r\n"),
    ],
)
def test_a_value_becomes_the_bytes_that_redis_sends(value: object, resp2: bytes, resp3: bytes) -> None:
    assert encode(value, 2) == resp2
    assert encode(value, 3) == resp3


@pytest.mark.parametrize("text", ["a\r\n+OK", "a\n+OK", "a\r+OK"])
def test_user_data_never_ends_a_line(text: str) -> None:
    for value in (Simple(text), RedisError(text), Simple(text.encode())):
        assert encode(value, 3).count(b"\n") == 1
        assert encode(value, 3).count(b"\r") == 1


def test_an_error_carries_any_bytes() -> None:
    assert encode(error(text_of(b"\xff\x00\xc3\xa9")), 2) == b"-ERR \xff\x00\xc3\xa9\r\n"


def test_what_is_no_reply_is_refused() -> None:
    with pytest.raises(TypeError, match="object is no reply"):
        encode([object()], 2)
