"""The Prometheus metrics of xDS: pushes, acknowledgements, streams, times, encodings, resources.

Labelled by type only: nodes, slots, members and sessions come and go without bound, so they are never labels, and
types that only a client has ever named are counted together as ``other``. A registry of its own, so that nothing is
global and several servers fit into one process. Counting costs the hot path two additions and one bucket search.
"""

import bisect
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from understudy.xds.server import types
from understudy.xds.server.cache import AckEvent, PushEvent, ResourceCache
from understudy.xds.server.responses import ConfigStatus
from understudy.xds.server.stream_quota import ADDRESS, TOTAL

OTHER = "other"
_PREFIX = "understudy_xds_"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class _Times:
    """A histogram of durations. Plain numbers, since every push and every response adds to one."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(_SECONDS) + 1)
        self.seconds = 0.0

    def add(self, ns: int) -> None:
        """One duration; a negative one counts as 0."""
        seconds = max(0, ns) / 1e9
        self.counts[bisect.bisect_left(_SECONDS, seconds)] += 1
        self.seconds += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """How many took at most so long."""
        bounds = [*(str(bound) for bound in _SECONDS), "+Inf"]
        return list(zip(bounds, itertools.accumulate(self.counts), strict=True))


@dataclass(slots=True)
class _Counts:
    """What is counted of one type."""

    pushes: int = 0
    resources: int = 0
    sent_bytes: int = 0
    acks: int = 0
    nacks: int = 0
    send: _Times = field(default_factory=_Times)
    ack: _Times = field(default_factory=_Times)


class XdsMetrics:
    """Metrics of one cache and the server in front of it.

    Args:
        cache: what is served; call :meth:`on_push` and :meth:`on_ack` from its hooks.
        streams: how many streams are open now.
        refused: how many streams were refused so far, by the limit that they passed.
    """

    def __init__(
        self, cache: ResourceCache, streams: Callable[[], int], refused: Callable[[], Mapping[str, int]] = dict
    ) -> None:
        self.registry = CollectorRegistry()
        self._counts: dict[str, _Counts] = {}
        self.registry.register(_Collector(self._counts, cache, streams, refused))

    def on_push(self, event: PushEvent) -> None:
        """A response was written."""
        counts = self._counts_of(event.type_url)
        counts.pushes += 1
        counts.resources += event.resources
        counts.sent_bytes += event.size
        if not event.asked and event.changed_at_ns:
            counts.send.add(event.written_at_ns - event.changed_at_ns)

    def on_ack(self, event: AckEvent) -> None:
        """An Envoy answered a response."""
        counts = self._counts_of(event.type_url)
        if event.error is None:
            counts.acks += 1
        else:
            counts.nacks += 1
        counts.ack.add(event.acked_at_ns - event.sent_at_ns)

    def _counts_of(self, type_url: str) -> _Counts:
        name = label(type_url)
        found = self._counts.get(name)
        if found is None:
            found = self._counts[name] = _Counts()
        return found


def label(type_url: str) -> str:
    """A type as a label: its short name, or ``other``."""
    return types.SHORT_NAMES.get(type_url, OTHER)


_COUNTERS = {
    "pushes": ("pushes", "Responses written to Envoys."),
    "resources": ("pushed_resources", "Resources in these responses."),
    "sent_bytes": ("pushed_bytes", "Bytes of these responses."),
    "acks": ("acks", "Responses that an Envoy acknowledged."),
    "nacks": ("nacks", "Responses that an Envoy refused."),
}
_TIMES = {
    "send": (
        "send_seconds",
        "From a change in the cache until the response with it is written, per Envoy; requested ones don't count.",
    ),
    "ack": (
        "ack_seconds",
        "From a response until the Envoy's ACK or NACK; Envoy delays it while clusters warm.",
    ),
}


class _Collector(Collector):
    """Puts the numbers into Prometheus' form when it asks for them."""

    def __init__(
        self,
        counts_by_type: Mapping[str, _Counts],
        cache: ResourceCache,
        streams: Callable[[], int],
        refused: Callable[[], Mapping[str, int]],
    ) -> None:
        self._counts = counts_by_type
        self._cache = cache
        self._streams = streams
        self._refused = refused

    def collect(self) -> Iterator[Metric]:
        """Everything as it is now."""
        for attribute, (name, text) in _COUNTERS.items():
            counter = CounterMetricFamily(f"{_PREFIX}{name}", text, labels=("type",))
            for kind, counts in self._counts.items():
                counter.add_metric([kind], getattr(counts, attribute))
            yield counter
        for attribute, (name, text) in _TIMES.items():
            histogram = HistogramMetricFamily(f"{_PREFIX}{name}", text, labels=("type",))
            for kind, counts in self._counts.items():
                times: _Times = getattr(counts, attribute)
                histogram.add_metric([kind], times.buckets(), times.seconds)
            yield histogram
        counters = self._cache.counters
        yield GaugeMetricFamily(f"{_PREFIX}streams", "Open streams.", value=self._streams())
        yield CounterMetricFamily(f"{_PREFIX}streams_opened", "Streams opened so far.", value=counters.streams)
        yield CounterMetricFamily(
            f"{_PREFIX}refused_requests",
            "Streams that were ended because of what the client sent.",
            value=counters.refused_requests,
        )
        yield CounterMetricFamily(
            f"{_PREFIX}refused_snapshots",
            "Changes that were refused because they do not hold together; the last good content stays.",
            value=counters.refused_snapshots,
        )
        encodings = CounterMetricFamily(
            f"{_PREFIX}encodings",
            "Resources turned into bytes: one per changed resource, however many Envoys there are.",
            labels=("type",),
        )
        for type_url, count in counters.encoded.items():
            encodings.add_metric([label(type_url)], count)
        yield encodings
        yield self._refused_streams()
        yield self._resources()
        yield self._nodes()

    def _refused_streams(self) -> Metric:
        family = CounterMetricFamily(
            f"{_PREFIX}refused_streams",
            "Streams, of heartbeats too, that were refused because too many were open, by the limit that they passed.",
            labels=("limit",),
        )
        counts = self._refused()
        for limit in (ADDRESS, TOTAL):
            family.add_metric([limit], counts.get(limit, 0))
        return family

    def _resources(self) -> Metric:
        family = GaugeMetricFamily(
            f"{_PREFIX}resources", "Resources that are served, listeners of all groups together.", labels=("type",)
        )
        counts: dict[str, int] = {}
        for type_url, count in self._cache.resource_counts().items():
            counts[label(type_url)] = counts.get(label(type_url), 0) + count
        for name, count in counts.items():
            family.add_metric([name], count)
        return family

    def _nodes(self) -> Metric:
        family = GaugeMetricFamily(
            f"{_PREFIX}subscriptions", "Subscriptions of connected Envoys by state.", labels=("type", "state")
        )
        counts: dict[tuple[str, ConfigStatus], int] = {}
        for one in self._cache.status():
            key = label(one.type_url), one.state
            counts[key] = counts.get(key, 0) + 1
        for (name, state), count in counts.items():
            family.add_metric([name, state.value], count)
        return family
