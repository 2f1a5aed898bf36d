"""The outcomes of recent requests, which keep a copy of a request from having a second effect.

A front Envoy sends a request again (a retry) or twice (a hedge). A copy may be carried out long after another one was
answered: it waited in a frozen process, in a slow application, or in the kernel's retransmission queue. Two rules give
each request one outcome, however late a copy arrives:

* A write whose request began too long ago is refused (:meth:`Window.fault`). The request's age is known from the
  ``Understudy-Request`` header, which Envoy sets once for all copies of a request.
* The outcome of every identified write, also of a refused one, is kept until no copy of it can pass that check any more
  (:attr:`Window.keep`). It is written in the transaction of the write, so every later owner of the slot has it.

The log is stored in etcd as one small record per commit batch, under ``session-requests/<member>/<boot>/``. Every
member reads all records by its watch. A record is deleted when its outcomes are not needed any more.
"""

import base64
import functools
import hashlib
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from understudy.statesync.etcd.client import Event, Kv
from understudy.statesync.parsing.stored import brief, compact_json, read_json
from understudy.statesync.pool.keys import PoolKeys

logger = logging.getLogger(__name__)

REQUEST_HEADER = "understudy-request"
CLOCK_MARGIN = 10.0
"""Seconds by which the clock of a front Envoy may differ from the pool's."""
MEMBER_MARGIN = 10.0
"""Seconds by which the members' views of the pool's time may differ (``pool_clock.APART_MS``)."""
ID_LENGTH_MOST = 255
_WHOLE = (str, str, int, str, str, int)
"""The types of an outcome's fields as this release writes them; to ``match`` them takes six times as long."""
ANY_CONTENT = "*"
"""The fingerprint of a refusal that holds for all writes of a request, whatever their content."""


class Stamp(msgspec.Struct, frozen=True, gc=False):
    """Which request a call belongs to: ``id`` is the same for all copies, ``began`` is Unix time in seconds."""

    id: str
    began: float


def parse_stamp(text: str) -> Stamp:
    """Read an ``Understudy-Request`` header: ``SECONDS;ID``. Raises ``ValueError``."""
    began, separator, name = text.partition(";")
    seconds = float(began)
    if not separator or not name or len(text) > ID_LENGTH_MOST or not math.isfinite(seconds):
        raise ValueError("expected SECONDS;ID")
    return Stamp(text, seconds)


def stamp_of(began: float, name: str) -> str:
    """The header's value for a request that began at ``began`` (Unix time in seconds)."""
    return f"{began:.3f};{name}"


@dataclass(frozen=True, slots=True)
class Window:
    """When a request may write, and how long its outcome is kept; in seconds.

    ``oldest`` is the largest age of a request that may write, ``ahead`` how far in the future its beginning may lie.
    ``keep`` is long enough whatever the clock of the Envoy says. An outcome is made at an age of at least ``-ahead``
    and a copy passes the check up to an age of ``oldest``, both by the same stamp. So between the two lie at most
    ``oldest + ahead`` seconds of the pool's time, of which two members' views differ by ``MEMBER_MARGIN``.
    """

    oldest: float
    ahead: float
    keep: float

    @staticmethod
    @functools.lru_cache(maxsize=4)
    def of(request_seconds: float) -> "Window":
        """The window for a route whose requests end after ``request_seconds``, retries included."""
        oldest = request_seconds + CLOCK_MARGIN
        return Window(oldest, CLOCK_MARGIN, oldest + CLOCK_MARGIN + MEMBER_MARGIN)

    def fault(self, age: float) -> str:
        """Why a request of ``age`` seconds may not write; '' if it may."""
        if age > self.oldest:
            return f"the request began {age:.1f} s ago, and copies older than {self.oldest:g} s are not carried out"
        if age < -self.ahead:
            return (
                f"the request began {-age:.1f} s from now by this pool's clock; compare the clocks of the front Envoy "
                "and of the members"
            )
        return ""


class Settled(msgspec.Struct, frozen=True, gc=False):
    """The outcome of an identified write.

    ``version`` is that of the session it wrote; a refusal has a ``problem`` (the last part of its type) instead.
    ``reply`` is the answer to commands, if it was short.
    """

    fingerprint: str
    status: int
    version: int = 0
    problem: str = ""
    reply: bytes = b""


class LogEntry(NamedTuple):
    """An outcome to be written to the log: ``request`` is the hash of the session's key and the request's id.

    A refusal has a ``problem``, and holds for its content only: a request may write again with other content.
    ``reply`` is the answer to commands, if it is short. ``version`` is that of the session that the write has made, 0
    for a refusal. Releases without versions wrote none.
    """

    request: str
    fingerprint: str
    status: int
    problem: str = ""
    reply: str = ""
    version: int = 0


@functools.lru_cache(maxsize=1)  # a write is looked up and, a moment later, noted
def request_hash(session: str, name: str) -> str:
    """A request's id as it is kept: 96 bits of BLAKE2b over the session's key and the id, base64url."""
    text = f"{session}\n{name}".encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(text, digest_size=12).digest()
    return base64.urlsafe_b64encode(digest).decode()


def encode_entries(entries: Sequence[LogEntry]) -> bytes:
    """A record of the log, as it stands in etcd: a JSON list of lists."""
    return compact_json([_without_blanks(entry) for entry in entries])


def _without_blanks(entry: LogEntry) -> tuple[str | int, ...]:
    if entry.version:
        return entry
    if entry.reply:
        return entry[:5]
    return entry[:4] if entry.problem else entry[:3]


