"""``SCAN`` and ``DBSIZE``: the keys of the whole pool, one slot at a time.

The cursor is the number of the next slot, so it needs no memory here, and any member can go on with it. A slot whose
sync set has this member is read from memory, another one from etcd. As in Redis, a key that exists all the time is
returned, and the number of keys in an answer is not what ``COUNT`` says.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

from understudy.proxy.member.local_copies import LocalCopies
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.replication.copy_keeper import CopyKeeper
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.keys import slot_in
from understudy.statesync.pool.pool_clock import PoolClock
from understudy.statesync.redis.command import NOT_AN_INTEGER, SYNTAX_ERROR
from understudy.statesync.redis.glob import Glob
from understudy.statesync.redis.reply import RedisError
from understudy.statesync.redis.value import kind_of
from understudy.statesync.sessions.session import Session
from understudy.statesync.sessions.session_crypto import UnreadableSession

KEYS_AT_ONCE = 10
"""Keys after which an answer ends, unless ``COUNT`` says otherwise; a slot is never divided."""


class KeyScan:
    """Finds keys; one per port."""

    def __init__(
        self, pool: PoolView, copies: LocalCopies, keeper: CopyKeeper, etcd: EtcdClient, clock: PoolClock
    ) -> None:
        self._pool = pool
        self._copies = copies
        self._keeper = keeper
        self._etcd = etcd
        self._clock = clock

    async def scan(self, args: Sequence[bytes]) -> object:
        """The answer to ``SCAN`` with these arguments. Raises ``EtcdError``."""
        spec = self._pool.spec
        if not args[0].isdigit():
            return RedisError("ERR invalid cursor")
        options = _options(args[1:])
        if isinstance(options, RedisError):
            return options
        pattern, count, kind = options
        slot, found = int(args[0]), list[bytes]()
        slots = spec.slots if spec else 0
        await self._read_records()
        while slot < slots:
            await asyncio.sleep(0)  # others want to be answered, however many keys a slot has
            keys = await self._keys(slot)
            found += [key for key, of in keys if kind in (b"", of) and pattern.fits(key)]
            slot += 1
            if len(found) >= count:
                break
        return [b"%d" % (slot if slot < slots else 0), found]

    async def count(self) -> int:
        """How many keys the pool has. Raises ``EtcdError``."""
        spec = self._pool.spec
        await self._read_records()
        total = 0
        for slot in range(spec.slots if spec else 0):
            await asyncio.sleep(0)
            total += len(await self._keys(slot))
        return total

    async def _read_records(self) -> None:
        """Know the sync sets as they are now: who is in one has every acknowledged write. Raises ``EtcdError``.

        A sync record counts only beside the owner record of its epoch, so both are read.
        """
        keys, state = self._pool.identity.keys, self._pool.state
        for prefix, read in ((keys.owners, state.read_owner), (keys.sync_sets, state.read_sync_set)):
            known = self._copies.informer.revision_of(prefix)
            for kv in (await self._etcd.range(prefix_range(prefix), min_mod_revision=known + 1)).kvs:
                with contextlib.suppress(ValueError):  # a key that names no slot; the watch tells of it
                    read(slot_in(kv.key, prefix), kv)

    async def _keys(self, slot: int) -> list[tuple[bytes, bytes]]:
        """The keys of a slot, and the type of each."""
        now = self._clock.expiry_ms()
        if self._pool.view().counts_on(slot) and self._copies.replica.is_synced(slot):
            sessions: Iterator[tuple[str, Session]] = iter(self._in_memory(slot).items())
        else:
            sessions = iter(await self._in_etcd(slot))
        return [
            (key.encode("utf-8", "surrogateescape"), kind_of(session.content_type).encode())
            for key, session in sessions
            if session.alive(now)
        ]

    def _in_memory(self, slot: int) -> dict[str, Session]:
        """The sessions of a slot, with the writes of which this copy does not know yet that they are acknowledged."""
        replica, keys = self._copies.replica, self._pool.identity.keys
        sessions = dict(replica.sessions_of(slot))
        copy = self._keeper.copies.get(slot)
        for version, write in copy.pending if copy is not None else ():
            if not write.key:
                continue
            sessions.pop(write.key, None)
            if write.value is not None:
                with contextlib.suppress(UnreadableSession):
                    sessions[write.key] = replica.codec.decode(keys.session(slot, write.key), write.value, version)
        return sessions

    async def _in_etcd(self, slot: int) -> list[tuple[str, Session]]:
        prefix = self._pool.identity.keys.slot_sessions(slot)
        found = []
        async for page in self._etcd.pages(prefix_range(prefix), page=50):
            for kv in page.kvs:
                try:
                    session = self._copies.replica.codec.decode(kv.key, kv.value, kv.mod_revision)
                except UnreadableSession:
                    continue
                found.append((kv.key.removeprefix(prefix), session))
        return found


def _options(args: Sequence[bytes]) -> tuple[Glob, int, bytes] | RedisError:
    """The pattern, the number of keys and the type that are wanted; b'' for any type."""
    pattern, count, kind = b"*", KEYS_AT_ONCE, b""
    if len(args) % 2:
        return SYNTAX_ERROR
    for name, value in zip(args[::2], args[1::2], strict=True):
        option = name.upper()
        if option == b"MATCH":
            pattern = value
        elif option == b"TYPE":
            kind = value.lower()
        elif option != b"COUNT":
            return SYNTAX_ERROR
        elif not value.removeprefix(b"-").isdigit():
            return NOT_AN_INTEGER
        elif int(value) < 1:
            return SYNTAX_ERROR
        else:
            count = int(value)
    return Glob(pattern), count, kind
