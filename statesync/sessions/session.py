"""A session, its form in etcd, and the effect of a write on it. Pure.

A stored session is one JSON header line, followed by the bytes of the body. Its version is ``epoch.index``: the epoch
of the owner record under which the write was decided, and the number of the write in the slot in this epoch. As one
number (:mod:`understudy.statesync.replication.history`) it rises from write to write, and never repeats, not even after
deletion and re-creation. It serves as ETag. Release 0.1.0 stored no ``index``; the version of such a session is
``0.revision``, with etcd's ``mod_revision`` of its key.

A deleted session leaves a tombstone for :data:`TOMBSTONE_SECONDS`, so that a repeated ``DELETE`` gets its first answer
and replicas see a deletion as a change.

Repeats: two mechanisms let a write have its effect once. The outcome of every request is kept for as long as copies of
the request may still arrive (:mod:`understudy.statesync.sessions.request_log`). For clients that repeat a request
later than that, each session keeps the answers to its last :data:`ANSWERS_KEPT` writes with an idempotency key (IETF
draft "The Idempotency-Key HTTP Header Field"). Both are replicated, so a repeat gets its first answer on any member.
The key is kept as a hash, with a fingerprint of the request to detect a reused key.
"""

import base64
import functools
import hashlib
import json
import re
from enum import StrEnum
from typing import Any

import msgspec
from msgspec.structs import replace

from understudy.statesync.parsing.stored import compact_json
from understudy.statesync.replication.history import as_text, epoch_of
from understudy.statesync.sessions.merge_patch import JSON_TYPE, MERGE_PATCH_TYPE, CannotPatch, patched
from understudy.statesync.sessions.request_log import ANY_CONTENT, Settled
from understudy.statesync.sessions.session_header import INDEX_MOST, Answer, read_header

ANSWERS_KEPT = 8
TOMBSTONE_SECONDS = 600
KEY_LENGTH_MOST = 256
REQUEST_REFUSED = "request-refused"
"""The problem of a write whose request the application has refused (:attr:`Method.REFUSE`)."""
_is_key = re.compile(rf"[A-Za-z0-9._~:-]{{1,{KEY_LENGTH_MOST}}}").fullmatch


@functools.lru_cache(maxsize=256)
def _quoted(text: str) -> str:
    return json.dumps(text)


class Method(StrEnum):
    """How a write changes the session. ``REFUSE`` changes nothing, and later copies of the request may not either.

    ``COMMANDS`` are commands of the Redis port (:mod:`understudy.statesync.sessions.command_batch`).
    """

    PUT = "PUT"
    PATCH = "PATCH"
    DELETE = "DELETE"
    REFUSE = "POST"
    COMMANDS = "COMMANDS"


