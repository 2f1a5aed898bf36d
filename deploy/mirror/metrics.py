"""The metrics of ``understudy mirror``."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from understudy.statesync.pool.home import Role, loss_now

if TYPE_CHECKING:
    from understudy.deploy.mirror.process import MirrorProcess


def metrics_of(mirror: "MirrorProcess", pool: str) -> CollectorRegistry:
    """The metrics of the mirror process of a pool, as of each time that they are asked for."""
    registry = CollectorRegistry()
    Info("understudy_pool", "The pool of the process", registry=registry).info({"pool": pool})
    registry.register(_MirrorCollector(mirror))
    return registry


class _MirrorCollector(Collector):
    def __init__(self, mirror: "MirrorProcess") -> None:
        self._mirror = mirror

    def collect(self) -> Iterator[Metric]:
        home, copier = self._mirror.home, self._mirror.copier
        role = GaugeMetricFamily("understudy_home_role", "1 for the role of this side", labels=["role"])
        for one in Role:
            role.add_metric([one], float(home is not None and home.role is one))
        yield role
        yield GaugeMetricFamily(
            "understudy_home_term", "The term of the home record of this side", value=home.term if home else 0
        )
        here, there = self._mirror.sites
        yield InfoMetricFamily("understudy_mirror", "The two sites of the pool", value={"site": here, "peer": there})
        yield from self._home()
        if copier is None:
            return
        loss = loss_now(copier.progress, time.time())
        yield GaugeMetricFamily(
            "understudy_mirror_lag_seconds", "Writes of so many seconds would be lost with the home", value=loss.seconds
        )
        yield GaugeMetricFamily(
            "understudy_mirror_lag_writes", "At most so many writes would be lost with the home", value=loss.writes
        )
        yield GaugeMetricFamily(
            "understudy_mirror_whole", "1 unless everything is being copied anew", value=float(copier.progress.whole)
        )
        yield CounterMetricFamily(
            "understudy_mirror_writes", "Writes to sessions that were applied", value=copier.progress.writes
        )
        yield CounterMetricFamily("understudy_mirror_resyncs", "How often everything was copied", value=copier.resyncs)

    def _home(self) -> Iterator[Metric]:
        """Of a side that is the home; 0 at others."""
        guard, home = self._mirror.guard, self._mirror.home
        is_home = home is not None and home.role is Role.HOME
        yield GaugeMetricFamily(
            "understudy_home_unconfirmed_seconds",
            "Seconds since this side was last confirmed as the home",
            value=guard.unconfirmed_seconds if is_home else 0.0,
        )
        yield GaugeMetricFamily(
            "understudy_home_claimed_twice",
            "1 while this side and its peer both say that they are the home",
            value=float(is_home and guard.both),
        )
