"""Compares copies of a slot's sessions with etcd, by versions and digests. The comparison itself is pure.

Each session becomes a :class:`DigestEntry`: its version, and a digest of everything that is stored of it. A slot's
digest is the sum of its entries' digests modulo 2**128, so their order does not matter. Tombstones and expired sessions
count as well.

A copy and etcd are never the same while a slot is written: etcd gets the newest version of each session once in a
while, and a copy may show less than etcd has already. So a difference alone proves nothing. :func:`compare` finds what
is proved. For this the copy must be taken first, and etcd must be read afterwards. It knows of the copy

* ``shown``: it has carried out every write up to this version;
* ``saved``: etcd had every write up to this version when the copy was taken, and perhaps later ones;
* ``last``: the last version that it has, carried out or not.

Nothing is changed here; the caller decides what to do about a difference.
"""

import asyncio
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from understudy.statesync.etcd.client import EtcdClient, Kv
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.owner_records import records_read
from understudy.statesync.pool.ownership import agreed_set
from understudy.statesync.pool.records import Owner, SyncRecord
from understudy.statesync.pool.state import At
from understudy.statesync.replication.sync_set import Process
from understudy.statesync.sessions.session import Session
from understudy.statesync.sessions.session_crypto import PLAIN, SessionCrypto, UnreadableSession

PAGE = 50
PAGE_PATIENCE = 5.0
BREATH_SESSIONS = 200
BREATH_BYTES = 1_000_000
_MODULUS = 1 << 128


class DigestEntry(NamedTuple):
    """One session of a copy: its version, and 128 bits over its key, its version and all that is stored of it."""

    version: int
    digest: int


@dataclass(frozen=True, slots=True)
class SlotDigest:
    """How many entries, and the sum of their digests."""

    count: int
    digest: int


