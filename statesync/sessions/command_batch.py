"""Commands of the Redis port on one session, as a write: what they answer, and what the session is afterwards. Pure.

:mod:`understudy.statesync.redis` knows the commands and Redis's data types. This module keeps their values in sessions.
A value without an expiry is a session that expires at :data:`NEVER`.
"""

from collections.abc import Callable, Mapping

import hiredis
import msgspec
from msgspec.structs import replace

from understudy.statesync.redis.command import Effect, KeyCommand
from understudy.statesync.redis.commands import apply, is_read
from understudy.statesync.redis.reply import OK, RedisError, encode
from understudy.statesync.redis.value import Kind, Value, content_type_of, is_string, kind_of
from understudy.statesync.sessions.request_log import Settled
from understudy.statesync.sessions.session import (
    TOMBSTONE_SECONDS,
    NoEffect,
    Outcome,
    Repeated,
    Session,
    Stored,
    Write,
    WriteContext,
    WriteRefused,
    settled_before,
)

NEVER = 253_402_300_800_000
"""Milliseconds of Unix time at the end of the year 9999: the expiry of a session that does not expire."""
SHORT_REPLY = 40
"""Bytes of an answer that the request log keeps: numbers, ``OK`` and nil, but no content of sessions."""
COMMITTED = 200
_RENEWALS = frozenset({b"EXPIRE", b"PEXPIRE", b"EXPIREAT", b"PEXPIREAT", b"GETEX"})


class CommandBatch(msgspec.Struct, frozen=True, gc=False):
    """Commands on one key that are carried out together.

    ``protocol`` is the version of RESP of the answer, 2 or 3. ``exec``: the answer is an array, as that of ``EXEC``.
    """

    commands: tuple[KeyCommand, ...]
    protocol: int = 2
    exec: bool = False

    @property
    def key(self) -> bytes:
        """The key of all commands."""
        return self.commands[0].key

    @property
    def reads(self) -> bool:
        """Whether no command can change anything."""
        return all(_reads(command) for command in self.commands)

    @property
    def renews(self) -> bool:
        """Whether the commands can change nothing but the expiry."""
        commands = self.commands
        return commands[0].name in _RENEWALS and all(command.name in _RENEWALS for command in commands)

    def answer(self, before: Value | None, now_ms: int) -> tuple[bytes, Value | None]:
        """The answer in RESP, and the value afterwards: ``before`` itself if it is unchanged."""
        if not self.exec:
            return answer_to(self.commands[0], self.protocol, before, now_ms)
        replies: list[object] = []
        after = before
        for command in self.commands:
            effect = _effect(command, after, now_ms)
            replies.append(effect.reply)
            after = effect.after
        return encode(replies, self.protocol), after

    @staticmethod
    def parse_reply(reply: bytes) -> object:
        """The answer of a batch with one command in RESP2 as a value; an error is a ``RedisError``."""
        if reply == b"+OK\r\n":
            return OK
        reader = hiredis.Reader()
        reader.feed(reply)
        value = reader.gets()
        return RedisError(str(value)) if isinstance(value, hiredis.ReplyError) else value

    def encode(self) -> bytes:
        """As it travels to another member: one command after the other, in RESP. The name of each is its first part."""
        kind = b"exec" if self.exec else b"one"
        arrays = ((kind, b"%d" % self.protocol), *((c.name, c.key, *c.args) for c in self.commands))
        return b"".join(hiredis.pack_command(array) for array in arrays)  # type: ignore[arg-type]

    @classmethod
    def decode(cls, body: bytes) -> "CommandBatch":
        """Read what :meth:`encode` wrote; raises ``ValueError``."""
        try:
            head, *rest = _arrays(body)
            kind, protocol = head
            commands = tuple(_command(argv) for argv in rest)
        except (hiredis.HiredisError, TypeError) as error:
            raise ValueError(f"not a batch of commands: {error}") from None
        if kind not in (b"one", b"exec") or protocol not in (b"2", b"3") or not commands:
            raise ValueError("not a batch of commands")
        if len({command.key for command in commands}) != 1 or (kind == b"one" and len(commands) != 1):
            raise ValueError("the commands of a batch are on one key")
        return cls(commands, int(protocol), kind == b"exec")


