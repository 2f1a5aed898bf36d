"""The sessions that this process keeps in memory, slot by slot.

A slot is fed in one of two ways: by the watch, as below, or by a stream.

The watch keeps a slot up to date with etcd. There are three sources, in any order: the watch (every session change of
the pool, in the order of revisions), full syncs of single slots (pages at one revision), and this process's own
commits. Every change has a revision and only a newer one counts, so the order of arrival does not matter. Sessions of
slots that are not held are ignored.

A slot is *synced* after a full sync of it at one revision R: from then on it is the state at R with every watched
change after R. The progress of the watch is known to the informer (:meth:`Informer.caught_up`).

A *streamed* slot replicates between members: the active's stream feeds it, or this process itself, if it is the active.
Nothing of etcd changes it then. Of two states of a session the one with the later version counts. The slot is synced
when a whole copy of it is here.
"""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec.structs import replace

from understudy.statesync.etcd.client import EtcdClient, Event, Kv
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.parsing.stored import brief
from understudy.statesync.pool.keys import PoolKeys, slot_in
from understudy.statesync.replication.messages import Stored
from understudy.statesync.replication.slot_copy import Entry
from understudy.statesync.sessions.session import Session
from understudy.statesync.sessions.session_crypto import PLAIN, KeyMissing, SessionCrypto, UnreadableSession
from understudy.statesync.testing.crash_points import CrashPoint, crash_point

logger = logging.getLogger(__name__)

PAGE = 50
"""Sessions per page of a copy: 50 of the largest that a spec may allow are below the client's 64 MiB per message."""


class _Unreadable(NamedTuple):
    """A session that cannot be opened: its revision (in a streamed slot its version), why, and its value."""

    at: int
    why: str
    value: bytes


@dataclass(slots=True)
class _Slot:
    """``copied`` is the revision of the last full copy; ``removed`` guards a copy under way against the past.

    ``touched`` has the later expiry of a session that its owner has renewed in memory alone, and the version that this
    holds for. ``written`` has what this process writes at the moment: the value, and the session that it holds. A slot
    that is ``streamed`` has a ``copied`` of 1 when it is whole.
    """

    sessions: dict[str, Session] = field(default_factory=dict)
    unreadable: dict[str, _Unreadable] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    touched: dict[str, tuple[int, int]] = field(default_factory=dict)
    written: dict[str, tuple[bytes, Session]] = field(default_factory=dict)
    copying: int = 0
    copied: int = 0
    streamed: bool = False

    @property
    def synced(self) -> bool:
        return self.copied > 0


