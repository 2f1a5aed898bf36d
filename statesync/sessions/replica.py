"""The sessions that this process keeps in memory, slot by slot, up to date with etcd.

There are three sources, in any order: the watch (every session change of the pool, in the order of revisions), full
syncs of single slots (pages at one revision), and this process's own commits. Every change has a revision and only a
newer one counts, so the order of arrival does not matter. Sessions of slots that are not held are ignored.

A slot is *synced* after a full sync of it at one revision R: from then on it is the state at R with every watched
change after R. The progress of the watch is known to the informer (:meth:`Informer.caught_up`).
"""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from understudy.statesync.etcd.client import EtcdClient, Event, Kv
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.parsing.stored import brief
from understudy.statesync.pool.keys import PoolKeys, slot_in
from understudy.statesync.sessions.session import Session
from understudy.statesync.sessions.session_crypto import PLAIN, KeyMissing, SessionCrypto, UnreadableSession
from understudy.statesync.testing.crash_points import CrashPoint, crash_point

logger = logging.getLogger(__name__)

PAGE = 50
"""Sessions per page of a copy: 50 of the largest that a spec may allow are below the client's 64 MiB per message."""


@dataclass(slots=True)
class _Slot:
    """``copied`` is the revision of the last full copy; ``removed`` guards a copy under way against the past.

    ``unreadable`` has the revision of each session that is there and cannot be opened, and why. ``touched`` has the
    later expiry of a session that its owner has renewed in memory alone, and the revision that this holds for.
    ``written`` has what this process writes at the moment: the value, and the session that it holds.
    """

    sessions: dict[str, Session] = field(default_factory=dict)
    unreadable: dict[str, tuple[int, str]] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    touched: dict[str, tuple[int, int]] = field(default_factory=dict)
    written: dict[str, tuple[bytes, Session]] = field(default_factory=dict)
    copying: int = 0
    copied: int = 0

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
        kept.touched[key] = (kept.sessions[key].revision, expires)

    def stored_expiry(self, slot: int, key: str) -> int:
        """When a session expires as far as etcd knows; 0 if there is none."""
        session = self.sessions_of(slot).get(key)
        return session.expires if session is not None else 0

    def unreadable(self, slot: int, key: str) -> str:
        """Why a session that exists in etcd cannot be opened here; '' for all others."""
        kept = self._slots.get(slot)
        return kept.unreadable[key][1] if kept and key in kept.unreadable else ""

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
        """Forget a slot that this member no longer holds."""
        self._slots.pop(slot, None)

    def drop_all(self) -> None:
        """Forget everything: after a gap in the watch nothing here is known to be current."""
        self._slots.clear()

    async def full_sync(self, slot: int) -> None:
        """Start to hold a slot and copy its sessions from etcd; nothing to do when it is synced already.

        Raises ``EtcdError`` when etcd cannot be read now; calling again is fine.
        """
        kept = self._slots.setdefault(slot, _Slot())
        if not kept.synced:
            await self.refresh(slot)

    async def recopy(self, slot: int) -> None:
        """Forget a held slot and copy it from etcd; until then it is not synced. Raises ``EtcdError`` like the above.

        Unlike :meth:`refresh`, this drops what a faulty copy holds, whatever its revision is. Changes that arrive
        meanwhile are taken in as in a first copy.
        """
        self._slots[slot] = _Slot()
        await self.refresh(slot)

    async def refresh(self, slot: int) -> int:
        """Copy a slot's sessions from etcd as of now, whatever is known here; returns the copy's revision."""
        kept = self._slots.setdefault(slot, _Slot())
        kept.copying += 1
        try:
            revision, present = await self._copy(slot, kept)
        finally:
            kept.copying -= 1
        for key in [key for key, session in kept.sessions.items() if session.revision <= revision]:
            if key not in present:
                del kept.sessions[key]
        for key in [key for key, (written, _) in kept.unreadable.items() if written <= revision]:
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
            if kept is None or event.kv.mod_revision <= kept.copied:
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
        if kept is not None:
            kept.written[key] = (value, session)
        return value

    def forget_write(self, slot: int, key: str) -> None:
        """What became of a write is known."""
        kept = self._slots.get(slot)
        if kept is not None:
            kept.written.pop(key, None)

    def committed(self, slot: int, key: str, session: Session | None, revision: int) -> None:
        """Take in this process's own commit at ``revision`` (None: the session was removed)."""
        kept = self._slots.get(slot)
        if kept is None:
            return
        if session is None:
            self._remove(kept, key, revision)
        else:
            known = kept.sessions.get(key)
            if known is None or known.revision < revision:
                kept.sessions[key] = session.at(revision)

    def _put(self, kept: _Slot, key: str, kv: Kv) -> None:
        revision = kv.mod_revision
        known = kept.sessions.get(key)
        if (known is not None and known.revision >= revision) or kept.removed.get(key, 0) >= revision:
            return
        if kept.unreadable and kept.unreadable.get(key, (0, ""))[0] >= revision:
            return
        own = kept.written.get(key)
        try:
            if own is not None and own[0] == kv.value:
                kept.sessions[key] = own[1].at(revision)
            else:
                kept.sessions[key] = self.codec.decode(kv.key, kv.value, revision)
        except UnreadableSession as error:
            kept.sessions.pop(key, None)
            kept.unreadable[key] = (revision, str(error))
            logger.warning("session at revision %d cannot be opened: %s", revision, error)
            if isinstance(error, KeyMissing):
                self.fault = f"sessions are encrypted with key {error.key_id}, which is not in --session-keys"
        else:
            kept.unreadable.pop(key, None)

    @staticmethod
    def _remove(kept: _Slot, key: str, revision: int) -> None:
        known = kept.sessions.get(key)
        if known is not None and known.revision < revision:
            del kept.sessions[key]
        if key in kept.unreadable and kept.unreadable[key][0] < revision:
            del kept.unreadable[key]
        if kept.copying:
            kept.removed[key] = max(revision, kept.removed.get(key, 0))


def _touched(kept: _Slot, key: str, session: Session) -> Session:
    """The session with the expiry that it was renewed to, unless it was written since."""
    revision, expires = kept.touched[key]
    if revision == session.revision:
        return replace(session, expires=expires)
    del kept.touched[key]
    return session