def decode_entries(value: bytes) -> list[LogEntry]:
    """Read what :func:`encode_entries` wrote; fields that a newer version added are left out. Raises ``ValueError``."""
    listed = read_json(value)
    if not isinstance(listed, list):
        raise ValueError("not a record of requests: no list")  # noqa: TRY004 - one error for all
    return [_entry(fields) for fields in listed]


def _entry(fields: object) -> LogEntry:
    if type(fields) is list and tuple(map(type, fields)) == _WHOLE:
        return LogEntry(*fields)
    match fields:
        case [str(request), str(fingerprint), int(status)]:
            return LogEntry(request, fingerprint, status)
        case [str(request), str(fingerprint), int(status), str(problem), str(reply), int(version), *_]:
            return LogEntry(request, fingerprint, status, problem, reply, version)
        case [str(request), str(fingerprint), int(status), str(problem), str(reply), *_]:
            return LogEntry(request, fingerprint, status, problem, reply)
        case [str(request), str(fingerprint), int(status), str(problem), *_]:
            return LogEntry(request, fingerprint, status, problem)
    raise ValueError("not a record of requests: an entry is a request, a fingerprint, a status and a problem")


def encode_entry(entry: LogEntry) -> bytes:
    """One outcome, as it goes from member to member with its write."""
    return compact_json(_without_blanks(entry))


def decode_entry(value: bytes) -> LogEntry:
    """Read what :func:`encode_entry` wrote; fields that a newer version added are left out. Raises ``ValueError``."""
    return _entry(read_json(value))


class RequestLog:
    """The outcomes of the whole pool, as this member knows them; one instance per process.

    They come from the watch, from reads from etcd, from this member's own commits and from the streams of slots that
    replicate between members, in any order. An outcome is dropped some time after it was *seen* here, by the monotonic
    clock: wall clocks that jump do not matter.
    """

    def __init__(self, keys: PoolKeys, member: str, boot: str) -> None:
        self._prefix = keys.requests
        self._own = f"{keys.requests}{member}/{boot}/"
        self._settled: dict[str, tuple[str, int, int, str, bytes]] = {}
        self._records: dict[str, tuple[float, tuple[str, ...]]] = {}

    def __len__(self) -> int:
        return len(self._settled)

    def record_key(self, batch: int) -> str:
        """The etcd key of the record that belongs to this process's commit batch number ``batch``."""
        return f"{self._own}{batch:012d}"

    def find(self, request: str, fingerprint: str) -> Settled | None:
        """The outcome of a write: the request's effect on the session, or the refusal of such a write."""
        kept = self._settled
        found = kept.get(request) or kept.get(f"{request}/{fingerprint}") or kept.get(f"{request}/{ANY_CONTENT}")
        return Settled(*found) if found else None

    def note(self, record: str, entries: Iterable[LogEntry], revision: int, now: float) -> None:
        """Take in a record, committed at ``revision``; the first outcome of a request is the one that counts.

        ``revision`` is the version of sessions whose outcome names none.
        """
        if record in self._records:
            return
        settled, keys = self._settled, []
        for request, fingerprint, status, problem, reply, version in entries:
            key = f"{request}/{fingerprint}" if problem else request
            if key not in settled:
                made = 0 if problem else version or revision
                settled[key] = (fingerprint, status, made, problem, reply.encode())
                keys.append(key)
        self._records[record] = (now, tuple(keys))

    def note_entry(self, entry: LogEntry, now: float) -> None:
        """Take in the outcome of a write in a slot that replicates between members; it is in no record of etcd yet.

        The first outcome of a request is the one that counts, here too.
        """
        request, fingerprint, status, problem, reply, version = entry
        key = f"{request}/{fingerprint}" if problem else request
        if key not in self._settled:
            self._settled[key] = (fingerprint, status, 0 if problem else version, problem, reply.encode())
            self._records[key] = (now, (key,))

    def apply(self, events: Iterable[Event], now: float) -> None:
        """Take in the log's records of a watch batch; other changes are ignored.

        This process's own records are ignored too, since the committer notes them. So are deletions: another member
        has dropped the record, but this one may still need it.
        """
        for event in events:
            key = event.kv.key
            if event.kind == "put" and key.startswith(self._prefix) and not key.startswith(self._own):
                self.read([event.kv], now)

    def read(self, kvs: Iterable[Kv], now: float) -> None:
        """Take in records as they were read from etcd."""
        for kv in kvs:
            if kv.key in self._records:
                continue
            try:
                self.note(kv.key, decode_entries(kv.value), kv.mod_revision, now)
            except ValueError as error:
                logger.warning("unreadable record at %s: %s", brief(kv.key), brief(str(error)))

    def forget(self, now: float, keep: float, boots: Mapping[str, str]) -> list[str]:
        """Drop what was seen more than ``keep`` seconds ago.

        Args:
            now: monotonic seconds.
            keep: seconds.
            boots: the boot id of every living member.

        Returns:
            The etcd keys of forgotten records that are this process's to delete: its own, and those of processes that
            are gone.
        """
        due: list[str] = []
        for record, (seen, keys) in self._records.items():
            if now - seen < keep:
                break  # records come in the order in which they were seen
            due.append(record)
            for key in keys:
                self._settled.pop(key, None)
        for record in due:
            del self._records[record]
        return [record for record in due if self._is_ours_to_delete(record, boots)]

    def _is_ours_to_delete(self, record: str, boots: Mapping[str, str]) -> bool:
        if not record.startswith(self._prefix):
            return False  # it came by a stream
        member, _, rest = record.removeprefix(self._prefix).partition("/")
        return record.startswith(self._own) or boots.get(member) != rest.partition("/")[0]
