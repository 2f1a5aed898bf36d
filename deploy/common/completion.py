"""Shell completion of names that only etcd has: pools, members and sites.

Completion must never be in the way. It waits for etcd for 1 s at most, prints no message, and offers nothing if etcd
cannot be reached or may not be read.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.keys import PoolKeys

if TYPE_CHECKING:
    from understudy.deploy.common.options import PoolLocation
    from understudy.statesync.etcd.client import EtcdClient
    from understudy.statesync.etcd.model import Kv

WAIT_MOST = 1.0
ANSWER_MOST = 0.8
"""Seconds for etcd's answer; less than what the shell waits, so that the connection is closed in order."""
_MOST = 1000
"""Names that are read; a shell cannot show more."""
Ask = Callable[["EtcdClient", str], Awaitable[Iterable[str]]]


def complete_pool(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """The pools in etcd that begin with ``incomplete``."""
    return _names(context, incomplete, _pools, pool="any")


def complete_member(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """The members of the pool that begin with ``incomplete``."""
    return _names(context, incomplete, _members)


def complete_site(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """The sites of the pool's members, and those that are out of service."""
    return _names(context, incomplete, _sites)


def _names(context: click.Context, incomplete: str, ask: Ask, pool: str = "") -> list[str]:
    """What ``ask`` finds for the pool of a command line; nothing if that takes too long or fails."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before gRPC is imported: it would write to the terminal
    found: list[str] = []

    def run() -> None:
        with contextlib.suppress(Exception):
            found.extend(asyncio.run(_in_time(_asked(context.params, ask, pool))))

    thread = threading.Thread(target=run, name="completion", daemon=True)  # what still runs then ends with the process
    thread.start()
    thread.join(WAIT_MOST)
    return sorted({name for name in tuple(found) if name.startswith(incomplete)})


async def _in_time(asked: Awaitable[list[str]]) -> list[str]:
    async with asyncio.timeout(ANSWER_MOST):
        return await asked


async def _asked(given: dict[str, Any], ask: Ask, pool: str) -> list[str]:
    place = _place(given, pool)
    async with place.etcd.client() as client:
        return list(await ask(client, place.pool))


def _place(given: dict[str, Any], pool: str) -> "PoolLocation":
    """The pool and its etcd by the options on the command line, as the command itself would find them."""
    from understudy.deploy.common.options import EtcdOptions, locate_pool

    endpoints, ca, cert, key, user = (given.get(f"etcd_{part}") for part in ("endpoints", "ca", "cert", "key", "user"))
    return locate_pool(EtcdOptions(endpoints, ca, cert, key, user), pool or given.get("pool"))


async def _pools(client: "EtcdClient", _: str) -> list[str]:
    from understudy.statesync.pool.pools import pool_names

    return await pool_names(client)


async def _members(client: "EtcdClient", pool: str) -> list[str]:
    prefix = PoolKeys(pool).members
    return [kv.key.removeprefix(prefix) for kv in await _all(client, prefix, keys_only=True)]


async def _sites(client: "EtcdClient", pool: str) -> set[str]:
    from understudy.statesync.etcd.client import Event
    from understudy.statesync.etcd.informer import InformerBatch
    from understudy.statesync.pool.state import PoolState

    state = PoolState(PoolKeys(pool))
    kvs = [kv for part in (state.keys.members, state.keys.site_intents) for kv in await _all(client, part)]
    state.apply(InformerBatch(1, tuple(Event("put", kv) for kv in kvs), reset=True))
    return {site for site in (*(at.record.site for at in state.members.values()), *state.sites) if site}


async def _all(client: "EtcdClient", prefix: str, *, keys_only: bool = False) -> Sequence["Kv"]:
    """The keys of a prefix as the endpoint at hand has them, also if etcd has no leader."""
    page = await client.range(prefix_range(prefix), limit=_MOST, keys_only=keys_only, serializable=True)
    return page.kvs
