"""Compares copies of a slot's sessions with etcd, by digests.

Each session becomes a :class:`DigestEntry`: its revision, its version, and a digest of both and of its content. A
slot's digest is the sum of its entries' digests modulo 2**128, so their order does not matter. Tombstones and expired
sessions count as well.

Two copies of a slot that is being written are not taken at the same moment, so a difference alone proves nothing.
:func:`compare` finds the differences that are proved. For this the copy must be taken first, at a revision that it has
applied, and etcd must be read afterwards. Nothing is changed here; the caller decides what to do about a difference.
"""

import asyncio
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.sessions.session import Session
from understudy.statesync.sessions.session_crypto import PLAIN, SessionCrypto, UnreadableSession

PAGE = 50
PAGE_PATIENCE = 5.0
BREATH_SESSIONS = 200
BREATH_BYTES = 1_000_000
_MODULUS = 1 << 128


@dataclass(frozen=True, slots=True)
class DigestEntry:
    """One session of a copy: when it was last written, and 128 bits over its key, revision, version and content.

    ``version`` is for people; the revisions tell which of two entries is newer.
    """

    revision: int
    digest: int
    version: int = 0


@dataclass(frozen=True, slots=True)
class SlotDigest:
    """How many entries, and the sum of their digests."""

    count: int
    digest: int


class Fault(StrEnum):
    """What is wrong with a copy of a session."""

    MISSING = "missing"
    OLDER = "older than in etcd"
    NEWER = "newer than in etcd"
    CONTENT = "other content"
    EXTRA = "not in etcd"


@dataclass(frozen=True, slots=True, order=True)
class Difference:
    """A session that differs between a copy and etcd: its versions, 0 where it does not exist."""

    key: str
    fault: Fault
    held: int
    in_etcd: int


@dataclass(frozen=True, slots=True)
class Findings:
    """Differences of a copy: proved ones, and open ones, which may be changes that have not arrived yet.

    An open one is proved if a copy that has applied the revision of the read from etcd still holds the same entry.
    """

    proved: tuple[Difference, ...] = ()
    open: tuple[Difference, ...] = ()

    @property
    def all(self) -> frozenset[Difference]:
        """Both kinds."""
        return frozenset(self.proved + self.open)


@dataclass(frozen=True, slots=True)
class Reading:
    """A slot as etcd had it at ``revision``.

    ``size`` in bytes, ``unreadable``: keys whose value is no session, ``epochs``: under which each was last written.
    """

    revision: int
    entries: Mapping[str, DigestEntry]
    unreadable: frozenset[str]
    size: int
    epochs: Mapping[str, int] = field(default_factory=dict)


def entry_of(key: str, session: Session) -> DigestEntry:
    """The entry of a session as some copy holds it."""
    answers = [(a.key, a.fingerprint, a.status, a.version) for a in session.answers]
    written = (session.revision, session.version, session.epoch)
    head = (key, *written, session.expires, session.deleted, session.content_type, answers)
    digest = hashlib.blake2b(repr(head).encode("utf-8", "surrogateescape"), digest_size=16)
    digest.update(session.body)
    return DigestEntry(session.revision, int.from_bytes(digest.digest(), "big"), session.version)


async def entries_of(sessions: Iterable[tuple[str, Session]]) -> dict[str, DigestEntry]:
    """The entries of a copy; lets others run every millisecond or so. ``sessions`` must not change meanwhile."""
    entries: dict[str, DigestEntry] = {}
    size = 0
    for number, (key, session) in enumerate(sessions, start=1):
        entries[key] = entry_of(key, session)
        size += len(session.body)
        if number % BREATH_SESSIONS == 0 or size > BREATH_BYTES:
            size = 0
            await asyncio.sleep(0)
    return entries


def digest_of(entries: Mapping[str, DigestEntry], revision: int) -> SlotDigest:
    """The digest of what was last written at ``revision`` or before.

    Two copies that have both applied ``revision`` have the same digest, unless one is wrong or a session has been
    written since.
    """
    old = [entry.digest for entry in entries.values() if entry.revision <= revision]
    return SlotDigest(len(old), sum(old) % _MODULUS)


def compare(held: Mapping[str, DigestEntry], applied: int, etcd: Reading) -> Findings:
    """How a copy differs from etcd.

    Args:
        held: the copy, with every change up to ``applied`` in it, perhaps with later ones.
        applied: see above.
        etcd: read (linearizably) after the copy was taken, so at a revision not below any in the copy.
    """
    proved: list[Difference] = []
    open_: list[Difference] = []
    for key, truth in etcd.entries.items():
        copy = held.get(key)
        if truth.revision > applied:
            continue  # written after the copy was surely complete: on its way
        if copy is None:
            proved.append(Difference(key, Fault.MISSING, 0, truth.version))
        elif copy.revision != truth.revision:
            fault = Fault.OLDER if copy.revision < truth.revision else Fault.NEWER
            proved.append(Difference(key, fault, copy.version, truth.version))
        elif copy.digest != truth.digest:
            proved.append(Difference(key, Fault.CONTENT, copy.version, truth.version))
    for key, copy in held.items():
        if key not in etcd.entries and key not in etcd.unreadable:
            # Removed from etcd before it was read; whether after ``applied`` nobody can say yet.
            open_.append(Difference(key, Fault.EXTRA, copy.version, 0))
    return Findings(tuple(sorted(proved)), tuple(sorted(open_)))


async def read_slot(
    client: EtcdClient, keys: PoolKeys, slot: int, *, revision: int = 0, codec: SessionCrypto = PLAIN
) -> Reading:
    """Read a slot's sessions in pages at one revision (0: now).

    Raises ``EtcdError``; of which ``Compacted`` when ``revision`` is gone.
    """
    prefix = keys.slot_sessions(slot)
    entries: dict[str, DigestEntry] = {}
    epochs: dict[str, int] = {}
    unreadable = set()
    size = 0
    async for page in client.pages(prefix_range(prefix), page=PAGE, revision=revision, timeout=PAGE_PATIENCE):
        revision = page.revision
        for kv in page.kvs:
            key = kv.key.removeprefix(prefix)
            size += len(kv.key) + len(kv.value)
            try:
                session = codec.decode(kv.key, kv.value, kv.mod_revision)
            except UnreadableSession:
                unreadable.add(key)
            else:
                entries[key], epochs[key] = entry_of(key, session), session.epoch
        await asyncio.sleep(0)
    return Reading(revision, entries, frozenset(unreadable), size, epochs)
