"""What front Envoys count: read from OTLP metrics, kept by the hour, and as it came around changes of active."""

import pytest
from google.protobuf.json_format import MessageToJson
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tests.telemetry.support import EPOCH_NS, MS, root, text_attribute
from understudy.telemetry.otlp.counts import Period, read_otlp_metrics, read_otlp_metrics_json
from understudy.telemetry.store.retention import Retention
from understudy.telemetry.store.store import SpanStore

SECOND = 1000 * MS
HOUR = 3600 * SECOND
DELTA, CUMULATIVE = 1, 2


def export(counts: dict[str, int], *, node: str = "front-1", start: int = EPOCH_NS, temporality: int = DELTA):
    """A request as Envoy 1.40 makes it: sums of what rose, and the uptime as a gauge."""
    request = ExportMetricsServiceRequest()
    group = request.resource_metrics.add()
    if node:
        group.resource.attributes.append(text_attribute("node_name", node))
    metrics = group.scope_metrics.add().metrics
    for name, count in counts.items():
        metric = metrics.add(name=name)
        if name == "understudy.uptime":
            metric.gauge.data_points.add(time_unix_nano=EPOCH_NS + 5 * SECOND, as_int=count)
        else:
            metric.sum.aggregation_temporality = temporality
            point = metric.sum.data_points.add(time_unix_nano=EPOCH_NS + 5 * SECOND, as_int=count)
            point.start_time_unix_nano = start
    return request


def test_counts_of_a_period_are_read_in_both_encodings():
    request = export({"understudy.uptime": 60, "understudy.requests": 40, "understudy.requests.failed": 2})
    expected = (Period("front-1", EPOCH_NS, EPOCH_NS + 5 * SECOND, 40, 2),)
    assert read_otlp_metrics(request.SerializeToString()).periods == expected
    assert read_otlp_metrics_json(MessageToJson(request)).periods == expected


def of_pools(**counts: list[tuple[dict[str, str], int]]):
    """A request of an Envoy that serves several pools: each point names its pool."""
    request = export({})
    for name, points in counts.items():
        metric = request.resource_metrics[0].scope_metrics[0].metrics.add(name=name.replace("__", "."))
        metric.sum.aggregation_temporality = DELTA
        for attributes, count in points:
            point = metric.sum.data_points.add(time_unix_nano=EPOCH_NS + 5 * SECOND, as_int=count)
            point.attributes.extend(text_attribute(key, value) for key, value in attributes.items())
    return request


def test_an_envoy_of_several_pools_tells_of_each_and_hosts_of_a_pool_are_added():
    cart, desk, nobody = {"understudy.pool": "cart"}, {"understudy.pool": "desk"}, {"understudy.pool": ""}
    request = of_pools(
        understudy__pool__requests__keyed=[(cart | {"envoy.virtual_host": "a"}, 5), (cart, 2), (desk, 1), (nobody, 9)],
        understudy__pool__requests__keyless=[(cart, 3)],
        understudy__pool__requests__failed=[(desk, 1)],
        understudy__member__unreached=[(desk | {"understudy.member": "desk-1"}, 4)],
    )
    batch = read_otlp_metrics(request.SerializeToString())
    told = [(one.pool, one.requests, one.keyless, one.failed, dict(one.unreached)) for one in batch.fronts]
    assert told == [("cart", 10, 3, 0, {}), ("desk", 1, 0, 1, {"desk-1": 4})]
    assert (batch.periods, batch.refused) == ((), 0)


def test_an_envoy_with_a_site_tells_how_many_requests_it_sent_to_which_member():
    request = of_pools(
        understudy__member__requests=[({"understudy.member": "cart-1"}, 7), ({"understudy.member": "cart-2"}, 2)]
    )
    request.resource_metrics[0].resource.attributes.append(text_attribute("understudy.site", "site:east"))
    (front,) = read_otlp_metrics(request.SerializeToString()).fronts
    assert (front.site, front.served) == ("east", {"cart-1": 7, "cart-2": 2})
    request.resource_metrics[0].resource.attributes[-1].value.string_value = "site:"
    assert read_otlp_metrics(request.SerializeToString()).fronts[0].site == "", "of a pod without a zone"


def durations(bounds: list[float], counts: list[int], *, temporality: int = DELTA, points: int = 1):
    """A request with a histogram, as Envoy 1.40 makes it; the last count is of what is above all bounds."""
    request = export({})
    metric = request.resource_metrics[0].scope_metrics[0].metrics.add(name="understudy.requests.duration")
    metric.histogram.aggregation_temporality = temporality
    for _ in range(points):
        metric.histogram.data_points.add(explicit_bounds=bounds, bucket_counts=counts)
    return request


