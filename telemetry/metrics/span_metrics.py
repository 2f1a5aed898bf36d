"""What becomes of this process's own spans, as metrics: telemetry that is lost must be seen somewhere else."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from understudy.telemetry.tracing.export_queue import ExportCounts


class SpanMetrics(Collector):
    """Read when Prometheus asks.

    Args:
        registry: where it registers itself.
        counts: of the spans that this process recorded.
        store_dropped: how many spans and records its store could not write; None for a process without a store.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        counts: Callable[[], ExportCounts],
        store_dropped: Callable[[], int] | None = None,
    ) -> None:
        self._counts = counts
        self._store_dropped = store_dropped
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The counts as they are now."""
        counts = self._counts()
        told = "Spans of this process: delivered to a receiver or to its own store, or given up."
        spans = CounterMetricFamily("understudy_spans", told, labels=["outcome"])
        spans.add_metric(["sent"], counts.sent)
        spans.add_metric(["dropped"], counts.dropped)
        yield spans
        yield GaugeMetricFamily("understudy_spans_waiting", "Spans still to be delivered.", counts.waiting)
        if self._store_dropped is not None:
            told = "Spans and log records that this control server's store could not write."
            yield CounterMetricFamily("understudy_store_dropped", told, self._store_dropped())
