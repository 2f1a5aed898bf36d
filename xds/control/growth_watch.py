"""Keeps the daily peaks of a pool: sessions, memory, CPU, and the size of etcd.

Every control server does so for itself, in memory. So nothing is written to etcd, and a change of leader loses nothing.
A server that starts begins anew; commands take the answer of the one that knows most days.
"""

import asyncio
import time
from collections.abc import Callable

from understudy.statesync.etcd.client import EtcdClient, EtcdError
from understudy.xds.membership.cluster_state import ClusterState
from understudy.xds.membership.load_book import PoolLoad
from understudy.xds.planning.capacity import USABLE
from understudy.xds.planning.growth import DailyPeaks, Growth, Resource, Usage

LOOK_INTERVAL = 60.0
ETCD_QUOTA = 2 * 1024**3
"""etcd's default for --quota-backend-bytes. etcd before 3.6 does not tell its own."""


class GrowthWatch:
    """The daily peaks of one pool.

    Args:
        client: the etcd client, which is asked for etcd's size.
        cluster: the pool as this server sees it.
        load: the load of the pool now.
    """

    def __init__(
        self, client: EtcdClient, cluster: Callable[[], ClusterState | None], load: Callable[[], PoolLoad]
    ) -> None:
        self._client = client
        self._cluster = cluster
        self._load = load
        self._peaks = DailyPeaks()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            cluster = self._cluster()
            usages = usage_of(cluster, self._load()) if cluster is not None else {}
            try:
                sizes = [one.db_size for one in await self._client.status()]
            except EtcdError:
                sizes = []
            if any(sizes):
                usages["etcd"] = Usage(float(max(sizes)), float(ETCD_QUOTA))
            self._peaks.take(usages, time.time())

    def growth(self) -> list[Growth]:
        """The growth of what was seen, as of now."""
        return self._peaks.growth(time.time())


def usage_of(cluster: ClusterState, load: PoolLoad) -> dict[Resource, Usage]:
    """What a pool uses; empty while a member has not reported its load, since a part of a sum is no sum. Pure.

    Memory is that of the member that is nearest to its limit, as a share of it. CPU may be used up to what is left when
    the largest member is gone.
    """
    serving = [name for name in cluster.members if cluster.state(name).may_hold_slots]
    if not serving or any(name not in load.members for name in serving):
        return {}
    members = [load.members[name] for name in serving]
    reports = [one.report for one in members]
    cpus = [one.cpus for one in reports]
    usages: dict[Resource, Usage] = {
        "sessions": Usage(float(sum(one.sessions for one in members)), float(cluster.spec.limits.sessions)),
        "cpu": Usage(sum(one.cpu for one in reports), USABLE * (sum(cpus) - max(cpus))),
    }
    limited = [one.memory / one.memory_limit for one in reports if one.memory_limit]
    if limited:
        usages["memory"] = Usage(max(limited), 1.0)
    return usages