class Session(msgspec.Struct, frozen=True, gc=False):
    """One session. ``expires`` is the pool's time in ms; ``version`` is 0 until :func:`give_version` sets it.

    ``revision`` is its ``mod_revision``, 0 until committed; it only orders what arrives from etcd. ``since`` is the
    version of the write that wrote the value, if it was only renewed or written again since; else 0. ``app`` is the
    version of the application that wrote it last ('' if that is not known); :func:`give_app` sets it.
    """

    content_type: str
    body: bytes
    expires: int
    epoch: int
    revision: int = 0
    deleted: bool = False
    answers: tuple[Answer, ...] = ()
    since: int = 0
    version: int = 0
    app: str = ""

    @property
    def value_version(self) -> int:
        """The version of the write that wrote the value."""
        return self.since or self.version

    def alive(self, now_ms: int) -> bool:
        """Whether the session exists for a reader at ``now_ms``."""
        return not self.deleted and now_ms < self.expires

    @property
    def etag(self) -> str:
        """Strong entity tag (RFC 9110, section 8.8.3), quoted."""
        return etag_of(self.version)

    @property
    def index(self) -> int:
        """The number of the write in its epoch; 0 for a version that was not given, or by a release without them."""
        return self.version & INDEX_MOST if self.version > INDEX_MOST else 0

    def encode(self) -> bytes:
        """The session as it is stored in etcd, without its ``mod_revision``."""
        index = self.index
        if index and not self.deleted and not self.answers and not self.since:
            # Most writes; formatted by hand, in half the time.
            kind, app = _quoted(self.content_type), f',"app":{_quoted(self.app)}' if self.app else ""
            head = f'{{"epoch":{self.epoch},"index":{index},"expires":{self.expires},"type":{kind}{app}}}\n'
            return head.encode() + self.body
        header: dict[str, Any] = {"epoch": self.epoch}
        if index:
            header["index"] = index
        header |= {"expires": self.expires, "type": self.content_type}
        if self.app:
            header["app"] = self.app
        if self.deleted:
            header["deleted"] = True
        if self.since:
            header["since"] = self.since
        if self.answers:
            header["answers"] = [[a.key, a.fingerprint, a.status, a.version] for a in self.answers]
        return compact_json(header) + b"\n" + self.body

    def at(self, revision: int) -> "Session":
        """The session as committed at ``revision``."""
        kept = (self.deleted, self.answers, self.since, self.version or revision, self.app)
        return Session(self.content_type, self.body, self.expires, self.epoch, revision, *kept)

    @classmethod
    def decode(cls, value: bytes, revision: int) -> "Session":
        """Read what :meth:`encode` wrote, as of ``revision``; raises ``ValueError`` otherwise.

        Fields that a newer version added to header or answers are left out. If an older member could not read such a
        session, its users would lose it.
        """
        head, _, body = value.partition(b"\n")
        header = read_header(head, revision)
        return cls(
            header.type,
            body,
            header.expires,
            header.epoch,
            revision,
            header.deleted,
            header.answers,
            header.since,
            header.version,
            header.app,
        )


def give_version(session: Session, version: int) -> None:
    """Set the version of a session that was just decided and that nobody else has yet; a copy would take longer."""
    msgspec.structs.force_setattr(session, "version", version)


def give_app(session: Session, app: str) -> None:
    """Set the version of the application that writes a session, as :func:`give_version` sets its own."""
    msgspec.structs.force_setattr(session, "app", app)


class Write(msgspec.Struct, frozen=True, gc=False):
    """A write as a client asks for it.

    ``ttl`` in seconds, None for the pool's default; the tags are raw header values. ``request`` identifies the write
    among copies and repeats, if it can be identified. ``began`` is when its request began, in seconds of Unix time.
    """

    method: Method
    body: bytes = b""
    content_type: str = "application/octet-stream"
    if_match: str | None = None
    if_none_match: str | None = None
    ttl: int | None = None
    idempotency_key: str | None = None
    request: str | None = None
    began: float | None = None
    _digest: str = ""

    @property
    def fingerprint(self) -> str:
        """A short digest of method and content, which separates a repeat from a reused key.

        It leaves out the content of a write with ``If-Match``: such a write depends on what its author had read, so a
        true repeat after a failover may have other content.
        """
        if self.method is Method.REFUSE:
            return ANY_CONTENT
        if not self._digest:
            content = b"" if self.if_match is not None else self.body
            digest = hashlib.blake2b(f"{self.method}\n{self.content_type}\n".encode() + content, digest_size=6)
            msgspec.structs.force_setattr(self, "_digest", digest.hexdigest())
        return self._digest


class Stored(msgspec.Struct, frozen=True, gc=False):
    """The write has an effect: commit ``session``, then answer ``status``, or ``reply`` to commands.

    ``overwrites``: it replaces a value that its author did not know.
    """

    session: Session
    status: int
    reply: bytes = b""
    overwrites: bool = False


class Repeated(msgspec.Struct, frozen=True, gc=False):
    """The write had its effect before: give the first answer again."""

    status: int
    version: int
    reply: bytes = b""


class NoEffect(msgspec.Struct, frozen=True, gc=False):
    """The commands of a write change nothing: answer ``reply``."""

    reply: bytes
    status: int = 200