def test_how_long_answers_took_is_read_by_bucket():
    for read, payload in (
        (read_otlp_metrics, durations([0.5, 10, 250], [7, 0, 2, 1]).SerializeToString()),
        (read_otlp_metrics_json, MessageToJson(durations([0.5, 10, 250], [7, 0, 2, 1]))),
    ):
        batch = read(payload)
        assert [(front.node, front.durations) for front in batch.fronts] == [("front-1", {0.5: 7, 250.0: 3})]
        assert (batch.periods, batch.refused) == ((), 0)


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (durations([1], [1, 1], temporality=CUMULATIVE), "histogram of deltas"),
        (durations([1], [1, 1], points=2), "one point"),
        (durations([], [1]), "1 to 64 bounds"),
        (durations(list(range(1, 66)), [1] * 66), "1 to 64 bounds"),
        (durations([1, 2], [1, 1]), "a count for each"),
        (durations([2, 1], [1, 1, 1]), "rising bounds"),
        (durations([0, 1], [1, 1, 1]), "rising bounds"),
        (durations([float("nan")], [1, 1]), "rising bounds"),
        (durations([1, float("inf")], [1, 1, 1]), "rising bounds"),
        (durations([1], [1, 2**63]), "a count for each"),
        (export({"understudy.requests.duration": 4}), "histogram of deltas"),
    ],
)
def test_a_histogram_that_tells_nothing_is_refused(request_, why):
    batch = read_otlp_metrics(request_.SerializeToString())
    assert (batch.fronts, batch.refused) == ((), 1)
    assert why in batch.reason


def test_an_idle_period_is_known_by_the_uptime():
    (idle,) = read_otlp_metrics(export({"understudy.uptime": 60}).SerializeToString()).periods
    assert idle == Period("front-1", EPOCH_NS, EPOCH_NS + 5 * SECOND)


def test_the_very_first_start_of_an_envoy_is_in_microseconds():
    request = export({"understudy.requests": 4}, start=EPOCH_NS // 1000)
    assert read_otlp_metrics(request.SerializeToString()).periods[0].start_ns == EPOCH_NS


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (export({"http.server.requests": 4}), "only understudy.requests"),
        (export({"understudy.requests": 4}, node=""), "node_name"),
        (export({"understudy.requests": 4}, temporality=CUMULATIVE), "sum of deltas"),
        (export({"understudy.requests": -4}), "whole number"),
    ],
)
def test_what_cannot_be_counted_is_refused_and_told(request_, why):
    batch = read_otlp_metrics(request_.SerializeToString())
    assert (batch.periods, batch.refused) == ((), 1)
    assert why in batch.reason


@pytest.mark.parametrize("text", ["{}", "[]", '{"resourceMetrics": [{"resource": 5}]}'])
def test_json_that_is_no_export_is_refused(text):
    with pytest.raises(ValueError, match=r"resource|Resource|object"):
        read_otlp_metrics_json(text)


def test_bytes_that_are_no_export_are_refused():
    with pytest.raises(ValueError, match="ExportMetricsServiceRequest"):
        read_otlp_metrics(b"\xff\xff")


def periods(start: int, count: int, node: str = "front-1") -> list[Period]:
    """So many periods of 5 s with 10 requests each."""
    return [
        Period(node, start + n * 5 * SECOND, start + (n + 1) * 5 * SECOND, 10, 1, arrived_ns=start)
        for n in range(count)
    ]


async def test_old_counts_are_put_together_by_the_hour_but_not_around_a_change_of_active(tmp_path):
    clock = [EPOCH_NS]
    store = SpanStore(tmp_path / "traces.db", retention=Retention(sweep_every=1), now_ns=lambda: clock[0])
    midnight = EPOCH_NS // HOUR * HOUR
    store.add([root(400)])
    store.add_counts(periods(midnight, 4 * 720))
    store.add_counts(periods(midnight, 4 * 720, "front-2"))
    store.add_counts(periods(midnight, 4 * 720))
    await store.flush()
    before = await store.counts(0, 1 << 62)
    assert len(before) == 2 * 4 * 720
    clock[0] = midnight + 5 * HOUR
    store.add_counts(periods(midnight + 4 * HOUR + 5 * SECOND, 1))
    kept = await store.counts(0, 1 << 62)
    assert sum(one.requests for one in kept) == sum(one.requests for one in before) + 10
    assert sum(one.failed for one in kept) == sum(one.failed for one in before) + 1
    fine = [one for one in kept if one.end_ns - one.start_ns <= 5 * SECOND and one.end_ns < midnight + 4 * HOUR]
    assert {one.node for one in fine} == {"front-1", "front-2"}
    assert all(one.start_ns <= EPOCH_NS + 400 * MS and one.end_ns >= EPOCH_NS for one in fine)
    assert len(kept) - len(fine) == 2 * 4 + 1
    await store.aclose()


async def test_there_are_never_more_counts_than_the_bound(tmp_path):
    store = SpanStore(tmp_path / "traces.db", retention=Retention(counts=5, sweep_every=1), now_ns=lambda: EPOCH_NS)
    store.add_counts(periods(EPOCH_NS, 20))
    assert [one.start_ns for one in await store.counts(0, 1 << 62)] == [
        one.start_ns for one in periods(EPOCH_NS, 20)[-5:]
    ]
    await store.aclose()
