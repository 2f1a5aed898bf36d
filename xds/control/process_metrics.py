"""The Prometheus metrics of a control server process for several pools; each pool's own are beside them.

Computed when Prometheus asks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class ProcessMetrics(Collector):
    """The pools of the process, and the streams that its limits refused.

    Args:
        registry: where it registers itself.
        pools: every pool, with ``ready``, ``leads`` and ``failures``.
        refused: the streams that the limits of the process refused so far, by the limit that they passed.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        pools: Callable[[], Sequence[Mapping[str, object]]],
        refused: Callable[[], Mapping[str, int]],
    ) -> None:
        self._pools = pools
        self._refused = refused
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Everything as it is now."""
        pools = self._pools()
        counts = {
            "served": len(pools),
            "ready": sum(bool(pool["ready"]) for pool in pools),
            "led": sum(bool(pool["leads"]) for pool in pools),
        }
        family = GaugeMetricFamily(
            "understudy_control_pools",
            "Pools of this process: served, of these ready for Envoys, and of these led from here.",
            labels=["kind"],
        )
        for kind, count in counts.items():
            family.add_metric([kind], count)
        yield family
        failures = CounterMetricFamily(
            "understudy_control_pool_failures", "How often a pool failed and was started again.", labels=["pool"]
        )
        for pool in pools:
            if pool["failures"]:
                failures.add_metric([str(pool["pool"])], float(str(pool["failures"])))
        yield failures
        refused = CounterMetricFamily(
            "understudy_control_refused_streams",
            "Streams of all pools that the limits of this process refused, by the limit that they passed.",
            labels=["limit"],
        )
        for limit, count in self._refused().items():
            refused.add_metric([limit], count)
        yield refused