class WriteRefused(msgspec.Struct, frozen=True, gc=False):
    """The write has no effect. ``problem`` is the last part of the problem type (RFC 9457).

    ``lasting``: the same write could have an effect later, so the refusal must be stored to be final.
    """

    status: int
    problem: str
    detail: str
    lasting: bool = True


Outcome = Stored | Repeated | NoEffect | WriteRefused


class WriteContext(msgspec.Struct, frozen=True, gc=False):
    """The owner's epoch, the pool's time in ms, and the pool's limits, at the moment of a write.

    ``expiry_ms``: sessions that expire at this time or earlier have expired; None: ``now_ms``.
    """

    epoch: int
    now_ms: int
    session_bytes: int
    default_ttl: int
    expiry_ms: int | None = None

    @property
    def ended_ms(self) -> int:
        """Sessions that expire at this time or earlier have expired."""
        return self.now_ms if self.expiry_ms is None else self.expiry_ms


def valid_key(key: str) -> bool:
    """Whether ``key`` can name a session: 1 to 256 of the unreserved URI characters (RFC 3986, section 2.3).

    And the colon, which a URI's path may have as it is (section 3.3), for IPv6 addresses, the keys of TCP pools. ``.``
    and ``..`` are no keys: HTTP clients take them for steps in the path (section 5.2.4).
    """
    return _is_key(key) is not None and key not in (".", "..")


def etag_of(version: int) -> str:
    """The entity tag of a session of ``version``."""
    return f'"{as_text(version)}"'


@functools.lru_cache(maxsize=1)  # a write is looked up and, a moment later, noted
def hashed(idempotency_key: str) -> str:
    """An idempotency key as it is kept: 96 bits of its BLAKE2b digest, base64url."""
    digest = hashlib.blake2b(idempotency_key.encode(), digest_size=12).digest()
    return base64.urlsafe_b64encode(digest).decode()


def decide_write(
    current: Session | None, write: Write, context: WriteContext, settled: Settled | None = None
) -> Outcome:
    """The effect of ``write`` on the session (``current``: may be a tombstone, expired, or None).

    ``settled`` is the outcome of the same request, if the request log has one.

    Order of the checks: a repeat gets its first answer whatever the preconditions say now (they were met then), then
    the preconditions (RFC 9110, section 13.2.2), then the content.
    """
    if settled is not None:
        return settled_before(settled, write)
    kept = _answers_in_force(current, context.ended_ms)
    if write.idempotency_key is not None:
        repeat = _find_repeat(current, kept, write)
        if repeat is not None:
            return repeat
    alive = current if current is not None and current.alive(context.ended_ms) else None
    if write.method is Method.REFUSE:
        return WriteRefused(204, REQUEST_REFUSED, "")
    refused = _check_preconditions(alive, write)
    if refused is not None:
        return refused
    if write.method is Method.DELETE:
        return _deleted(current, alive, write, context, kept)
    content = _content_after(alive, write)
    if isinstance(content, WriteRefused):
        return content
    content_type, body = content
    if len(body) > context.session_bytes:
        return WriteRefused(
            413,
            "session-too-large",
            f"the session would have {len(body)} bytes; this pool allows {context.session_bytes}",
        )
    ttl = context.default_ttl if write.ttl is None else write.ttl
    status = 200 if alive is not None else 201
    session = Session(content_type, body, context.now_ms + ttl * 1000, context.epoch)
    return _keeping_answer(session, current, kept, write, status)


def settled_before(settled: Settled, write: Write) -> Repeated | WriteRefused:
    """The answer to a write of a request whose outcome is known."""
    if settled.problem and write.method is Method.REFUSE:
        return WriteRefused(204, settled.problem, "", lasting=False)
    if settled.problem:
        status = 409 if settled.problem == REQUEST_REFUSED else settled.status
        return WriteRefused(status, settled.problem, "this request was refused before, which is final", lasting=False)
    if write.method is not Method.REFUSE and settled.fingerprint != write.fingerprint:
        return _reused()
    return Repeated(settled.status, settled.version, settled.reply)