def _arrays(body: bytes) -> list[list[bytes]]:
    reader = hiredis.Reader()
    reader.feed(body)
    arrays: list[list[bytes]] = []
    while (array := reader.gets()) is not False:
        if not isinstance(array, list) or not all(isinstance(part, bytes) for part in array):
            raise ValueError("not a batch of commands: expected arrays of strings")
        arrays.append(array)
    if reader.has_data():
        raise ValueError("not a batch of commands: it broke off")
    return arrays


def _command(argv: list[bytes]) -> KeyCommand:
    """A command from another member, which has checked it. Of a newer release, it may be one that is not known here."""
    name, key, *args = argv
    command = KeyCommand(name, key, tuple(args))
    try:
        _reads(command)
    except KeyError:
        raise ValueError(f"not a command that this release knows: {name.decode(errors='replace')}") from None
    return command


def _reads(command: KeyCommand) -> bool:
    return command.name == _TAKE or (command.name not in _MOVES and is_read(command))


class RawValue(msgspec.Struct, frozen=True, gc=False):
    """A value as it is copied from one key to another; ``expires`` as in :class:`Value`, but 0 for never."""

    kind: bytes
    data: bytes
    expires: int

    @classmethod
    def of(cls, answer: object) -> "RawValue | None":
        """Read the answer to :func:`taken`; None if there is no such key."""
        match answer:
            case [bytes(kind), bytes(data), int(expires)]:
                return cls(kind, data, expires)
        return None

    def is_of(self, value: Value | None) -> bool:
        """Whether a key still has this value."""
        return value is not None and self == RawValue(value.kind.encode(), value.data, value.expires or 0)


_TAKE, _COPY, _COPY_NEW, _REMOVE = b"understudy.take", b"understudy.copy", b"understudy.copy-new", b"understudy.remove"


def taken(key: bytes) -> KeyCommand:
    """A command that reads the whole value of ``key``; see :class:`RawValue`. Clients cannot send it."""
    return KeyCommand(_TAKE, key, ())


def copied(key: bytes, value: RawValue, *, only_new: bool) -> KeyCommand:
    """A command that sets ``key`` to a value that was taken; answers 1, or 0 if there is one and ``only_new``."""
    name = _COPY_NEW if only_new else _COPY
    return KeyCommand(name, key, (value.kind, value.data, b"%d" % value.expires))


def removed(key: bytes, value: RawValue) -> KeyCommand:
    """A command that removes ``key`` if it still has the value that was taken; answers 1 or 0."""
    return KeyCommand(_REMOVE, key, (value.kind, value.data, b"%d" % value.expires))


def _take(_: KeyCommand, before: Value | None) -> Effect:
    reply = None if before is None else [before.kind.encode(), before.data, before.expires or 0]
    return Effect(reply, before)


def _copy(command: KeyCommand, before: Value | None) -> Effect:
    if command.name == _COPY_NEW and before is not None:
        return Effect(0, before)
    raw = _raw(command)
    return Effect(1, Value(Kind(raw.kind.decode()), raw.data, raw.expires or None))


def _remove(command: KeyCommand, before: Value | None) -> Effect:
    return Effect(1, None) if _raw(command).is_of(before) else Effect(0, before)


def _raw(command: KeyCommand) -> RawValue:
    kind, data, expires = command.args
    return RawValue(kind, data, int(expires))


_MOVES: Mapping[bytes, Callable[[KeyCommand, Value | None], Effect]] = {
    _TAKE: _take,
    _COPY: _copy,
    _COPY_NEW: _copy,
    _REMOVE: _remove,
}
"""The commands that ``RENAME`` consists of."""


