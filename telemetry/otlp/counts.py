"""How many requests the front Envoys answered, period by period, from their OpenTelemetry stats sink. Pure.

The counterpart of :mod:`understudy.telemetry.otlp.logs`, which has each failed request; this module has the number of
all requests. A :class:`Period` is what one Envoy counted between two of its reports. Nothing is guessed: a period
without requests is known by Envoy's uptime, which every report has; without an uptime there is no period. Metrics of
other senders are refused, since nothing here reads them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import msgspec
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
)

from understudy.telemetry.otlp.otlp_json import first, objects, parse_into, parse_object
from understudy.telemetry.otlp.spans import MAX_NS, MAX_TEXT, mapping
from understudy.telemetry.tracing.names import (
    COUNT_DROPPED,
    COUNT_DURATION,
    COUNT_FAILED,
    COUNT_KEYLESS,
    COUNT_LIMITED,
    COUNT_POOL_FAILED,
    COUNT_POOL_KEYED,
    COUNT_POOL_KEYLESS,
    COUNT_REQUESTS,
    COUNT_SECONDS,
    COUNT_SERVED,
    COUNT_UNREACHED,
    COUNT_UPTIME,
    MEMBER,
    METRICS,
    NODE_NAME,
    POOL,
    SITE,
    SITE_PREFIX,
)

FINE_NS = 2 * COUNT_SECONDS * 10**9
"""The longest period that tells something of a single moment; longer ones were put together from many."""
MOST_MEMBERS = 2_000
"""Points of one metric that are read, one per member, or one per pool and host."""
_OF_POOLS = (COUNT_POOL_KEYED, COUNT_POOL_KEYLESS, COUNT_POOL_FAILED)
"""Metrics of an Envoy that serves several pools; each point names its pool."""
_SEVERAL_POINTS = (COUNT_UNREACHED, COUNT_SERVED, *_OF_POOLS)
MOST_BUCKETS = 64
MAX_MS = 86_400_000.0
_GROUPS = ("resourceMetrics", "resource_metrics")
_YEAR_2000_NS = 946_684_800 * 10**9


@dataclass(frozen=True, slots=True)
class Period:
    """What the Envoy ``node`` counted from ``start_ns`` to ``end_ns``, in ns since 1970 by its own clock.

    ``failed`` of ``requests`` were answered with 5xx; ``dropped`` reports of single requests were never sent.
    ``arrived_ns`` is when it was stored, by the control server's clock; 0 if that is not known. ``pool`` is empty where
    only one is kept.
    """

    node: str
    start_ns: int
    end_ns: int
    requests: int = 0
    failed: int = 0
    dropped: int = 0
    arrived_ns: int = 0
    pool: str = ""


class FrontCount(msgspec.Struct, frozen=True):
    """What the Envoy ``node`` counted in a period besides: nothing of it is stored.

    ``keyless`` of ``requests`` had no session key; ``limited`` of them were beyond the pool's requests a second.
    ``unreached``: of which members how many health checks failed on the network. ``durations``: how many answers took
    at most so many ms, and longer than the next smaller number. ``pool`` is the one that the Envoy says it serves; an
    Envoy of several pools has one of these for each. ``failed`` of ``requests`` were answered with 5xx. ``served``: how
    many requests with a session key were sent to which member, from an Envoy that has a ``site``.
    """

    node: str
    requests: int
    keyless: int
    unreached: Mapping[str, int]
    durations: Mapping[float, int] = msgspec.field(default_factory=dict)
    pool: str = ""
    limited: int = 0
    failed: int = 0
    site: str = ""
    served: Mapping[str, int] = msgspec.field(default_factory=dict)


class PeriodBatch(msgspec.Struct, frozen=True):
    """What an export request held: the periods, how many points were refused, and why the first of those was."""

    periods: tuple[Period, ...]
    refused: int = 0
    reason: str = ""
    fronts: tuple[FrontCount, ...] = ()


def read_otlp_metrics(payload: bytes) -> PeriodBatch:
    """Read the bytes of an ``ExportMetricsServiceRequest``; raises ``ValueError`` when they are not one."""
    try:
        request = ExportMetricsServiceRequest.FromString(payload)
    except DecodeError as broken:
        raise ValueError(f"not an ExportMetricsServiceRequest: {broken}") from broken
    return _periods(request.resource_metrics)


def read_otlp_metrics_json(text: str | bytes) -> PeriodBatch:
    """The same in OTLP's JSON encoding."""
    groups = first(parse_object(text), _GROUPS)
    if groups is None:
        raise ValueError("no resourceMetrics in it")
    return _periods(parse_into(group, ResourceMetrics()) for group in objects(groups))


