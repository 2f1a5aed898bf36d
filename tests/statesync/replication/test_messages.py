"""Frames: what is written is read, strangers' bytes are refused, and two releases understand each other."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.statesync.replication.history import version_of
from understudy.statesync.replication.messages import (
    At,
    Behind,
    Have,
    Hello,
    Lead,
    LoggedWrite,
    Part,
    Refused,
    Stored,
    Unsaved,
    Writes,
    decode_frame,
    encode_frame,
)

LAST = version_of(2**24 - 1, 2**40 - 1)
EVERY_MESSAGE = [
    Hello("pool", "m1", "boot"),
    Lead(3, 7, (1, LAST)),
    Writes(3, 7, 5, 6, (LoggedWrite("key", b"\xff\x00value", b"outcome"), LoggedWrite("gone", None)), LAST, 4),
    Part(3, 7, 5, (1, 5), (Stored("key", 5, b"value"),), True, False, 4, 99, (Unsaved(5, "key", b"outcome"),)),
    At(3, 7, 5, whole=True),
    Have(3, 7, LAST),
    Refused(3, 7, 8),
    Behind(3, 7),
]


def test_a_frame_has_any_messages_of_any_slots() -> None:
    assert decode_frame(encode_frame(EVERY_MESSAGE)) == EVERY_MESSAGE


@given(st.lists(st.binary(max_size=6) | st.text("a\U0010ffff\x80\xff\0", max_size=4), max_size=4))
def test_a_key_may_have_any_bytes(given_keys: list[bytes | str]) -> None:
    keys = [key.decode("utf-8", "surrogateescape") if isinstance(key, bytes) else key for key in given_keys]
    messages = [
        Hello("pool", "m1", "boot"),
        Writes(3, 7, 5, 6, tuple(LoggedWrite(key, b"v") for key in keys), LAST),
        Part(
            3,
            7,
            5,
            (5,),
            tuple(Stored(key, 5, b"v") for key in keys),
            True,
            True,
            0,
            0,
            tuple(Unsaved(5, k) for k in keys),
        ),
    ]
    assert decode_frame(encode_frame(messages)) == messages


def test_a_key_that_is_text_is_itself_on_the_wire() -> None:
    """Members of the release before read it."""
    keys = ("k", "käse", "\uffff", "\0")
    frame = encode_frame([Writes(3, 7, 5, 6, tuple(LoggedWrite(key, b"v") for key in keys), LAST)])
    assert [write[0] for write in msgspec.msgpack.decode(frame)[0][5]] == list(keys)


@pytest.mark.parametrize(
    ("frame", "told"),
    [
        (b"", "not a frame"),
        (b"\x00", "not a frame"),
        (b"GET / HTTP/1.1\r\n\r\n", "not a frame"),
        (encode_frame(EVERY_MESSAGE)[:-1], "truncated"),
        (msgspec.msgpack.encode([[99, 3, 7]]), "99"),
        (msgspec.msgpack.encode([[12, "3", 7, 5]]), r"\$\[0\]\[1\]"),
        (msgspec.msgpack.encode([[12, 3]]), "length"),
    ],
)
def test_what_is_no_frame_is_refused_with_its_place(frame: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        decode_frame(frame)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_frame_or_refused(frame: bytes) -> None:
    try:
        messages = decode_frame(frame)
    except ValueError:
        return
    assert decode_frame(encode_frame(messages)) == messages


def test_a_field_that_a_newer_release_adds_is_left_out() -> None:
    assert decode_frame(msgspec.msgpack.encode([[12, 3, 7, 5, "new"]])) == [Have(3, 7, 5)]


def test_a_field_that_an_older_release_does_not_send_has_its_default() -> None:
    assert decode_frame(msgspec.msgpack.encode([[2, 3, 7, 5, 6, [["key", b"value"]], 4]])) == [
        Writes(3, 7, 5, 6, (LoggedWrite("key", b"value", b""),), 4)
    ]


def test_messages_without_what_is_saved_are_read_as_they_were_recorded() -> None:
    recorded = (
        "95940103079201059702030705069293a16bc40176c40093a4676f6e65c0c4016f"
        "04980303070591059193a16b05c40176c3c2950b030705c3940c030705"
    )
    assert decode_frame(bytes.fromhex(recorded)) == [
        Lead(3, 7, (1, 5)),
        Writes(3, 7, 5, 6, (LoggedWrite("k", b"v"), LoggedWrite("gone", None, b"o")), 4),
        Part(3, 7, 5, (5,), (Stored("k", 5, b"v"),), first=True, last=False),
        At(3, 7, 5, whole=True),
        Have(3, 7, 5),
    ]
