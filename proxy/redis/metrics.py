"""The Redis port's metrics for Prometheus."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from understudy.proxy.redis.port import RedisPort

_PREFIX = "understudy_"


class RedisCollector(Collector):
    """What the port has counted, read when Prometheus asks."""

    def __init__(self, port: RedisPort) -> None:
        self._port = port

    def collect(self) -> Iterator[Metric]:
        """The port as it is now."""
        commands = CounterMetricFamily(
            f"{_PREFIX}redis_commands",
            "Commands on keys by how they were carried out: from memory, by a commit of this member, or otherwise.",
            labels=("how",),
        )
        for how, count in self._port.executor.counts.items():
            commands.add_metric([how], count)
        yield commands
        yield GaugeMetricFamily(
            f"{_PREFIX}redis_connections", "Connections of Redis clients.", value=len(self._port.clients())
        )
