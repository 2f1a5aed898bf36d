"""The outcomes of recent requests, which keep a copy of a request from having a second effect.

A front Envoy sends a request again (a retry) or twice (a hedge). A copy may be carried out long after another one was
answered: it waited in a frozen process, in a slow application, or in the kernel's retransmission queue. Two rules give
each request one outcome, however late a copy arrives:

* A write whose request began too long ago is refused (:meth:`Window.fault`). The request's age is known from the
  ``Understudy-Request`` header, which Envoy sets once for all copies of a request.
* The outcome of every identified write, also of a refused one, is kept until no copy of it can pass that check any more
  (:attr:`Window.keep`). It goes wherever the write goes, so every later owner of the slot has it.

Outcomes are a part of their slot's state. They go from member to member with their writes, and with a copy of the slot.
In etcd they are in the transactions of their writes: one small record per commit batch, under
``session-requests/<member>/<boot>/``. Who claims a slot without a copy of it in memory reads all records. A record is
deleted when its outcomes are not needed any more.
"""

import base64
import functools
import hashlib
import itertools
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from understudy.statesync.etcd.client import Kv
from understudy.statesync.parsing.stored import brief, compact_json, read_json
from understudy.statesync.pool.keys import PoolKeys

logger = logging.getLogger(__name__)

REQUEST_HEADER = "understudy-request"
CLOCK_MARGIN = 10.0
"""Seconds by which the clock of a front Envoy may differ from the pool's."""
MEMBER_MARGIN = 10.0
"""Seconds by which the members' views of the pool's time may differ (``pool_clock.APART_MS``)."""
ID_LENGTH_MOST = 255
_WHOLE = (str, str, int, str, str, int, int)
"""The types of an outcome's fields as this release writes them; to ``match`` them takes six times as long."""
NO_SLOT = -1
"""The slot of an outcome that an earlier release wrote: any."""
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
    for a refusal. ``slot`` is the session's slot. Earlier releases wrote no slot, and the first ones no version.
    """

    request: str
    fingerprint: str
    status: int
    problem: str = ""
    reply: str = ""
    version: int = 0
    slot: int = NO_SLOT


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
    if entry.slot != NO_SLOT:
        return entry
    if entry.version:
        return entry[:6]
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
        case [str(request), str(fingerprint), int(status), str(problem), str(reply), int(version), int(slot), *_]:
            return LogEntry(request, fingerprint, status, problem, reply, version, slot)
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


class _Kept(msgspec.Struct, frozen=True, gc=False):
    """An outcome as it is kept, ``seen`` here at that time (monotonic)."""

    seen: float
    fingerprint: str
    status: int
    version: int
    problem: str
    reply: bytes


class RequestLog:
    """The outcomes that this process knows, by slot; one instance per process.

    They come from this member's own writes, from streams and copies of slots that replicate between members, and from
    reads from etcd, in any order. The first outcome of a request is the one that counts. An outcome is dropped some
    time after it was *seen* here, by the monotonic clock: wall clocks that jump do not matter.

    Of this process's own records in etcd only the keys are kept, to delete them later.
    """

    def __init__(self, keys: PoolKeys, member: str, boot: str) -> None:
        self._own = f"{keys.requests}{member}/{boot}/"
        self._slots: dict[int, dict[str, _Kept]] = {}
        self._kept = 0
        self._records: dict[str, float] = {}

    def __len__(self) -> int:
        """How many outcomes are kept."""
        return self._kept

    def record_key(self, batch: int) -> str:
        """The etcd key of the record that belongs to this process's commit batch number ``batch``."""
        return f"{self._own}{batch:012d}"

    def committed(self, record: str, now: float) -> None:
        """Note that etcd has a record of this process since ``now``, to delete it later."""
        self._records[record] = now

    def note(self, slot: int, entry: LogEntry, now: float) -> None:
        """Take in an outcome of a slot, seen at ``now``. ``slot`` is :data:`NO_SLOT` if nobody knows it."""
        request, fingerprint, status, problem, reply, version, _ = entry
        of_slot = self._slots.get(slot)
        if of_slot is None:
            of_slot = self._slots[slot] = {}
        key = f"{request}/{fingerprint}" if problem else request
        if key not in of_slot:
            made = 0 if problem else version
            of_slot[key] = _Kept(now, fingerprint, status, made, problem, reply.encode(errors="surrogatepass"))
            self._kept += 1

    def read(self, kvs: Iterable[Kv], now: float) -> None:
        """Take in records as they were read from etcd; those that cannot be read are logged.

        The revision of a record is the version of sessions whose outcome names none.
        """
        for kv in kvs:
            try:
                entries = decode_entries(kv.value)
            except ValueError as error:
                logger.warning("unreadable record at %s: %s", brief(kv.key), brief(str(error)))
                continue
            for entry in entries:
                self.note(entry.slot, entry if entry.version else entry._replace(version=kv.mod_revision), now)

    def find(self, slot: int, request: str, fingerprint: str) -> Settled | None:
        """The outcome of a write in a slot: the request's effect on the session, or the refusal of such a write."""
        exact, any_content = f"{request}/{fingerprint}", f"{request}/{ANY_CONTENT}"
        for place in (slot, NO_SLOT):
            kept = self._slots.get(place)
            found = kept and (kept.get(request) or kept.get(exact) or kept.get(any_content))
            if found:
                return Settled(found.fingerprint, found.status, found.version, found.problem, found.reply)
        return None

    def outcomes(self, slot: int) -> list[bytes]:
        """All outcomes that a copy of a slot needs, as :func:`encode_entry` writes them.

        Those without a slot are among them.
        """
        return [
            encode_entry(_entry_of(place, key, kept))
            for place in (slot, NO_SLOT)
            for key, kept in self._slots.get(place, {}).items()
        ]

    def drop(self, slot: int) -> None:
        """Forget the outcomes of a slot: the slot's state is read anew, with its outcomes."""
        self._kept -= len(self._slots.pop(slot, ()))

    def forget(self, now: float, keep: float) -> list[str]:
        """Drop what was seen more than ``keep`` seconds ago.

        Args:
            now: monotonic seconds.
            keep: seconds.

        Returns:
            The etcd keys of this process's records that are as old; the caller deletes them.
        """
        for slot, of_slot in list(self._slots.items()):
            due = [key for key, _ in itertools.takewhile(lambda one: now - one[1].seen >= keep, of_slot.items())]
            for key in due:
                del of_slot[key]
            self._kept -= len(due)
            if not of_slot:
                del self._slots[slot]
        records = [key for key, _ in itertools.takewhile(lambda one: now - one[1] >= keep, self._records.items())]
        for key in records:
            del self._records[key]
        return records


def _entry_of(slot: int, key: str, kept: _Kept) -> LogEntry:
    """An outcome as it was noted; ``key`` begins with the hash of its request."""
    request, reply = key.partition("/")[0], kept.reply.decode(errors="surrogatepass")
    return LogEntry(request, kept.fingerprint, kept.status, kept.problem, reply, kept.version, slot)
