"""Lists the pools in an etcd, and deletes one with all its keys."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from understudy.deploy.common.errors import DeployError, NoPoolError
from understudy.deploy.inspect.query import connect
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.key_range import KeyRange, prefix_range
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.pool.keys import GroupKeys, PoolKeys
from understudy.statesync.pool.pools import did_you_mean, pool_names
from understudy.statesync.pool.records import ControlServer, Table
from understudy.statesync.pool.spec import SpecError
from understudy.statesync.pool.spec_reader import decode_known_spec

BATCH = 500
"""Number of keys to delete in one request: small enough for etcd and for its watchers."""
LEAVING_TIMEOUT = 10.0
"""Seconds in which control servers leave a pool without a spec; one that was killed is gone after 5 s."""
LEAVING_POLL = 0.2


async def similar_pool(etcd: EtcdSettings, pool: str) -> str:
    """The question whether a pool with a similar name was meant; '' if there is none."""
    async with connect(etcd) as client:
        return await did_you_mean(client, pool)


@dataclass(frozen=True, slots=True)
class PoolContent:
    """The number of keys that a pool has in etcd.

    ``made``: it has a spec. ``controls`` must be stopped before the pool is deleted. ``leaving`` are the control
    servers that serve every pool; they leave by themselves. ``slots`` is None if the spec is missing or cannot be read.
    ``sessions`` also counts deleted and expired sessions that are still in etcd. ``keys`` counts all keys.
    """

    pool: str
    made: bool
    slots: int | None
    members: tuple[str, ...]
    controls: tuple[str, ...]
    leaving: tuple[str, ...]
    owners: int
    sessions: int
    keys: int


async def read_content(client: EtcdClient, pool: str) -> PoolContent:
    """The content of ``pool``, which is empty if there is no such pool."""
    keys = PoolKeys(pool)

    async def count(within: KeyRange) -> int:
        return (await client.range(within, limit=1, keys_only=True)).count

    async def names(prefix: str) -> tuple[str, ...]:
        page = await client.range(prefix_range(prefix), limit=BATCH, keys_only=True)
        return tuple(kv.key.removeprefix(prefix) for kv in page.kvs)

    spec = await client.get(keys.spec)
    controls = (await client.range(prefix_range(keys.controls), limit=BATCH)).kvs
    every = {kv.key.removeprefix(keys.controls): _serves_every_pool(kv.value) for kv in controls}
    return PoolContent(
        pool,
        spec is not None,
        _slots(spec.value) if spec else None,
        await names(keys.members),
        tuple(name for name, serves in every.items() if not serves),
        tuple(name for name, serves in every.items() if serves),
        await count(prefix_range(keys.owners)),
        await count(prefix_range(keys.sessions)),
        await count(keys.everything),
    )


def _serves_every_pool(record: bytes) -> bool:
    try:
        return ControlServer.decode(record).every_pool
    except ValueError:
        return False


def _slots(spec: bytes) -> int | None:
    try:
        return decode_known_spec(spec)[0].slots
    except SpecError:
        return None


async def read_contents(client: EtcdClient) -> list[PoolContent]:
    """All pools of an etcd, in order. Raises ``Rejected`` if this account may read only its own pool."""
    return [await read_content(client, pool) for pool in await pool_names(client)]


def pools_view(contents: Sequence[PoolContent], etcd: EtcdSettings) -> dict[str, Any]:
    """The output of ``pools``."""
    return {
        "etcd": list(etcd.endpoints),
        "pools": [
            {
                "pool": content.pool,
                "made": content.made,
                "members": len(content.members),
                "controls": len(content.controls) + len(content.leaving),
                "slots": content.slots,
                "sessions": content.sessions,
            }
            for content in contents
        ],
    }


async def require_content(client: EtcdClient, pool: str, etcd: EtcdSettings, *, force: bool) -> PoolContent:
    """The content of ``pool``, which can be deleted.

    Raises:
        NoPoolError: there is no such pool.
        DeployError: processes of the pool run, and ``force`` is not set.
    """
    content = await read_content(client, pool)
    if not content.keys:
        raise NoPoolError(pool, etcd)
    running = [
        *(f"member {name}" for name in content.members),
        *(f"control server {name}" for name in content.controls),
    ]
    if running and not force:
        raise DeployError(
            f"pool {pool!r} has {', '.join(running)}: stop them first (the record of a killed one expires after 10 s), "
            "or give --force"
        )
    return content


async def delete_pool(client: EtcdClient, pool: str) -> int:
    """Delete every key of a pool, its spec first; returns the number of keys.

    Without a spec no sidecar answers a session call, so no application sees a part of a pool. Control servers that
    serve every pool leave it when its spec is gone. They have :data:`LEAVING_TIMEOUT` for that, so that they do not
    write into a pool that is deleted. After an interruption, it can be called again.
    """
    keys = PoolKeys(pool)
    table = await client.get(keys.table)
    deleted = await client.delete(keys.spec)
    give_up = time.monotonic() + LEAVING_TIMEOUT
    while (await read_content(client, pool)).leaving and time.monotonic() < give_up:  # noqa: ASYNC110 - etcd's keys
        await asyncio.sleep(LEAVING_POLL)
    group = _group_in(table.value) if table else ""
    if group:
        deleted += await client.delete(GroupKeys(group).pool(pool))
    rest = keys.everything
    while True:
        page = await client.range(rest, limit=BATCH, keys_only=True)
        if not page.kvs:
            return deleted
        end = f"{page.kvs[-1].key}\0"
        deleted += await client.delete(KeyRange(page.kvs[0].key, end))
        rest = KeyRange(end, rest.end)


def _group_in(table: bytes) -> str:
    try:
        return Table.decode(table).group
    except ValueError:
        return ""