def answer_to(command: KeyCommand, protocol: int, before: Value | None, now_ms: int) -> tuple[bytes, Value | None]:
    """The answer to one command in this version of RESP, and the value afterwards: ``before`` itself if unchanged."""
    reply, after = _effect(command, before, now_ms)
    return encode(reply, protocol), after


def read_answer(command: KeyCommand, protocol: int, session: Session | None, now_ms: int, ended_ms: int) -> bytes:
    """The answer to a command that only reads, from what a member has of its key; the pool's time as in the clock.

    A ``GET`` of a string is most of them, and is answered as :func:`answer_to` would, in a third of the time.
    """
    if command.name == b"GET" and session is not None and session.alive(ended_ms) and is_string(session.content_type):
        body = session.body
        return b"$%d\r\n%b\r\n" % (len(body), body)
    return answer_to(command, protocol, value_of(session, ended_ms), now_ms)[0]


def _effect(command: KeyCommand, before: Value | None, now_ms: int) -> Effect:
    move = _MOVES.get(command.name)
    return move(command, before) if move else apply(command, before, now_ms)


def value_of(session: Session | None, now_ms: int) -> Value | None:
    """The Redis value of a session; None if there is none at ``now_ms``."""
    if session is None or not session.alive(now_ms):
        return None
    expires = None if session.expires >= NEVER else session.expires
    return Value(kind_of(session.content_type), session.body, expires)


def decide_commands(
    current: Session | None, batch: CommandBatch, write: Write, context: WriteContext, settled: Settled | None
) -> Outcome:
    """The effect of ``batch`` on a session; as :func:`~understudy.statesync.sessions.session.decide_write`."""
    if settled is not None:
        return _settled(settled, write)
    before = value_of(current, context.ended_ms)
    reply, after = batch.answer(before, context.now_ms)
    if after is before:
        return NoEffect(reply)
    if after is None:
        expires = context.now_ms + TOMBSTONE_SECONDS * 1000
        return Stored(Session("", b"", expires, context.epoch, deleted=True), COMMITTED, reply)
    if len(after.data) > context.session_bytes:
        detail = f"the value would have {len(after.data)} bytes; this pool allows {context.session_bytes}"
        return WriteRefused(413, "session-too-large", detail)
    expires = NEVER if after.expires is None else min(after.expires, NEVER)
    same = before is not None and after.data == before.data and after.kind is before.kind
    return Stored(_session(current, after, expires, context.epoch, same=same), 200 if before else 201, reply)


def _session(current: Session | None, after: Value, expires: int, epoch: int, *, same: bool) -> Session:
    """The session of a value; ``same``: it was this value before.

    One that an application wrote over HTTP keeps its content type and its answers.
    """
    if current is None or current.deleted or kind_of(current.content_type) != after.kind:
        return Session(content_type_of(after.kind), after.data, expires, epoch)
    answers = current.answers
    if answers:
        answers = tuple(replace(answer, version=answer.version or current.version) for answer in answers)
    since = current.value_version if same else 0
    return Session(current.content_type, after.data, expires, epoch, answers=answers, since=since)


def _settled(settled: Settled, write: Write) -> Outcome:
    before = settled_before(settled, write)
    if isinstance(before, Repeated) and not before.reply:
        detail = "the command was carried out before; its answer is not kept"
        return WriteRefused(409, "outcome-unknown", detail, lasting=False)
    return before


def reply_to_keep(reply: bytes) -> str:
    """What the request log keeps of an answer: '' for one that is long or has content."""
    short = len(reply) <= SHORT_REPLY and not reply.startswith((b"$", b"*", b"%", b"~"))
    return reply.decode("ascii", "replace") if short or reply in _NILS else ""


_NILS = frozenset({b"$-1\r\n", b"*-1\r\n", b"_\r\n"})
