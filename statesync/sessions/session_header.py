"""The header of a session as etcd and copies store it: one line of JSON before the body. Reads it.

Every copy reads the header of every write. So what this release writes is read by msgspec, in a tenth of the time. A
header by another release, with a content type that is not UTF-8, or with a fault, is read field by field.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from understudy.statesync.parsing.stored import WHOLE_MOST, read_object, typed
from understudy.statesync.replication.history import INDEX_BITS, version_of

INDEX_MOST = (1 << INDEX_BITS) - 1
_Whole = Annotated[int, msgspec.Meta(ge=-WHOLE_MOST, le=WHOLE_MOST)]


class Answer(msgspec.Struct, frozen=True, gc=False):
    """The answer that was given to a write with a key. ``version`` 0: that of the session that holds the answer."""

    key: str
    fingerprint: str
    status: int
    version: int = 0


class SessionHeader(msgspec.Struct, frozen=True, gc=False):
    """What the header says; the fields are those of a ``Session``. ``type`` is the content type."""

    type: str
    expires: int
    epoch: int
    deleted: bool
    answers: tuple[Answer, ...]
    since: int
    version: int
    app: str = ""


class _Plain(msgspec.Struct, frozen=True, gc=False):
    """The line as this release writes it."""

    epoch: _Whole
    expires: _Whole
    type: str
    index: _Whole | None = None
    deleted: bool = False
    since: _Whole = 0
    answers: tuple[tuple[str, str, _Whole, _Whole], ...] = ()
    app: str = ""


_PLAIN = msgspec.json.Decoder(_Plain)


def read_header(line: bytes, revision: int) -> SessionHeader:
    """Read a header that etcd has as of ``revision``. Raises ``ValueError`` if it is none."""
    try:
        plain = _PLAIN.decode(line)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return read_any_header(line, revision)
    answers = tuple([Answer(*entry) for entry in plain.answers])
    version = _version(plain.index, plain.epoch, revision)
    return SessionHeader(
        plain.type, plain.expires, plain.epoch, plain.deleted, answers, plain.since, version, plain.app
    )


def read_any_header(line: bytes, revision: int) -> SessionHeader:
    """:func:`read_header`, field by field."""
    header = read_object(line)
    epoch = typed("epoch", int, header.get("epoch"))
    return SessionHeader(
        type=_content_type(header.get("type")),
        expires=typed("expires", int, header.get("expires")),
        epoch=epoch,
        deleted=typed("deleted", bool, header.get("deleted", False)),
        answers=_answers_in(header.get("answers", ())),
        since=typed("since", int, header.get("since", 0)),
        version=version_in(header, epoch, revision),
        app=typed("app", str, header.get("app", "")),
    )


def version_in(header: Mapping[str, Any], epoch: int, revision: int) -> int:
    """The version of a stored session, by its header. Raises ``ValueError``."""
    index = header.get("index")
    return _version(typed("index", int, index) if index is not None else None, epoch, revision)


def _version(index: int | None, epoch: int, revision: int) -> int:
    if index is None:
        return revision
    if not 0 < index <= INDEX_MOST or epoch < 0:
        raise ValueError("index: expected the number of a write in its epoch")
    return version_of(epoch, index)


def without_version(value: bytes) -> bytes:
    """A stored session that begins anew in another etcd: as if a release without versions had written it there.

    A sealed session, or what is no session, stays as it is.
    """
    head, separator, body = value.partition(b"\n")
    try:
        header = read_object(head)
    except ValueError:
        return value
    if "sealed" in header or header.keys().isdisjoint(("index", "since")):
        return value
    kept = {name: field for name, field in header.items() if name not in ("index", "since")}
    return json.dumps(kept, separators=(",", ":")).encode() + separator + body


def _content_type(value: object) -> str:
    """A content type as a client may have sent it: its bytes need not be UTF-8."""
    if not isinstance(value, str):
        raise ValueError("type: expected a content type")  # noqa: TRY004 - one error for all
    value.encode("utf-8", "surrogateescape")
    return value


def _answers_in(raw: object) -> tuple[Answer, ...]:
    if not isinstance(raw, list | tuple):
        raise ValueError("answers: expected a list")  # noqa: TRY004 - one error for all
    return tuple(_answer(entry) for entry in raw)


def _answer(entry: object) -> Answer:
    match entry:
        case [str(key), str(fingerprint), int(status), int(version), *_]:
            return Answer(key, fingerprint, status, version)
    raise ValueError("answers: expected key, fingerprint, status and version")
