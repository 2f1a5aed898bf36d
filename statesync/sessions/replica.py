"""The sessions that this process keeps in memory, slot by slot.

The stream of a slot's active feeds its copies, and the active itself puts its own writes here. Of two states of a
session the one with the later version counts. A slot is *synced* when all of it is here. A process that claims a slot
of which it has no copy reads it from etcd once (:meth:`Replica.load`).
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from msgspec.structs import replace

from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.replication.messages import Stored
from understudy.statesync.replication.slot_copy import Entry
from understudy.statesync.sessions.session import Session
from understudy.statesync.sessions.session_crypto import PLAIN, KeyMissing, SessionCrypto, UnreadableSession
from understudy.statesync.testing.crash_points import CrashPoint, crash_point

logger = logging.getLogger(__name__)

PAGE = 50
"""Sessions per page of a copy: 50 of the largest that a spec may allow are below the client's 64 MiB per message."""


class _Unreadable(NamedTuple):
    """A session that cannot be opened: its version, why, and its value."""

    version: int
    why: str
    value: bytes


@dataclass(slots=True)
class _Slot:
    """``touched`` has the later expiry of a session that its owner has renewed in memory alone.

    With it is the version that this holds for. ``body_bytes`` are those of all bodies. ``apps`` is how many sessions
    each version of the application wrote last, without tombstones. :meth:`set` and :meth:`remove` keep both.
    """

    sessions: dict[str, Session] = field(default_factory=dict)
    unreadable: dict[str, _Unreadable] = field(default_factory=dict)
    touched: dict[str, tuple[int, int]] = field(default_factory=dict)
    synced: bool = False
    body_bytes: int = 0
    apps: Counter[str] = field(default_factory=Counter)

    def set(self, key: str, session: Session) -> None:
        """Put a session in place of the one of this key, if there is one."""
        before = self.sessions.get(key)
        self.body_bytes += len(session.body) - (len(before.body) if before is not None else 0)
        if before is None or before.app != session.app or before.deleted != session.deleted:
            self._count(before, -1)
            self._count(session, 1)
        self.sessions[key] = session

    def _count(self, session: Session | None, by: int) -> None:
        if session is not None and not session.deleted:
            self.apps[session.app] += by

    def remove(self, key: str) -> None:
        """Forget a session, if there is one of this key."""
        before = self.sessions.pop(key, None)
        if before is not None:
            self.body_bytes -= len(before.body)
            self._count(before, -1)


