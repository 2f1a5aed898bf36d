"""OTLP over HTTP: both encodings, both signals, and clear answers to everything else."""

import gzip
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs

from tests.harness.waiting import free_port
from tests.telemetry.slo.test_trace_backends import FAILOVER, otlp_line
from tests.telemetry.support import EPOCH_NS, TRACE, otlp_request, otlp_span, text_attribute
from understudy.telemetry.receiver.otlp_http import JSON, PROTOBUF, otlp_application
from understudy.telemetry.receiver.otlp_service import Bounds, OtlpService
from understudy.telemetry.store.store import SpanStore


@dataclass(frozen=True)
class Answer:
    status: int
    kind: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Receiver:
    def __init__(self, address: str, http: aiohttp.ClientSession) -> None:
        self.address, self.http = address, http

    async def post(self, path: str, body: bytes, kind: str = PROTOBUF, **headers: str) -> Answer:
        named = {"Content-Type": kind} | {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.http.post(f"{self.address}{path}", data=body, headers=named) as answer:
            return Answer(answer.status, answer.content_type, answer.headers, await answer.read())


@pytest.fixture
async def receiver(store: SpanStore) -> AsyncIterator[Receiver]:
    bounds = Bounds(request_bytes=20_000, records_per_second=0.001, burst=50)
    runner = web.AppRunner(otlp_application(OtlpService(store, time.monotonic, bounds)))
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        async with aiohttp.ClientSession() as http:
            yield Receiver(f"http://127.0.0.1:{port}", http)
    finally:
        await runner.cleanup()


def many_spans(count: int) -> bytes:
    spans = [otlp_span(span_id=number.to_bytes(8, "big")) for number in range(1, count + 1)]
    return otlp_request(*spans).SerializeToString()


def log_request(*records: LogRecord) -> ExportLogsServiceRequest:
    return ExportLogsServiceRequest(resource_logs=[ResourceLogs(scope_logs=[ScopeLogs(log_records=records)])])


LOG = LogRecord(time_unix_nano=EPOCH_NS, attributes=[text_attribute("http.response.status_code", "503")])


async def test_spans_come_in_both_encodings_plain_and_compressed(receiver: Receiver, store: SpanStore):
    plain = otlp_request(otlp_span()).SerializeToString()
    answer = await receiver.post("/v1/traces", plain)
    assert (answer.status, answer.kind) == (200, PROTOBUF)
    answer = await receiver.post(
        "/v1/traces", gzip.compress(otlp_line(FAILOVER).encode()), JSON, Content_Encoding="gzip"
    )
    assert (answer.status, answer.json()) == (200, {})
    assert {span.name for span in await store.trace(TRACE)} == {"claim", "failover"}


async def test_logs_come_in_both_encodings(receiver: Receiver, store: SpanStore):
    assert (await receiver.post("/v1/logs", log_request(LOG).SerializeToString())).status == 200
    as_json = json.dumps(MessageToDict(log_request(LOG))).encode()
    assert (await receiver.post("/v1/logs", as_json, JSON)).status == 200
    one, other = await store.logs(0, EPOCH_NS)
    assert one == other
    assert (one.time_ns, one.attributes) == (EPOCH_NS, {"http.response.status_code": "503"})


async def test_what_is_unusable_is_told_and_the_rest_kept(receiver: Receiver, store: SpanStore):
    answer = await receiver.post(
        "/v1/traces", otlp_request(otlp_span(trace_id=b"odd"), otlp_span()).SerializeToString()
    )
    told = ExportTraceServiceResponse.FromString(answer.body).partial_success
    assert (answer.status, told.rejected_spans) == (200, 1)
    answer = await receiver.post("/v1/logs", json.dumps(MessageToDict(log_request(LogRecord(), LOG))).encode(), JSON)
    assert answer.json()["partialSuccess"]["rejectedLogRecords"] == "1"
    assert len(await store.trace(TRACE)) == len(await store.logs(0, EPOCH_NS)) == 1


@pytest.mark.parametrize("path", ["/v1/traces", "/v1/logs"])
@pytest.mark.parametrize(
    ("body", "kind", "headers", "status"),
    [
        (b"\xff\xffno protobuf", PROTOBUF, {}, 400),
        (b"no json", JSON, {}, 400),
        (b"[" * 10_000, JSON, {}, 400),
        (b"{}", "text/plain", {}, 415),
        (b"no gzip", PROTOBUF, {"Content_Encoding": "gzip"}, 400),
        (gzip.compress(b"x" * 1000)[:-9], PROTOBUF, {"Content_Encoding": "gzip"}, 400),
        (gzip.compress(bytes(10_000_000)), PROTOBUF, {"Content_Encoding": "gzip"}, 413),
        (b"x", PROTOBUF, {"Content_Encoding": "br"}, 415),
        (bytes(30_000), PROTOBUF, {}, 413),
    ],
    ids=("protobuf", "json", "deep", "type", "gzip", "cut", "bomb", "encoding", "large"),
)
async def test_what_is_no_otlp_gets_a_clear_no(receiver: Receiver, path, body, kind, headers, status):
    answer = await receiver.post(path, body, kind, **headers)
    assert answer.status == status
    if answer.kind == JSON:
        assert answer.json()["message"]


async def test_a_sender_of_too_much_is_asked_to_come_again(receiver: Receiver, store: SpanStore):
    assert (await receiver.post("/v1/traces", many_spans(40))).status == 200
    answer = await receiver.post("/v1/traces", many_spans(40))
    assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
    assert len(await store.trace(TRACE)) == 40


@pytest.mark.parametrize(
    "worthless", [b"\xff\xffno protobuf", otlp_request(otlp_span(trace_id=b"odd")).SerializeToString()]
)
async def test_what_is_worth_nothing_cannot_be_sent_without_end_either(receiver: Receiver, worthless: bytes):
    answers = [(await receiver.post("/v1/traces", worthless)).status for _ in range(60)]
    assert answers.index(429) == 50
    assert set(answers[50:]) == {429}


async def test_large_requests_count_by_their_size(receiver: Receiver):
    large = otlp_request(otlp_span(name="x" * 19_000)).SerializeToString()
    assert [(await receiver.post("/v1/traces", large)).status for _ in range(5)] == [200, 200, 429, 429, 429]


async def test_a_closed_store_asks_senders_to_come_again(receiver: Receiver, store: SpanStore):
    await store.aclose()
    assert (await receiver.post("/v1/traces", many_spans(1))).status == 429
