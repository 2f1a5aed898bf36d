"""Reads sessions from etcd, without their keys: what is encrypted stays so."""

import contextlib
from dataclasses import dataclass

from understudy.deploy.common.errors import DeployError
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.keys import PoolKeys, slot_in
from understudy.statesync.pool.state import PoolState
from understudy.statesync.sessions.session import Session
from understudy.statesync.sessions.session_crypto import outline


@dataclass(frozen=True, slots=True)
class FoundSession:
    """A session in etcd."""

    key: str
    slot: int
    session: Session


async def read_session(client: EtcdClient, state: PoolState, key: str, slot: int) -> FoundSession | None:
    """One session, or the tombstone of a deleted one; None if there is no record.

    Raises :class:`DeployError` if the record is not a session.
    """
    kv = await client.get(state.keys.session(slot, key))
    try:
        return FoundSession(key, slot, outline(kv.value, kv.mod_revision)) if kv else None
    except ValueError as error:
        raise DeployError(f"the session of key {key!r} cannot be read: {error}") from None


async def read_sessions(
    client: EtcdClient, keys: PoolKeys, *, limit: int, slot: int | None = None
) -> tuple[list[FoundSession], int]:
    """The first ``limit`` sessions in order of slot and key, and the number of records."""
    within = prefix_range(keys.sessions if slot is None else keys.slot_sessions(slot))
    page = await client.range(within, limit=limit)
    found = []
    for kv in page.kvs:
        with contextlib.suppress(ValueError):
            number = slot_in(kv.key, keys.sessions)
            key = kv.key.removeprefix(keys.slot_sessions(number))
            found.append(FoundSession(key, number, outline(kv.value, kv.mod_revision)))
    return found, page.count
