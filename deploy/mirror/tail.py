"""The tail of an old home: the writes that it has and the new home does not. They are kept in a file, and counted.

The file has the form of a backup, so ordinary tools can read it: a header, then a line for each write in the order of
etcd's revisions, then a digest. A deletion has the value null. It is for people and scripts; nothing restores it.
"""

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec

from understudy.deploy.data.backup_file import FORMAT, Header, encoded, writing
from understudy.deploy.mirror.records import Side
from understudy.statesync.etcd.client import Compacted, EtcdClient, Event, Kv
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.keys import PoolKeys, slot_in

PAGE = 50


class Counted(msgspec.Struct, frozen=True):
    """How large a tail is. ``every_write``: each write was counted, and not only the newest of each session."""

    writes: int
    sessions: int
    every_write: bool


async def write_tail(side: Side, applied: int, until: int, path: Path, version: str) -> Counted:
    """Write what ``side`` has of sessions above revision ``applied`` to ``path``, which is replaced.

    ``until`` is the revision of a change of the pool after which no session can be written any more. If etcd has
    compacted that part of its history, only the newest write of each session is in the file, and deletions are not.
    Raises ``BackupError``, ``EtcdError``.
    """
    keys = side.keys
    try:
        events = [event async for event in _history(side.client, keys, applied + 1, until)]
        every_write = True
    except Compacted:
        events = [Event("put", kv) async for kv in _newest(side.client, keys, applied + 1)]
        every_write = False
    lines = [_line(keys, event) for event in events]
    header = Header(FORMAT, keys.pool, until, time.time(), version, 0, len(lines))
    with writing(path, header, force=True) as append:
        for line in lines:
            append({"session": line})
    return Counted(len(lines), len({(line["slot"], line["key"]) for line in lines}), every_write)


async def _history(client: EtcdClient, keys: PoolKeys, first: int, until: int) -> AsyncIterator[Event]:
    """Every write to a session from revision ``first`` to ``until``. Raises ``Compacted``."""
    async with aclosing(client.watch(keys.everything, first)) as batches:
        async for batch in batches:
            for event in batch.events:
                if event.kv.key.startswith(keys.sessions):
                    yield event
            if batch.events and batch.revision >= until:
                return


async def _newest(client: EtcdClient, keys: PoolKeys, first: int) -> AsyncIterator[Kv]:
    """The sessions that were written at revision ``first`` or later."""
    async for page in client.pages(prefix_range(keys.sessions), page=PAGE):
        for kv in page.kvs:
            if kv.mod_revision >= first:
                yield kv


def _line(keys: PoolKeys, event: Event) -> dict[str, Any]:
    kv = event.kv
    slot = slot_in(kv.key, keys.sessions)
    key = kv.key.removeprefix(keys.slot_sessions(slot))
    value = encoded(kv.value) if event.kind == "put" else None
    return {"slot": slot, "key": key, "revision": kv.mod_revision, "value": value}
