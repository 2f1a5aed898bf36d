"""One record of the audit log: what it says, and how it is stored. Pure.

A pool has two chains of records. Commands of operators append to one, and the leading control server to the other. So
no command can delay a decision. What any control server may find, such as a hold at front Envoys, is in the first one.
The records of a chain are numbered from 1 without gaps. Each names the digest of the record before it, so that a
missing or altered record shows (:mod:`understudy.statesync.audit.chain`).
"""

import hashlib
import re
from enum import StrEnum
from typing import TypeVar

import msgspec

from understudy.statesync.parsing.stored import SECONDS_MOST, brief, compact_json, read_object

TEXT_MOST = 500
"""Longest text of one field, in characters. A record is part of the leader's transaction, so it stays short."""
T = TypeVar("T", bound=msgspec.Struct)
_FRAME = re.compile(rb'\{"entry":(\{.*\}),"digest":"([0-9a-f]{64})"\}', re.DOTALL)


class Chain(StrEnum):
    """The two chains of a pool's audit log."""

    OPERATORS = "operators"
    DECISIONS = "decisions"


class Actor(msgspec.Struct, frozen=True):
    """Who acts, as the process says of itself.

    ``who`` is an operator's user name or a control server's name; ``account`` is the user or the certificate's name
    with which the process logs in at etcd, '' for none.
    """

    who: str
    host: str
    process: str
    account: str = ""


class Act(msgspec.Struct, frozen=True):
    """One act: the verb and its arguments, what it changes, why, and the command that undoes it ('' if none does)."""

    what: str
    detail: str = ""
    why: str = ""
    undo: str = ""


class Entry(msgspec.Struct, frozen=True):
    """What a record of the audit log says.

    ``before`` is the etcd revision at which the changed record was last written before the act, 0 if there was none.
    The revision of the act is that of the audit record itself: both are written in one transaction. ``previous`` is the
    digest of the record before this one in its chain, '' in the first.
    """

    pool: str
    chain: Chain
    number: int
    time_ms: int
    who: str
    host: str
    process: str
    what: str
    previous: str
    account: str = ""
    detail: str = ""
    why: str = ""
    undo: str = ""
    before: int = 0

    @classmethod
    def of_act(
        cls, act: Act, actor: Actor, *, pool: str, chain: Chain, number: int, previous: str, before: int, time_ms: int
    ) -> "Entry":
        """The entry of an act. Its texts are cut to :data:`TEXT_MOST` characters."""
        return cls(
            pool,
            chain,
            number,
            time_ms,
            _text(actor.who),
            _text(actor.host),
            _text(actor.process),
            _text(act.what),
            previous,
            _text(actor.account),
            _text(act.detail),
            _text(act.why),
            _text(act.undo),
            before,
        )


def _text(text: str) -> str:
    """``text`` as UTF-8 can encode it, and not too long."""
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= TEXT_MOST else f"{text[: TEXT_MOST - 3]}..."


class Sealed(msgspec.Struct, frozen=True):
    """An entry with its digest."""

    entry: Entry
    digest: str


def seal(entry: Entry) -> tuple[bytes, str]:
    """The stored form of an entry, and its digest: SHA-256 of the entry's JSON, which names the digest before it."""
    body = compact_json(entry)
    digest = hashlib.sha256(body).hexdigest()
    return b'{"entry":%b,"digest":"%b"}' % (body, digest.encode()), digest


def unseal(value: bytes) -> Sealed:
    """Read a stored record. Raises ``ValueError`` if it cannot be read, or if its digest is not that of its entry."""
    found = _FRAME.fullmatch(value)
    if found is None:
        raise ValueError("it is not an audit record")
    body, digest = found[1], found[2].decode()
    if hashlib.sha256(body).hexdigest() != digest:
        raise ValueError("its digest is not that of its content")
    entry = read_struct(Entry, body)
    if not 0 <= entry.time_ms <= SECONDS_MOST * 1000:
        raise ValueError("time_ms: not the time of an act")
    return Sealed(entry, digest)


def read_struct(kind: type[T], value: bytes) -> T:
    """What ``value``, a JSON object, says. Raises ``ValueError`` on anything that is not one of this ``kind``."""
    try:
        return msgspec.convert(read_object(value), kind)
    except msgspec.ValidationError as error:
        raise ValueError(brief(str(error))) from None
