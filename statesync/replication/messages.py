"""What members say to each other about slots, and its form on the wire. The active speaks first; the copy answers.

A frame is a MessagePack array of messages, so that one frame can have the writes of many slots. A message is an array
that begins with its number. A reader ignores fields that a newer release has added at the end of a message, and takes
the defaults for those that an older one does not send. A message of an unknown number is an error, so a release that
adds one must see from the greeting that the other side knows it.

A session's key is text on the wire. A Redis key may have any bytes, and those that are not UTF-8 are surrogate escapes
here, which no text on a wire may have. So :data:`ESCAPE` and a second character stand for each of them.
"""

import re
from collections.abc import Callable, Sequence

import msgspec
from msgspec.structs import replace

PROTOCOL = 1
"""The version of the messages that this release speaks. Both sides use the smaller one of the two."""


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The first message on a connection, from each side: which process speaks, and which versions it understands."""

    pool: str
    member: str
    boot: str
    protocol: int = PROTOCOL


class LoggedWrite(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One write of a slot's history: the session as it is stored, None if it was removed.

    ``outcome`` is the outcome of its request for the request log; b'' if the write has no request. Without a ``key`` it
    changes no session, and only the outcome counts.
    """

    key: str
    value: bytes | None
    outcome: bytes = b""


class Lead(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=1):
    """The active of ``epoch`` tells its history, and asks how much of it the copy has."""

    slot: int
    epoch: int
    history: tuple[int, ...]


class Writes(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=2):
    """Writes ``first``, ``first + 1`` and so on, after the version ``after``.

    Readers of the copy may see what is up to ``shown``. etcd has everything up to ``saved``.
    """

    slot: int
    epoch: int
    after: int
    first: int
    writes: tuple[LoggedWrite, ...]
    shown: int
    saved: int = 0


class Stored(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A session in a part of a copy."""

    key: str
    version: int
    value: bytes


class Unsaved(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A write that readers may see and that etcd may lack: its session, and the outcome of its request, b'' for none.

    The session's value is not here: a copy has the newest one, and only that is saved.
    """

    version: int
    key: str
    outcome: bytes = b""


class Part(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=3):
    """A part of a copy of the whole slot as of ``at``. The first one empties the copy.

    The writes after ``at`` come between the parts and after them. A part may have later versions than ``at``.

    The first one also tells what etcd has: everything up to ``saved``. ``unsaved`` are the writes from there up to
    ``at``, which the next active has to save.

    ``outcomes`` are outcomes of the slot's requests up to ``at``, as in :class:`LoggedWrite`. All parts together have
    all that the active still keeps.
    """

    slot: int
    epoch: int
    at: int
    history: tuple[int, ...]
    sessions: tuple[Stored, ...]
    first: bool
    last: bool
    saved: int = 0
    unused: int = 0  # a revision of etcd before; fields have no names on the wire, so the next ones keep their places
    unsaved: tuple[Unsaved, ...] = ()
    outcomes: tuple[bytes, ...] = ()


class Ask(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=4):
    """The active asks whether the other process knows later epochs of its slots; ``number`` rises."""

    number: int


class At(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=11):
    """The copy has the active's history up to ``version``. If it is not ``whole``, it needs a copy of the slot."""

    slot: int
    epoch: int
    version: int
    whole: bool


class Have(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=12):
    """The copy has everything up to ``version`` in memory."""

    slot: int
    epoch: int
    version: int


class Refused(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=13):
    """The epoch of the sender is over: the copy knows of ``known``."""

    slot: int
    epoch: int
    known: int


class Behind(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=14):
    """The copy lacks what comes before a message; the active must ask again with :class:`Lead`."""

    slot: int
    epoch: int


class Told(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=15):
    """The answer to an :class:`Ask`: of the slots that this connection leads, the sender knows no later epoch.

    A :class:`Refused` for each slot of which it does goes before it.
    """

    number: int


FromActive = Lead | Writes | Part | Ask
FromCopy = At | Have | Refused | Behind | Told
Message = Hello | FromActive | FromCopy

ESCAPE = "\U0010ffff"
"""Begins a pair of characters in a key on the wire: with ``U+0080`` to ``U+00FF`` that byte, with itself itself."""
_ESCAPE_BYTES = ESCAPE.encode()
_ESCAPED = re.compile(f"{ESCAPE}(.)", re.DOTALL)
_SPECIAL = re.compile(f"[\udc80-\udcff{ESCAPE}]")
_SURROGATES = 0xDC00

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Message])


def encode_frame(messages: Sequence[Message]) -> bytes:
    """The messages as one frame."""
    try:
        frame = _encoder.encode(messages)
    except UnicodeEncodeError:
        return _encoder.encode([_with_keys(message, _escaped) for message in messages])
    if _ESCAPE_BYTES in frame:
        return _encoder.encode([_with_keys(message, _escaped) for message in messages])
    return frame


def decode_frame(frame: bytes) -> list[Message]:
    """The messages of a frame; raises ``ValueError`` on anything that is not one, and says where it is wrong."""
    try:
        messages = _decoder.decode(frame)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a frame of the replication protocol: {error}") from error
    if _ESCAPE_BYTES in frame:
        return [_with_keys(message, _unescaped) for message in messages]
    return messages


def _with_keys(message: Message, changed: Callable[[str], str]) -> Message:
    """A message with each session key ``changed``."""
    if isinstance(message, Writes):
        return replace(message, writes=tuple(replace(one, key=changed(one.key)) for one in message.writes))
    if isinstance(message, Part):
        sessions = tuple(replace(one, key=changed(one.key)) for one in message.sessions)
        unsaved = tuple(replace(one, key=changed(one.key)) for one in message.unsaved)
        return replace(message, sessions=sessions, unsaved=unsaved)
    return message


def _escaped(key: str) -> str:
    return _SPECIAL.sub(_escape_of, key)


def _escape_of(found: re.Match[str]) -> str:
    special = found[0]
    return ESCAPE + (special if special == ESCAPE else chr(ord(special) - _SURROGATES))


def _unescaped(key: str) -> str:
    return _ESCAPED.sub(_character_of, key)


def _character_of(found: re.Match[str]) -> str:
    code = ord(found[1])
    return chr(code + _SURROGATES) if 0x80 <= code <= 0xFF else found[1]