def _reused() -> WriteRefused:
    detail = "this Idempotency-Key came with a different request before; give every write of a request a key of its own"
    return WriteRefused(422, "idempotency-key-reused", detail, lasting=False)


def _answers_in_force(current: Session | None, now_ms: int) -> tuple[Answer, ...]:
    if current is None or now_ms >= current.expires:
        return ()
    return current.answers


def _find_repeat(current: Session | None, kept: tuple[Answer, ...], write: Write) -> Repeated | WriteRefused | None:
    key = hashed(write.idempotency_key or "")
    for answer in kept:
        if answer.key == key:
            if write.method is not Method.REFUSE and answer.fingerprint != write.fingerprint:
                return _reused()
            return Repeated(answer.status, answer.version or (current.version if current else 0))
    return None


def _check_preconditions(alive: Session | None, write: Write) -> WriteRefused | None:
    if write.if_match is not None and not _matches(write.if_match, alive, weak=False):
        detail = f"If-Match: the session's ETag is {_named(alive)}"
        return WriteRefused(
            412, "precondition-failed", detail, lasting="*" in write.if_match
        )  # an ETag never comes back
    if write.if_none_match is not None and _matches(write.if_none_match, alive, weak=True):
        return WriteRefused(412, "precondition-failed", f"If-None-Match: the session's ETag is {_named(alive)}")
    if alive is None and write.method is not Method.PUT:
        return WriteRefused(404, "no-such-session", "there is no session of this key")
    return None


def _named(alive: Session | None) -> str:
    return "none: there is no such session" if alive is None else alive.etag


def _matches(header: str, alive: Session | None, *, weak: bool) -> bool:
    if alive is None:
        return False
    tags = [tag.strip() for tag in header.split(",")]
    if weak:
        tags = [tag.removeprefix("W/") for tag in tags]
    if "*" in tags or alive.etag in tags:
        return True
    return not epoch_of(alive.version) and f'"{alive.version:x}"' in tags  # a release without epochs gave this ETag


def matches_none(header: str, session: Session) -> bool:
    """Whether a conditional GET's ``If-None-Match`` names the session as it is, so that 304 is the answer."""
    return _matches(header, session, weak=True)


def _deleted(
    current: Session | None, alive: Session | None, write: Write, context: WriteContext, kept: tuple[Answer, ...]
) -> Outcome:
    if alive is None:
        return WriteRefused(404, "no-such-session", "there is no session of this key")
    grave = Session("", b"", context.now_ms + TOMBSTONE_SECONDS * 1000, context.epoch, deleted=True)
    return _keeping_answer(grave, current, kept, write, 204)


def _keeping_answer(
    session: Session, current: Session | None, kept: tuple[Answer, ...], write: Write, status: int
) -> Stored:
    """Keep the earlier answers, now with their versions, and add this write's own."""
    if not kept and write.idempotency_key is None:  # most writes; ``replace`` alone takes some microseconds
        return Stored(session, status)
    version = current.version if current else 0
    answers = tuple(answer if answer.version else replace(answer, version=version) for answer in kept)
    if write.idempotency_key is not None:
        answers = (*answers, Answer(hashed(write.idempotency_key), write.fingerprint, status))
    return Stored(replace(session, answers=answers[-ANSWERS_KEPT:]), status)


def _content_after(alive: Session | None, write: Write) -> tuple[str, bytes] | WriteRefused:
    if write.method is Method.PUT:
        return write.content_type, write.body
    if write.content_type.partition(";")[0].strip().lower() != MERGE_PATCH_TYPE:
        return WriteRefused(415, "unsupported-patch", f"PATCH takes {MERGE_PATCH_TYPE} (RFC 7396)")
    try:
        return JSON_TYPE, patched(alive.body if alive is not None else b"", write.body)
    except CannotPatch as error:
        return WriteRefused(422, error.problem, str(error))
