"""Lists the pools of an etcd, and finds the one that was meant by a misspelt name.

A pool is created by its spec (``understudy apply``). A process that is started for a pool without a spec waits for it
and logs that it waits; often the name is misspelt.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence

from understudy.statesync.etcd.client import EtcdClient, EtcdError, Get, Kv
from understudy.statesync.etcd.key_range import KeyRange, prefix_range
from understudy.statesync.pool.keys import ROOT, PoolKeys
from understudy.statesync.pool.spec import SpecError
from understudy.statesync.pool.spec_front import FrontUse
from understudy.statesync.pool.spec_reader import decode_known_spec

logger = logging.getLogger(__name__)

POOLS_MOST = 1000
"""Pools of an etcd that are listed."""
_READS = 100
"""Reads in one transaction; etcd takes 128."""
_SHORT = 5
POLL_INTERVAL = 2.0
"""Seconds between two checks whether the pool of a process exists."""
CHECKS_PER_WARNING = 30
"""Checks after which it is logged again that the pool does not exist."""


async def pool_names(client: EtcdClient) -> list[str]:
    """The names of all pools of which any key stands in etcd, in order; :data:`POOLS_MOST` at the most.

    Raises ``Rejected`` if this user may not read beyond its own pool.
    """
    return await names_within(client, prefix_range(ROOT))


async def names_within(client: EtcdClient, keys: KeyRange) -> list[str]:
    """The same for the pools whose keys begin within a range. Raises ``Rejected`` if this user may not read it."""
    names: list[str] = []
    rest = keys
    while len(names) < POOLS_MOST and rest.start < rest.end:
        page = await client.range(rest, limit=1, keys_only=True)
        if not page.kvs:
            break
        name, slash, _ = page.kvs[0].key.removeprefix(ROOT).partition("/")
        if slash:
            names.append(name)
        after = PoolKeys(name).everything.end if slash else f"{page.kvs[0].key}\0"
        rest = KeyRange(after, rest.end)
    return sorted(names)


async def pools_with_spec_beside(client: EtcdClient, known: Collection[str]) -> set[str]:
    """The names of the pools that have a spec, found quickly if most of them are among ``known``.

    Reads no values, and at most :data:`_READS` keys in one transaction: a few transactions for hundreds of pools, and
    another one for each pool that is not known yet. Raises as :func:`pool_names`.
    """
    names = set(known or await pool_names(client))
    while True:
        ordered = sorted(names, key=lambda name: PoolKeys(name).prefix)
        starts = [ROOT, *(PoolKeys(name).everything.end for name in ordered)]
        ends = [*(PoolKeys(name).prefix for name in ordered), prefix_range(ROOT).end]
        gaps = [Get(KeyRange(start, end), 1, keys_only=True) for start, end in zip(starts, ends, strict=True)]
        between = {kv.key.removeprefix(ROOT).partition("/")[0] for kv in await _read(client, gaps) if _of_pool(kv.key)}
        if not between:
            break
        names |= between
    specs = [Get(PoolKeys(name).spec, 1, keys_only=True) for name in sorted(names)]
    return {kv.key.removeprefix(ROOT).partition("/")[0] for kv in await _read(client, specs)}


def _of_pool(key: str) -> bool:
    return "/" in key.removeprefix(ROOT)


async def _read(client: EtcdClient, reads: Sequence[Get]) -> list[Kv]:
    found: list[Kv] = []
    for first in range(0, len(reads), _READS):
        result = await client.txn([], reads[first : first + _READS])
        found += [kv for answer in result.answers for kv in answer]
    return found


async def fronts_beside(client: EtcdClient, pool: str) -> list[FrontUse]:
    """What the pools beside ``pool`` want of front Envoys; those whose spec cannot be read are left out.

    Raises ``Rejected`` if this user may not read beyond its own pool.
    """
    others = [name for name in await pool_names(client) if name != pool]
    found = []
    for kv in await _read(client, [Get(PoolKeys(name).spec) for name in others]):
        try:
            spec, _ = decode_known_spec(kv.value)
        except SpecError:
            continue
        if spec.front_use is not None:
            found.append(spec.front_use)
    return found


async def pools_with_spec(client: EtcdClient) -> list[str]:
    """The names of the pools that have a spec, in order. Raises as :func:`pool_names`."""
    return [name for name in await pool_names(client) if await _has_spec(client, name)]


async def _has_spec(client: EtcdClient, pool: str) -> bool:
    spec = PoolKeys(pool).spec
    return bool((await client.range(KeyRange(spec, f"{spec}\0"), limit=1, keys_only=True)).kvs)


def nearest(pool: str, others: Sequence[str]) -> str:
    """The one of ``others`` that ``pool`` may be a misspelling of; '' if there is none.

    One wrong key press counts as a misspelling; in a long name, two.
    """
    slips = 1 if len(pool) <= _SHORT else 2
    near = [(_slips(pool, name), name) for name in others if name != pool and abs(len(name) - len(pool)) <= slips]
    fewest, name = min(near, default=(slips + 1, ""))
    return name if fewest <= slips else ""


def _slips(one: str, other: str) -> int:
    """The number of letters that are wrong, missing, added, or exchanged with the next one."""
    before: list[int] = []
    last = list(range(len(other) + 1))
    for row, letter in enumerate(one, 1):
        current = [row]
        for column, wanted in enumerate(other, 1):
            cost = min(last[column] + 1, current[-1] + 1, last[column - 1] + (letter != wanted))
            if row > 1 and column > 1 and (one[row - 2], letter) == (wanted, other[column - 2]):
                cost = min(cost, before[column - 2] + 1)
            current.append(cost)
        before, last = last, current
    return last[-1]


async def neighbour(client: EtcdClient, pool: str) -> str:
    """The pool whose name ``pool`` may be a misspelling of; '' if there is none or this user may not see it."""
    try:
        return nearest(pool, await pools_with_spec(client))
    except EtcdError:
        return ""


async def did_you_mean(client: EtcdClient, pool: str) -> str:
    """What to add to a message that ``pool`` was not found: a question with the nearest name; '' if none is near."""
    near = await neighbour(client, pool)
    return f"did you mean {near!r}?" if near else ""


class PoolWatch:
    """Reports while the pool of this process is not in etcd: in the log, and as ``fault``."""

    def __init__(self, client: EtcdClient, pool: str, missing: Callable[[], bool]) -> None:
        """``missing``: whether etcd was read and holds no spec of the pool."""
        self._client = client
        self._pool = pool
        self._missing = missing
        self.fault = ""

    async def run(self) -> None:
        """Check until cancelled."""
        checks = 0
        while True:
            await asyncio.sleep(POLL_INTERVAL)
            if not self._missing():
                if self.fault:
                    logger.info("pool %s exists now", self._pool)
                self.fault, checks = "", 0
                continue
            if checks % CHECKS_PER_WARNING == 0:
                self.fault = await self._fault()
                logger.warning("waiting: %s", self.fault)
            checks += 1

    async def _fault(self) -> str:
        near = await did_you_mean(self._client, self._pool)
        return f"there is no pool {self._pool!r} in etcd: {near or 'understudy apply makes it'}"
