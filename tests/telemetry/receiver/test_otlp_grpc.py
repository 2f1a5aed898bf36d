"""The receiver: takes what is OTLP, answers clearly to what is not, and lives on."""

import contextlib
import io

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from rich.console import Console

from tests.telemetry.support import EPOCH_NS, TRACE, otlp_request, otlp_span, receiving, text_attribute
from understudy.telemetry.otlp.spans import MAX_KEY, MAX_NS, MAX_TEXT, MOST_ATTRIBUTES, from_request, read_otlp
from understudy.telemetry.receiver.otlp_grpc import EXPORT
from understudy.telemetry.slo.waterfall import waterfall


async def export(endpoint: str, payload: bytes) -> ExportTraceServiceResponse:
    async with grpc.aio.insecure_channel(endpoint) as channel:
        return ExportTraceServiceResponse.FromString(await channel.unary_unary(EXPORT)(payload, timeout=40))


async def test_broken_bytes_are_refused_and_the_next_export_works(store):
    async with receiving(store) as endpoint:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await export(endpoint, b"\xff\xff\xff\xffnot protobuf")
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "ExportTraceServiceRequest" in refused.value.details()
        answer = await export(endpoint, otlp_request(otlp_span()).SerializeToString())
        assert not answer.HasField("partial_success")
    assert [span.name for span in await store.trace(TRACE)] == ["claim"]


async def test_unusable_spans_are_told_and_the_others_kept(store):
    spans = [
        otlp_span(trace_id=b"short"),
        otlp_span(span_id=bytes(8)),
        otlp_span(name="detect"),
        otlp_span(end_time_unix_nano=EPOCH_NS - 1),
        otlp_span(start_time_unix_nano=0),
        otlp_span(end_time_unix_nano=1 << 63),
        otlp_span(parent_span_id=b"odd"),
    ]
    async with receiving(store) as endpoint:
        answer = await export(endpoint, otlp_request(*spans).SerializeToString())
    assert answer.partial_success.rejected_spans == 6
    assert "trace id" in answer.partial_success.error_message
    assert [span.name for span in await store.trace(TRACE)] == ["detect"]


async def test_a_large_request_is_read_whole(store):
    spans = [otlp_span(span_id=number.to_bytes(8, "big")) for number in range(1, 2001)]
    async with receiving(store) as endpoint:
        await export(endpoint, otlp_request(*spans).SerializeToString())
    assert len(await store.trace(TRACE)) == 2000


async def test_a_request_over_the_bound_is_refused(store):
    async with receiving(store, request_bytes=100) as endpoint:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await export(endpoint, otlp_request(otlp_span(name="x" * 200)).SerializeToString())
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "at most 100" in refused.value.details()


async def test_a_closed_store_tells_senders_to_come_again(store):
    await store.aclose()
    async with receiving(store) as endpoint:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await export(endpoint, otlp_request(otlp_span()).SerializeToString())
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(payload):
    with contextlib.suppress(ValueError):
        assert read_otlp(payload).refused >= 0


def test_attributes_of_every_kind_become_json():
    deep = AnyValue(string_value="bottom")
    for _ in range(20):
        deep = AnyValue(array_value=ArrayValue(values=[deep]))
    pairs = {
        "bool": AnyValue(bool_value=True),
        "int": AnyValue(int_value=-5),
        "double": AnyValue(double_value=1.5),
        "infinite": AnyValue(double_value=float("inf")),
        "bytes": AnyValue(bytes_value=b"\x00\x01"),
        "list": AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1), AnyValue(string_value="b")])),
        "map": AnyValue(kvlist_value=KeyValueList(values=[text_attribute("k", "v")])),
        "none": AnyValue(),
        "long": AnyValue(string_value="x" * 100_000),
        "deep": deep,
    }
    attributes = [KeyValue(key=key, value=value) for key, value in pairs.items()]
    read = from_request(otlp_request(otlp_span(attributes=attributes))).spans[0].attributes
    assert len(read["long"]) == MAX_TEXT
    assert "bottom" not in str(read["deep"])
    assert {key: read[key] for key in pairs if key not in ("long", "deep")} == {
        "bool": True,
        "int": -5,
        "double": 1.5,
        "infinite": "inf",
        "bytes": "AAE=",
        "list": [1, "b"],
        "map": {"k": "v"},
        "none": None,
    }


def test_a_failed_span_keeps_its_error_and_a_parent_of_zeros_means_none():
    failed = otlp_span(status=Status(code=Status.STATUS_CODE_ERROR, message="claim lost"), parent_span_id=bytes(8))
    span = from_request(otlp_request(failed)).spans[0]
    assert (span.error, span.is_root, span.instance) == ("claim lost", True, "cart-1")


async def test_huge_attributes_are_cut_and_the_failovers_own_spans_kept(store):
    vast = [text_attribute(f"key-{number}" * 100, "x" * 20_000) for number in range(150)]
    nested = AnyValue(array_value=ArrayValue(values=[AnyValue(string_value="y" * 9_000)] * 20))
    span = otlp_span(attributes=[KeyValue(key="list", value=nested), *vast])
    other = otlp_span(span_id=bytes.fromhex("2222222222222222"))
    async with receiving(store) as endpoint:
        await export(endpoint, otlp_request(span, other).SerializeToString())
    await store.flush()
    kept = {span.span_id: span for span in await store.trace(TRACE)}
    attributes = kept["1111111111111111"].attributes
    assert len(attributes) == MOST_ATTRIBUTES
    assert max(map(len, attributes)) == MAX_KEY
    assert {len(text) for text in attributes["list"]} == {MAX_TEXT}
    assert "2222222222222222" in kept


async def test_times_of_nonsense_are_refused_or_harmless(store):
    first, last = otlp_span(start_time_unix_nano=1, end_time_unix_nano=2), MAX_NS
    far = otlp_span(span_id=b"future!!", start_time_unix_nano=last - 1, end_time_unix_nano=last)
    beyond = otlp_span(span_id=b"toolate!", start_time_unix_nano=1, end_time_unix_nano=last + 1)
    async with receiving(store) as endpoint:
        answer = await export(endpoint, otlp_request(first, far, beyond).SerializeToString())
    assert answer.partial_success.rejected_spans == 1
    await store.flush()
    picture = waterfall(await store.trace(TRACE))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(picture)
    assert "unmeasured" in console.export_text()