class CopyProgress(NamedTuple):
    """How far a copy of a slot is, in versions; see above."""

    shown: int
    saved: int
    last: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of a slot at one moment.

    ``in_set``: its process surely belonged to the sync set at that moment. So it has every write that etcd had before.
    """

    entries: Mapping[str, DigestEntry]
    progress: CopyProgress
    in_set: bool = False


class Fault(StrEnum):
    """What is wrong with a copy of a session."""

    MISSING = "missing"
    OLDER = "older than in etcd"
    NEWER = "newer than in etcd"
    CONTENT = "other content"
    EXTRA = "not in etcd"


class Difference(NamedTuple):
    """A session that differs between a copy and etcd: its versions, 0 where it does not exist."""

    key: str
    fault: Fault
    held: int
    in_etcd: int


@dataclass(frozen=True, slots=True)
class Findings:
    """Differences of a copy: proved ones, and open ones, which may be removals that one side has not heard of yet.

    ``open`` tells for each difference from which version on it is proved, if it is still there: that of ``saved`` for a
    missing session, that of ``shown`` for one that is not in etcd. 0: not known yet.
    """

    proved: tuple[Difference, ...] = ()
    open: Mapping[Difference, int] = field(default_factory=dict)

    @property
    def any(self) -> bool:
        """Whether there is a difference of either kind."""
        return bool(self.proved or self.open)


NOTHING = Findings()


class Written(NamedTuple):
    """When a session was last written in etcd: the ``mod_revision``, and the epoch in its value."""

    revision: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Reading:
    """A slot as etcd had it at ``revision``.

    ``size`` in bytes, ``unreadable``: keys whose value is no session, ``written``: when each was last written.
    """

    revision: int
    entries: Mapping[str, DigestEntry]
    unreadable: frozenset[str]
    size: int
    written: Mapping[str, Written] = field(default_factory=dict)


def entry_of(key: str, session: Session) -> DigestEntry:
    """The entry of a session as some copy holds it."""
    answers = [(a.key, a.fingerprint, a.status, a.version) for a in session.answers]
    written = (session.version, session.epoch, session.since)
    head = (key, *written, session.expires, session.deleted, session.content_type, answers)
    digest = hashlib.blake2b(repr(head).encode("utf-8", "surrogateescape"), digest_size=16)
    digest.update(session.body)
    return DigestEntry(session.version, int.from_bytes(digest.digest(), "big"))


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


def digest_of(entries: Mapping[str, DigestEntry]) -> SlotDigest:
    """The digest of a slot: the same at etcd and at each copy while nothing of the slot is on its way."""
    return SlotDigest(len(entries), sum(entry.digest for entry in entries.values()) % _MODULUS)


def compare(copy: Snapshot, etcd: Reading, before: Findings = NOTHING) -> Findings:
    """How a copy differs from etcd.

    Args:
        copy: taken before etcd was read, and after the reading that led to ``before``.
        etcd: read (linearizably) after the copy was taken.
        before: what the comparison before this one of the same copy has found.
    """
    shown, saved, last = copy.progress
    proved: list[Difference] = []
    open_: dict[Difference, int] = {}
    for difference in _differences(copy.entries, etcd):
        match difference.fault:
            case Fault.MISSING if difference.in_etcd <= shown:
                # Or a write up to ``shown`` has removed it, and this is not saved yet.
                needed, reached = before.open.get(difference, shown), saved
            case Fault.EXTRA if difference.held <= saved:
                # Or a later write has removed it. A process of the set has that one, and perhaps has not shown it yet.
                seen = difference in before.open
                needed = before.open.get(difference) or (last if seen and copy.in_set else 0)
                reached = shown
            case Fault.OLDER if difference.in_etcd <= shown:
                needed = reached = shown
            case Fault.NEWER if difference.held <= saved:
                needed = reached = saved
            case Fault.CONTENT:
                needed = reached = difference.held
            case _:
                continue  # on its way to the copy, or to etcd
        if 0 < needed <= reached:
            proved.append(difference)
        else:
            open_[difference] = needed
    return Findings(tuple(sorted(proved)), open_)


def _differences(held: Mapping[str, DigestEntry], etcd: Reading) -> Iterator[Difference]:
    """Everything that is not the same, whatever it proves. Values of etcd that are no sessions do not count."""
    for key, truth in etcd.entries.items():
        mine = held.get(key)
        if mine is None:
            yield Difference(key, Fault.MISSING, 0, truth.version)
        elif mine != truth:
            fault = Fault.OLDER if mine.version < truth.version else Fault.NEWER
            yield Difference(
                key, Fault.CONTENT if mine.version == truth.version else fault, mine.version, truth.version
            )
    for key in held.keys() - etcd.entries.keys() - etcd.unreadable:
        yield Difference(key, Fault.EXTRA, held[key].version, 0)


async def read_slot(
    client: EtcdClient, keys: PoolKeys, slot: int, *, revision: int = 0, codec: SessionCrypto = PLAIN
) -> Reading:
    """Read a slot's sessions in pages at one revision (0: now).

    Raises ``EtcdError``; of which ``Compacted`` when ``revision`` is gone.
    """
    prefix = keys.slot_sessions(slot)
    entries: dict[str, DigestEntry] = {}
    written: dict[str, Written] = {}
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
                entries[key], written[key] = entry_of(key, session), Written(kv.mod_revision, session.epoch)
        await asyncio.sleep(0)
    return Reading(revision, entries, frozenset(unreadable), size, written)


class SetReading(NamedTuple):
    """Who is in a slot's sync set, and the revisions of the two records that say so (0: there is none)."""

    owner: int = 0
    sync: int = 0
    members: frozenset[Process] = frozenset()

    def stood(self, later: "SetReading", process: Process) -> bool:
        """Whether a process belonged to the set from this reading to a later one."""
        return self == later and process in self.members


async def read_set(client: EtcdClient, keys: PoolKeys, slot: int) -> SetReading:
    """Read a slot's sync set. Raises ``EtcdError``."""
    owners, syncs = (await client.txn([], records_read(keys, [slot]), [])).answers
    return _set_in(owners[0] if owners else None, syncs[0] if syncs else None)


def _set_in(owner: Kv | None, sync: Kv | None) -> SetReading:
    if owner is None:
        return SetReading()
    try:
        at = At(SyncRecord.decode(sync.value), sync.mod_revision) if sync is not None else None
        members = agreed_set(Owner.decode(owner.value), at).members
    except ValueError:
        return SetReading()
    return SetReading(owner.mod_revision, at.revision if at is not None else 0, members)
