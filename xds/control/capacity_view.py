"""The answer of ``/v1/capacity``, and its metrics."""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from understudy.xds.membership.cluster_state import ClusterState
from understudy.xds.membership.load_book import PoolLoad
from understudy.xds.planning.capacity import USABLE, Capacity, NotKnown, ScaleIn, advice, capacity
from understudy.xds.planning.growth import FEWEST_DAYS, HORIZON, Growth, Resource


def capacity_view(found: Capacity, pool: str, scale_in: ScaleIn | None) -> dict[str, Any]:
    """The capacity of a pool as JSON; ``scale_in`` is the member that costs least to empty, if one may go."""
    return {
        "pool": pool,
        "fits": found.fits,
        "members": found.members,
        "wanted_members": found.wanted,
        "usable": USABLE,
        "application": found.application,
        "losses": [
            {**msgspec.to_builtins(one), "fits": one.fits, "worst": round(one.worst, 3)} for one in found.losses
        ],
        "advice": advice(found, pool),
        "scale_in": msgspec.to_builtins(scale_in),
    }


_REMEDIES: dict[Resource, str] = {
    "sessions": "raise limits.sessions (understudy apply), or lower session_ttl",
    "memory": "give members more memory, or start another member",
    "cpu": "start another member (understudy sidecar ..., or kubectl scale)",
    "etcd": "raise etcd's --quota-backend-bytes, and see that it is compacted (docs/operations.md)",
}


def growth_view(one: Growth, pool: str) -> dict[str, Any]:
    """The growth of a resource as JSON, with what to do if its limit may be reached within the horizon."""
    near = one.trend and one.earliest is not None
    return {
        **msgspec.to_builtins(one),
        "needed_days": FEWEST_DAYS,
        "horizon": HORIZON,
        "pool": pool,
        "advice": _REMEDIES[one.resource] if near else "",
    }


class CapacityMetrics(Collector):
    """How many members the pool wants, and how full the busiest survivor of a loss would be; absent until known."""

    def __init__(
        self,
        registry: CollectorRegistry,
        cluster: Callable[[], ClusterState | None],
        load: Callable[[], PoolLoad],
    ) -> None:
        self._cluster = cluster
        self._load = load
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """As of now."""
        cluster = self._cluster()
        if cluster is None:
            return
        try:
            found = capacity(cluster, self._load())
        except NotKnown:
            return
        text = "Members that can carry the load of now when one of them is gone."
        yield GaugeMetricFamily("understudy_wanted_members", text, found.wanted)
        text = "CPU of the busiest survivor if the member went whose loss is worst, as a part of its CPUs."
        worst = max((one.worst for one in found.losses if one.level == "member"), default=0.0)
        yield GaugeMetricFamily("understudy_survivor_cpu", text, worst)
        text = "1 if the members that are left can carry the load when any one is gone."
        yield GaugeMetricFamily("understudy_capacity_fits", text, float(found.fits))