class Replica:
    """Sessions of the held slots.

    ``copies`` counts the slots that were read from etcd so far; ``copied_at`` is when the last one was (wall time, 0.0:
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
        """The slots whose sessions are kept here, all of them or not."""
        return frozenset(self._slots)

    @property
    def synced(self) -> frozenset[int]:
        """The slots of which everything is here."""
        return frozenset(slot for slot, kept in self._slots.items() if kept.synced)

    def is_synced(self, slot: int) -> bool:
        """Whether everything of ``slot`` is here."""
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

    def session_if_known(self, slot: int, key: str) -> Session | Literal[False] | None:
        """The session as :meth:`session` has it; False if this member cannot say.

        It cannot while the slot is not synced, nor if the session cannot be opened here.
        """
        kept = self._slots.get(slot)
        if kept is None or not kept.synced or key in kept.unreadable:
            return False
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
        """Why a session that exists cannot be opened here; '' for all others."""
        kept = self._slots.get(slot)
        return kept.unreadable[key].why if kept and key in kept.unreadable else ""

    def sessions_of(self, slot: int) -> Mapping[str, Session]:
        """All sessions of a held slot, dead ones included; empty for a slot that is not held."""
        kept = self._slots.get(slot)
        return kept.sessions if kept else {}

    def count(self, slots: Iterable[int]) -> int:
        """How many sessions the given slots hold here, dead ones included."""
        return sum(len(self._slots[slot].sessions) for slot in slots if slot in self._slots)

    def body_bytes(self, slots: Iterable[int]) -> int:
        """The bytes of the bodies of all sessions that the given slots hold here, dead ones included."""
        return sum(self._slots[slot].body_bytes for slot in slots if slot in self._slots)

    def apps(self, slots: Iterable[int]) -> Counter[str]:
        """How many sessions of the given slots each version of the application wrote last; '' for none that is known.

        Expired sessions count until they are removed. Sessions that cannot be opened here do not count.
        """
        found: Counter[str] = Counter()
        for slot in slots:
            if slot in self._slots:
                found.update(self._slots[slot].apps)
        return +found

    def keys(self, slot: int) -> list[str]:
        """The keys of all sessions of a slot, dead and unreadable ones included; empty for a slot that is not held."""
        kept = self._slots.get(slot)
        return [*kept.sessions, *kept.unreadable] if kept is not None else []

    def versions(self, slot: int) -> list[tuple[int, str]]:
        """The same keys, each after its version."""
        kept = self._slots.get(slot)
        return [(_version_in(kept, key), key) for key in self.keys(slot)] if kept is not None else []

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
        return Stored(key, unreadable.version, unreadable.value) if unreadable is not None else None

    # -- whole slots --

    async def load(self, slot: int, wanted: Callable[[], bool] = lambda: True) -> None:
        """Read a slot from etcd as of one revision, in place of what is here, unless it is not ``wanted`` by then.

        Raises ``EtcdError`` when etcd cannot be read now; then nothing has changed.
        """
        kept = _Slot(synced=True)
        prefix = self._keys.slot_sessions(slot)
        async for page in self._client.pages(prefix_range(prefix), page=PAGE):
            for kv in page.kvs:
                if kv.key == prefix:
                    continue  # no session: its key would be empty
                # A release without versions wrote none into the value: the revision stands for it.
                self._keep(kept, slot, Stored(kv.key.removeprefix(prefix), kv.mod_revision, kv.value))
            crash_point(CrashPoint.SYNC_PAGE)
        if wanted():
            self._slots[slot] = kept
            self.copies += 1
            self.copied_at = time.time()

    def clear(self, slot: int) -> None:
        """Empty a slot, of which a copy begins; it is not synced before :meth:`whole`."""
        self._slots[slot] = _Slot()

    def whole(self, slot: int) -> None:
        """Everything of a slot is here: it is synced."""
        self._held(slot).synced = True

    def drop(self, slot: int) -> None:
        """Forget a slot."""
        self._slots.pop(slot, None)

    # -- single sessions --

    def keep(self, slot: int, sessions: Iterable[Stored]) -> None:
        """Keep sessions of a part of a copy, unless a later version is here."""
        kept = self._held(slot)
        for stored in sessions:
            self._keep(kept, slot, stored)

    def show(self, slot: int, writes: Iterable[Entry]) -> None:
        """Carry out writes that are acknowledged, unless a later version is here."""
        kept = self._held(slot)
        for version, write in writes:
            if not write.key:
                continue
            if write.value is not None:
                self._keep(kept, slot, Stored(write.key, version, write.value))
            elif _version_in(kept, write.key) < version:
                kept.remove(write.key)
                kept.unreadable.pop(write.key, None)

    def put(self, slot: int, key: str, session: Session | None) -> None:
        """Take in a write of this process, the active of a slot (None: the session was removed).

        The session has its version already, which is later than those before.
        """
        kept = self._held(slot)
        kept.unreadable.pop(key, None)
        if session is None:
            kept.remove(key)
        else:
            kept.set(key, session)

    def _held(self, slot: int) -> _Slot:
        """A held slot. Raises ``ValueError`` for others: what a stream brings must never be lost in silence."""
        kept = self._slots.get(slot)
        if kept is None:
            raise ValueError(f"slot {slot} is not held")
        return kept

    def _keep(self, kept: _Slot, slot: int, stored: Stored) -> None:
        key, version = stored.key, stored.version
        if _version_in(kept, key) >= version:
            return
        try:
            session = self.codec.decode(self._keys.session(slot, key), stored.value, version)
        except UnreadableSession as error:
            self._note_unreadable(kept, key, _Unreadable(version, str(error), stored.value), error)
        else:
            kept.set(key, session)
            kept.unreadable.pop(key, None)

    def _note_unreadable(self, kept: _Slot, key: str, found: _Unreadable, error: UnreadableSession) -> None:
        kept.remove(key)
        kept.unreadable[key] = found
        logger.warning("a session at version %d cannot be opened: %s", found.version, error)
        if isinstance(error, KeyMissing):
            self.fault = f"sessions are encrypted with key {error.key_id}, which is not in --session-keys"


def _touched(kept: _Slot, key: str, session: Session) -> Session:
    """The session with the expiry that it was renewed to, unless it was written since."""
    version, expires = kept.touched[key]
    if version == session.version:
        return replace(session, expires=expires)
    del kept.touched[key]
    return session


def _version_in(kept: _Slot, key: str) -> int:
    """The version of a session in a slot; 0 if there is none."""
    session = kept.sessions.get(key)
    if session is not None:
        return session.version
    return kept.unreadable[key].version if key in kept.unreadable else 0
