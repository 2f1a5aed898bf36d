"""The pools of an etcd: listed, and one of them deleted with all its keys."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from understudy.deploy.common.errors import DeployError, NoPoolError
from understudy.deploy.inspect.query import connect
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.key_range import KeyRange, prefix_range
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.pools import did_you_mean, pool_names
from understudy.statesync.pool.spec import SpecError
from understudy.statesync.pool.spec_reader import decode_known_spec

BATCH = 500
"""Keys that are deleted at once: few enough for etcd, and for every watcher that is told of them."""


async def near(etcd: EtcdSettings, pool: str) -> str:
    """A question that names the pool which ``pool`` may be a misspelling of, '' if none is known."""
    async with connect(etcd) as client:
        return await did_you_mean(client, pool)


@dataclass(frozen=True, slots=True)
class Stock:
    """What stands in etcd of one pool.

    ``slots`` is None without a spec that can be read; ``sessions`` counts their records, those too of sessions that
    were deleted a moment ago; ``keys`` counts everything.
    """

    pool: str
    made: bool
    slots: int | None
    members: tuple[str, ...]
    controls: tuple[str, ...]
    owners: int
    sessions: int
    keys: int


async def read_stock(client: EtcdClient, pool: str) -> Stock:
    """What stands in etcd of ``pool``; of one that is not there nothing does."""
    keys = PoolKeys(pool)

    async def count(within: KeyRange) -> int:
        return (await client.range(within, limit=1, keys_only=True)).count

    async def names(prefix: str) -> tuple[str, ...]:
        page = await client.range(prefix_range(prefix), limit=BATCH, keys_only=True)
        return tuple(kv.key.removeprefix(prefix) for kv in page.kvs)

    spec = await client.get(keys.spec)
    return Stock(
        pool,
        spec is not None,
        _slots(spec.value) if spec else None,
        await names(keys.members),
        await names(keys.controls),
        await count(prefix_range(keys.owners)),
        await count(prefix_range(keys.sessions)),
        await count(keys.everything),
    )


def _slots(spec: bytes) -> int | None:
    try:
        return decode_known_spec(spec)[0].slots
    except SpecError:
        return None


async def read_stocks(client: EtcdClient) -> list[Stock]:
    """All pools of an etcd, in order. Raises ``Rejected`` if this account may not read beyond its own pool."""
    return [await read_stock(client, pool) for pool in await pool_names(client)]


def pools_view(stocks: Sequence[Stock], etcd: EtcdSettings) -> dict[str, Any]:
    """The answer of ``pools``."""
    return {
        "etcd": list(etcd.endpoints),
        "pools": [
            {
                "pool": stock.pool,
                "made": stock.made,
                "members": len(stock.members),
                "controls": len(stock.controls),
                "slots": stock.slots,
                "sessions": stock.sessions,
            }
            for stock in stocks
        ],
    }


async def require_stock(client: EtcdClient, pool: str, etcd: EtcdSettings, *, force: bool) -> Stock:
    """What deleting ``pool`` would delete.

    Raises:
        NoPoolError: nothing stands there.
        DeployError: processes of the pool run, and ``force`` is not set.
    """
    stock = await read_stock(client, pool)
    if not stock.keys:
        raise NoPoolError(pool, etcd)
    running = [*(f"member {name}" for name in stock.members), *(f"control server {name}" for name in stock.controls)]
    if running and not force:
        raise DeployError(
            f"pool {pool!r} has {', '.join(running)}: stop them first (the record of a killed one goes after 10 s), "
            "or say --force"
        )
    return stock


async def delete_pool(client: EtcdClient, pool: str) -> int:
    """Delete every key of a pool, its spec first; returns how many there were.

    Without a spec no sidecar answers a session call, so nobody sees half a pool. What is interrupted can be done again.
    """
    keys = PoolKeys(pool)
    deleted = await client.delete(keys.spec)
    rest = keys.everything
    while True:
        page = await client.range(rest, limit=BATCH, keys_only=True)
        if not page.kvs:
            return deleted
        end = f"{page.kvs[-1].key}\0"
        deleted += await client.delete(KeyRange(page.kvs[0].key, end))
        rest = KeyRange(end, rest.end)