class Replica:
    """Sessions of the held slots.

    ``copies`` counts the full copies of slots made so far; ``copied_at`` is when the last one ended (wall time, 0.0:
    never). ``fault`` says which key is missing here, after a session was found that needs it: such a member must not
    serve, since other members may have the key.
    """

    def __init__(self, client: EtcdClient, keys: PoolKeys, codec: SessionCrypto = PLAIN) -> None:
        self._client = client
        self._keys = keys
        self.codec = codec
        self.fault = ""
        self._slots: dict[int, _Slot] = {}
        self.copies = 0
        self.copied_at = 0.0

    @property
    def held(self) -> frozenset[int]:
        """The slots whose sessions are kept here, synced or not."""
        return frozenset(self._slots)

    @property
    def synced(self) -> frozenset[int]:
        """The slots whose full sync is complete."""
        return frozenset(slot for slot, kept in self._slots.items() if kept.synced)

    def is_synced(self, slot: int) -> bool:
        """Whether the full sync of ``slot`` is complete."""
        kept = self._slots.get(slot)
        return kept is not None and kept.synced

    def session(self, slot: int, key: str) -> Session | None:
        """The session as last seen here; possibly expired or a tombstone. None if unknown."""
        kept = self._slots.get(slot)
        if kept is None:
            return None
        session = kept.sessions.get(key)
        if kept.touched and session is not None and key in kept.touched:
            return _touched(kept, key, session)
        return session

    def touch(self, slot: int, key: str, expires: int) -> None:
        """Renew a session in memory, as its owner; a crash takes that back. The next write contains it."""
        kept = self._slots[slot]
        kept.touched[key] = (kept.sessions[key].version, expires)

    def stored_expiry(self, slot: int, key: str) -> int:
        """When a session expires by its last write, which etcd or the copies have; 0 if there is none."""
        session = self.sessions_of(slot).get(key)
        return session.expires if session is not None else 0

    def unreadable(self, slot: int, key: str) -> str:
        """Why a session that exists in etcd cannot be opened here; '' for all others."""
        kept = self._slots.get(slot)
        return kept.unreadable[key].why if kept and key in kept.unreadable else ""

    def sessions_of(self, slot: int) -> Mapping[str, Session]:
        """All sessions of a held slot, dead ones included; empty for a slot that is not held."""
        kept = self._slots.get(slot)
        return kept.sessions if kept else {}

    def count(self, slots: Iterable[int]) -> int:
        """How many sessions the given slots hold here, dead ones included."""
        return sum(len(self._slots[slot].sessions) for slot in slots if slot in self._slots)

    def hold(self, slot: int) -> None:
        """Keep the changes of a slot from now on; it is not synced before a full copy."""
        self._slots.setdefault(slot, _Slot())

    def drop(self, slot: int) -> None:
        """Forget a slot that this member no longer holds.

        A streamed slot stays until :meth:`unfollow`: this process may be in its sync set.
        """
        if not self.streamed(slot):
            self._slots.pop(slot, None)

    def drop_all(self) -> None:
        """Forget everything that the watch feeds: after a gap in it nothing of that is known to be current."""
        self._slots = {slot: kept for slot, kept in self._slots.items() if kept.streamed}

    async def full_sync(self, slot: int) -> None:
        """Start to hold a slot and copy its sessions from etcd; nothing to do when it is synced already, or streamed.

        Raises ``EtcdError`` when etcd cannot be read now; calling again is fine.
        """
        kept = self._slots.setdefault(slot, _Slot())
        if not kept.synced:
            await self.refresh(slot)

    async def recopy(self, slot: int) -> None:
        """Forget a held slot and copy it from etcd; until then it is not synced. Raises ``EtcdError`` like the above.

        Unlike :meth:`refresh`, this drops what a faulty copy holds, whatever its revision is. Changes that arrive
        meanwhile are taken in as in a first copy. A streamed slot stays as it is.
        """
        if self.streamed(slot):
            return
        self._slots[slot] = _Slot()
        await self.refresh(slot)

    async def refresh(self, slot: int) -> int:
        """Copy a slot's sessions from etcd as of now, whatever is known here; returns the copy's revision.

        A streamed slot stays as it is; then 0 is returned.
        """
        kept = self._slots.setdefault(slot, _Slot())
        if kept.streamed:
            return 0
        kept.copying += 1
        try:
            revision, present = await self._copy(slot, kept)
        finally:
            kept.copying -= 1
        for key in [key for key, session in kept.sessions.items() if session.revision <= revision]:
            if key not in present:
                del kept.sessions[key]
        for key in [key for key, unreadable in kept.unreadable.items() if unreadable.at <= revision]:
            if key not in present:
                del kept.unreadable[key]
        kept.copied = max(kept.copied, revision)
        self.copies += 1
        self.copied_at = time.time()
        if not kept.copying:
            kept.removed.clear()
        return revision

    async def _copy(self, slot: int, kept: _Slot) -> tuple[int, set[str]]:
        revision = 0
        prefix = self._keys.slot_sessions(slot)
        present = set()
        async for page in self._client.pages(prefix_range(prefix), page=PAGE):
            revision = page.revision
            for kv in page.kvs:
                key = kv.key.removeprefix(prefix)
                present.add(key)
                self._put(kept, key, kv)
            crash_point(CrashPoint.SYNC_PAGE)
        return revision, present

    def apply(self, events: Iterable[Event]) -> None:
        """Take in the session changes of a watch batch; other events are passed over."""
        prefix = self._keys.sessions
        for event in events:
            full = event.kv.key
            if not full.startswith(prefix):
                continue
            try:
                kept = self._slots.get(slot_in(full, prefix))
            except ValueError as error:
                logger.warning("%s is not a session: %s", brief(full), brief(str(error)))
                continue
            if kept is None or event.kv.mod_revision <= kept.copied or kept.streamed:
                continue
            key = full[len(prefix) + 6 :]
            if not key:
                continue
            if event.kind == "put":
                self._put(kept, key, event.kv)
            else:
                self._remove(kept, key, event.kv.mod_revision)

    def encoded(self, slot: int, key: str, session: Session) -> bytes:
        """The value of a session that this process, as its owner, is about to write.

        The watch often brings the value back before etcd answers the write. Then it need not be decoded. Only one write
        of a session is under way at a time, and :meth:`forget_write` ends it.
        """
        value = self.codec.encode(self._keys.session(slot, key), session)
        kept = self._slots.get(slot)
        if kept is not None and not kept.streamed:
            kept.written[key] = (value, session)
        return value

    def forget_write(self, slot: int, key: str) -> None:
        """What became of a write is known."""
        kept = self._slots.get(slot)
        if kept is not None:
            kept.written.pop(key, None)

    def committed(self, slot: int, key: str, session: Session | None, revision: int) -> None:
        """Take in this process's own commit at ``revision`` (None: the session was removed).

        A streamed slot stays as it is: its active has put the session here, and perhaps a later one since.
        """
        kept = self._slots.get(slot)
        if kept is None or kept.streamed:
            return
        if session is None:
            self._remove(kept, key, revision)
        else:
            known = kept.sessions.get(key)
            if known is None or known.revision < revision:
                kept.sessions[key] = session.at(revision)

    # -- streamed slots --

    @property
    def streamed_slots(self) -> frozenset[int]:
        """The slots that streams feed, whole or not."""
        return frozenset(slot for slot, kept in self._slots.items() if kept.streamed)

    def streamed(self, slot: int) -> bool:
        """Whether a stream feeds the slot, and not the watch."""
        kept = self._slots.get(slot)
        return kept is not None and kept.streamed

    def follow(self, slot: int) -> None:
        """Empty a slot, which a stream feeds from now on; it is not synced before :meth:`whole`."""
        self._slots[slot] = _Slot(streamed=True)

    clear = follow

    def adopt(self, slot: int) -> None:
        """Let a stream feed a synced slot from now on, with the sessions that it has from etcd.

        Raises ``ValueError`` if the slot is not synced: a part of its sessions could be taken for all.
        """
        kept = self._slots.get(slot)
        if kept is None or not kept.synced:
            raise ValueError(f"slot {slot} is not synced")
        if not kept.streamed:
            # The old one stays as it is for a copy from etcd that is under way.
            self._slots[slot] = _Slot(
                dict(kept.sessions), dict(kept.unreadable), touched=dict(kept.touched), copied=1, streamed=True
            )

    def unfollow(self, slot: int) -> None:
        """Empty a streamed slot and give it back to the watch; it is not synced before a full copy from etcd."""
        if self.streamed(slot):
            self._slots[slot] = _Slot()

    def whole(self, slot: int) -> None:
        """Everything of a streamed slot is here: it is synced."""
        self._streamed(slot).copied = 1

    def keep(self, slot: int, sessions: Iterable[Stored]) -> None:
        """Keep sessions of a part of a copy, unless a later version is here."""
        kept = self._streamed(slot)
        for stored in sessions:
            self._keep(kept, slot, stored)

    def show(self, slot: int, writes: Iterable[Entry]) -> None:
        """Carry out writes that are acknowledged, unless a later version is here."""
        kept = self._streamed(slot)
        for version, write in writes:
            if not write.key:
                continue
            if write.value is not None:
                self._keep(kept, slot, Stored(write.key, version, write.value))
            elif _version_in(kept, write.key) < version:
                kept.sessions.pop(write.key, None)
                kept.unreadable.pop(write.key, None)

    def put(self, slot: int, key: str, session: Session | None) -> None:
        """Take in a write of this process, the active of a streamed slot (None: the session was removed).

        The session has its version already, which is later than those before.
        """
        kept = self._streamed(slot)
        kept.unreadable.pop(key, None)
        if session is None:
            kept.sessions.pop(key, None)
        else:
            kept.sessions[key] = session

    def keys(self, slot: int) -> list[str]:
        """The keys of all sessions of a slot, dead and unreadable ones included; empty for a slot that is not held."""
        kept = self._slots.get(slot)
        return [*kept.sessions, *kept.unreadable] if kept is not None else []

    def stored(self, slot: int, key: str) -> Stored | None:
        """A session for a part of a copy, with its version; None if it is gone.

        One that cannot be opened here is passed on as it is.
        """
        kept = self._slots.get(slot)
        if kept is None:
            return None
        session = kept.sessions.get(key)
        if session is not None:
            return Stored(key, session.version, self.codec.encode(self._keys.session(slot, key), session))
        unreadable = kept.unreadable.get(key)
        return Stored(key, unreadable.at, unreadable.value) if unreadable is not None else None

    def _streamed(self, slot: int) -> _Slot:
        """A streamed slot. Raises ``ValueError`` for others: what a stream brings must never be lost in silence."""
        kept = self._slots.get(slot)
        if kept is None or not kept.streamed:
            raise ValueError(f"slot {slot} is not fed by a stream")
        return kept

    def _keep(self, kept: _Slot, slot: int, stored: Stored) -> None:
        key, version = stored.key, stored.version
        if _version_in(kept, key) >= version:
            return
        try:
            # In place of a revision, since a release without versions wrote none into the value.
            session = self.codec.decode(self._keys.session(slot, key), stored.value, version)
        except UnreadableSession as error:
            self._note_unreadable(kept, key, _Unreadable(version, str(error), stored.value), error)
        else:
            kept.sessions[key] = session
            kept.unreadable.pop(key, None)

    def _note_unreadable(self, kept: _Slot, key: str, found: _Unreadable, error: UnreadableSession) -> None:
        kept.sessions.pop(key, None)
        kept.unreadable[key] = found
        logger.warning("session at %s %d cannot be opened: %s", _kind_of(kept), found.at, error)
        if isinstance(error, KeyMissing):
            self.fault = f"sessions are encrypted with key {error.key_id}, which is not in --session-keys"

    def _put(self, kept: _Slot, key: str, kv: Kv) -> None:
        revision = kv.mod_revision
        known = kept.sessions.get(key)
        if (known is not None and known.revision >= revision) or kept.removed.get(key, 0) >= revision:
            return
        if kept.unreadable and key in kept.unreadable and kept.unreadable[key].at >= revision:
            return
        own = kept.written.get(key)
        try:
            if own is not None and own[0] == kv.value:
                kept.sessions[key] = own[1].at(revision)
            else:
                kept.sessions[key] = self.codec.decode(kv.key, kv.value, revision)
        except UnreadableSession as error:
            self._note_unreadable(kept, key, _Unreadable(revision, str(error), kv.value), error)
        else:
            kept.unreadable.pop(key, None)

    @staticmethod
    def _remove(kept: _Slot, key: str, revision: int) -> None:
        known = kept.sessions.get(key)
        if known is not None and known.revision < revision:
            del kept.sessions[key]
        if key in kept.unreadable and kept.unreadable[key].at < revision:
            del kept.unreadable[key]
        if kept.copying:
            kept.removed[key] = max(revision, kept.removed.get(key, 0))


def _touched(kept: _Slot, key: str, session: Session) -> Session:
    """The session with the expiry that it was renewed to, unless it was written since."""
    version, expires = kept.touched[key]
    if version == session.version:
        return replace(session, expires=expires)
    del kept.touched[key]
    return session


def _version_in(kept: _Slot, key: str) -> int:
    """The version of a session in a streamed slot; 0 if there is none."""
    session = kept.sessions.get(key)
    if session is not None:
        return session.version
    return kept.unreadable[key].at if key in kept.unreadable else 0


def _kind_of(kept: _Slot) -> str:
    return "version" if kept.streamed else "revision"