def _periods(groups: Iterable[ResourceMetrics]) -> PeriodBatch:
    kept: list[Period] = []
    fronts: list[FrontCount] = []
    refused, reason = 0, ""
    for group in groups:
        resource = mapping(group.resource.attributes)
        node, pool = str(resource.get(NODE_NAME) or "")[:MAX_TEXT], str(resource.get(POOL) or "")[:MAX_TEXT]
        points: dict[str, NumberDataPoint] = {}
        site = str(resource.get(SITE) or "")[:MAX_TEXT].removeprefix(SITE_PREFIX)
        unreached: dict[str, int] = {}
        served: dict[str, int] = {}
        durations: dict[float, int] = {}
        of_pools = _PoolCounts(node)
        for metric in (metric for scope in group.scope_metrics for metric in scope.metrics):
            fault = _fault(metric, node)
            if fault:
                refused, reason = refused + 1, reason or fault
            elif metric.name in _OF_POOLS or (metric.name == COUNT_UNREACHED and _names_pools(metric)):
                of_pools.add(metric)
            elif metric.name == COUNT_UNREACHED:
                unreached |= _by_member(metric)
            elif metric.name == COUNT_SERVED:
                served |= _by_member(metric)
            elif metric.name == COUNT_DURATION:
                durations |= _durations(metric)
            else:
                points[metric.name] = _points(metric)[0]
        if points:
            kept.append(replace(_period(node, points), pool=pool))
        if points or unreached or durations or served:
            requests, keyless = _count(points, COUNT_REQUESTS), _count(points, COUNT_KEYLESS)
            limited, failed = _count(points, COUNT_LIMITED), _count(points, COUNT_FAILED)
            fronts.append(
                FrontCount(node, requests, keyless, unreached, durations, pool, limited, failed, site, served)
            )
        fronts += of_pools.fronts()
    return PeriodBatch(tuple(kept), refused, reason, tuple(fronts))


class _PoolCounts:
    """What an Envoy of several pools counted, by pool."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._unreached: defaultdict[str, dict[str, int]] = defaultdict(dict)

    def add(self, metric: Metric) -> None:
        for point in _points(metric):
            said = mapping(point.attributes)
            pool, member = str(said.get(POOL) or "")[:MAX_TEXT], said.get(MEMBER)
            if metric.name != COUNT_UNREACHED:
                self._counts[pool][metric.name] += point.as_int
            elif member and point.as_int:
                self._unreached[pool][str(member)[:MAX_TEXT]] = point.as_int

    def fronts(self) -> Iterable[FrontCount]:
        for pool in {**self._counts, **self._unreached}:
            counts, unreached = self._counts[pool], self._unreached[pool]
            keyless, failed = counts[COUNT_POOL_KEYLESS], counts[COUNT_POOL_FAILED]
            requests = counts[COUNT_POOL_KEYED] + keyless
            if pool and (requests or unreached):
                yield FrontCount(self._node, requests, keyless, unreached, pool=pool, failed=failed)


def _names_pools(metric: Metric) -> bool:
    return any(POOL in mapping(point.attributes) for point in _points(metric))


def _fault(metric: Metric, node: str) -> str:
    """Why a metric is not kept; empty when it is."""
    if metric.name not in METRICS:
        return f"only {', '.join(METRICS)} are kept"
    if not node:
        return f"the resource has no {NODE_NAME}"
    if metric.name == COUNT_DURATION:
        return _fault_of_durations(metric)
    points = _points(metric)
    sound = all(0 < point.time_unix_nano <= MAX_NS and 0 <= point.as_int <= MAX_NS for point in points)
    if not sound or not 0 < len(points) <= (MOST_MEMBERS if metric.name in _SEVERAL_POINTS else 1):
        return f"{metric.name} must have one point with a time and a whole number"
    delta = metric.sum.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
    if metric.name != COUNT_UPTIME and not (metric.HasField("sum") and delta):
        return f"{metric.name} must be a sum of deltas"
    return ""


def _fault_of_durations(metric: Metric) -> str:
    points = list(metric.histogram.data_points)
    if metric.histogram.aggregation_temporality != AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA:
        return f"{metric.name} must be a histogram of deltas"
    if len(points) != 1 or not 0 < len(points[0].explicit_bounds) <= MOST_BUCKETS:
        return f"{metric.name} must have one point with 1 to {MOST_BUCKETS} bounds"
    bounds, counts = list(points[0].explicit_bounds), points[0].bucket_counts
    rising = bounds == sorted(set(bounds)) and bounds[0] > 0 and bounds[-1] <= MAX_MS
    if not rising or len(counts) != len(bounds) + 1 or max(counts) > MAX_NS:
        return f"{metric.name} must have rising bounds in ms, and a count for each"
    return ""


def _durations(metric: Metric) -> dict[float, int]:
    """The counts of a histogram by the upper bound of their bucket; the last one has no bound, and gets the last."""
    (point,) = metric.histogram.data_points
    found: Counter[float] = Counter()
    for bound, count in zip([*point.explicit_bounds, point.explicit_bounds[-1]], point.bucket_counts, strict=True):
        found[bound] += count
    return dict(+found)


def _points(metric: Metric) -> list[NumberDataPoint]:
    return list(metric.sum.data_points if metric.HasField("sum") else metric.gauge.data_points)


def _by_member(metric: Metric) -> dict[str, int]:
    """The counts of a metric's points by the member that each names."""
    named = ((mapping(point.attributes).get(MEMBER), point.as_int) for point in _points(metric))
    return {str(member)[:MAX_TEXT]: count for member, count in named if member and count}


def _count(points: Mapping[str, NumberDataPoint], name: str) -> int:
    return points[name].as_int if name in points else 0


def _period(node: str, points: dict[str, NumberDataPoint]) -> Period:
    end = max(point.time_unix_nano for point in points.values())
    starts = [_start(point) for point in points.values() if point.start_time_unix_nano]
    start = max(starts, default=end - COUNT_SECONDS * 10**9)

    requests, failed, dropped = (_count(points, name) for name in (COUNT_REQUESTS, COUNT_FAILED, COUNT_DROPPED))
    return Period(node, min(start, end), end, requests, failed, dropped)


def _start(point: NumberDataPoint) -> int:
    """When a point's time began. Envoy 1.40 writes the very first one in microseconds."""
    start: int = point.start_time_unix_nano
    return start * 1_000 if start < _YEAR_2000_NS else start
