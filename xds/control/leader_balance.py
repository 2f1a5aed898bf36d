"""Spreads the leaderships of many pools evenly over the replicas that serve them. Pure, but for the loop at the end.

There is no central decision. Every replica knows from etcd who serves and who leads each of its pools, and follows two
rules. A pool without a leader goes to the replica that leads the fewest: the others wait a little before they stand.
And a replica that leads at least two pools more than another one hands some over, a pool at rest at a time.
"""

import asyncio
import hashlib
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec

logger = logging.getLogger(__name__)

STANDING_STEP = 0.25
"""Seconds that a replica waits for each one that stands before it."""
LONGEST_DELAY = 1.0
CHECK_INTERVAL = 2.0
MOST_AT_ONCE = 20
"""Pools that one check hands over at the most."""


class PoolLead(msgspec.Struct, frozen=True):
    """Who leads a pool and who could.

    Attributes:
        pool: its name.
        leader: the leader's name; '' while there is none.
        replicas: the replicas that serve the pool, and since when they have, as far as this one has seen (seconds).
        at_rest: no slot of the pool moves.
    """

    pool: str
    leader: str
    replicas: Mapping[str, float]
    at_rest: bool = True


def leads_of(pools: Iterable[PoolLead]) -> Counter[str]:
    """The number of pools that each replica leads."""
    return Counter(pool.leader for pool in pools if pool.leader)


def standing_delay(me: str, pool: str, gone: str, replicas: Collection[str], leads: Mapping[str, int]) -> float:
    """Seconds that ``me`` waits before it stands for a pool whose leader ``gone`` has gone.

    The replica that leads the fewest pools does not wait. Among equals the order differs from pool to pool, so that
    the pools of a dead replica are spread.
    """
    order = sorted((one for one in replicas if one != gone), key=lambda one: (leads.get(one, 0), _lot(pool, one)))
    if not order:
        return 0.0
    rank = order.index(me) if me in order else len(order)
    return min(rank * STANDING_STEP, LONGEST_DELAY)


def to_hand_over(me: str, pools: Sequence[PoolLead], now: float, settled: float) -> list[str]:
    """The pools that ``me`` should hand over now.

    Only to replicas that have served the pool for ``settled`` seconds, and only while this makes the numbers more even.
    Several replicas may decide this at once. So each gives only what it leads beyond an equal share, or one pool.
    """
    leads = leads_of(pools)
    replicas = {name for pool in pools for name in pool.replicas}
    surplus = leads[me] - math.ceil(sum(leads.values()) / max(len(replicas), 1))
    most = min(max(surplus, 1), MOST_AT_ONCE)
    found: list[str] = []
    for pool in sorted(pools, key=lambda pool: _lot(pool.pool, me)):
        if len(found) == most:
            break
        others = [one for one, since in pool.replicas.items() if one != me and now - since >= settled]
        if pool.leader != me or not pool.at_rest or not others:
            continue
        other = min(others, key=lambda one: (leads[one], _lot(pool.pool, one)))
        if leads[me] - leads[other] >= 2:
            found.append(pool.pool)
            leads[me] -= 1
            leads[other] += 1
    return found


def _lot(pool: str, replica: str) -> bytes:
    """A number that differs from pool to pool and is the same in every replica."""
    return hashlib.blake2b(f"{pool}\0{replica}".encode(), digest_size=8).digest()


class Sightings:
    """Since when each replica has served each pool, as seen here."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[str, tuple[int, float]]] = {}

    def update(self, pool: str, records: Mapping[str, int], now: float) -> dict[str, float]:
        """Take in the replicas of a pool, with the revisions of their records; returns since when each is known.

        A record that was written again belongs to a replica that was away.
        """
        before = self._seen.get(pool, {})
        seen = self._seen[pool] = {}
        for name, revision in records.items():
            known = before.get(name)
            seen[name] = known if known is not None and known[0] == revision else (revision, now)
        return {name: since for name, (_, since) in seen.items()}

    def forget(self, pool: str) -> None:
        """The pool is not served any more."""
        self._seen.pop(pool, None)


async def keep_balanced(
    me: str, pools: Callable[[], Sequence[PoolLead]], hand_over: Callable[[str], None], settled: float
) -> None:
    """Hand pools over whenever this server leads too many, until cancelled."""
    while True:
        await asyncio.sleep(CHECK_INTERVAL * random.uniform(0.5, 1.5))  # noqa: S311 - so that replicas take turns
        for pool in to_hand_over(me, pools(), asyncio.get_running_loop().time(), settled):
            logger.info("control server %s leads more pools than others: it hands over pool %s", me, pool)
            hand_over(pool)
