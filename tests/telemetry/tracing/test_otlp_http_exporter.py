"""Spans go out over OTLP/HTTP as the OTEL_* variables say, to our own receiver and to servers of other kinds."""

import asyncio
import gzip
import ssl
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tests.harness.certificates import Authority
from tests.harness.waiting import until
from tests.telemetry.support import EPOCH_NS, MS
from understudy.statesync.tls.peer_tls import PeerTls
from understudy.telemetry.otlp.spans import from_request
from understudy.telemetry.receiver.otlp_http import otlp_application
from understudy.telemetry.receiver.otlp_service import OtlpService
from understudy.telemetry.tracing.ids import trace_seed
from understudy.telemetry.tracing.otlp_http_exporter import receiver_of
from understudy.telemetry.tracing.setup import start_telemetry

SEED = trace_seed("cart", "takeover", "cart-2/b1")
PREFIX = "OTEL_EXPORTER_OTLP_"


class Backend(ThreadingHTTPServer):
    """A small real HTTP server that answers as told, and keeps what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[tuple[int, bytes]] = []
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.speaks = threading.Event()
        self.speaks.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """A client that has gone is no news here."""

    def names(self) -> list[str]:
        read = [ExportTraceServiceRequest.FromString(body) for _, _, body in self.requests]
        return [span.name for request in read for span in from_request(request).spans]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Backend

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        self.server.speaks.wait()
        status, answer = self.server.answers.pop(0) if self.server.answers else (200, b"")
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running(backend: Backend):
    thread = threading.Thread(target=backend.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield backend
    finally:
        backend.speaks.set()
        backend.shutdown()
        backend.server_close()
        thread.join()


@pytest.fixture
def backend():
    with running(Backend()) as one:
        yield one


@pytest.fixture
def variables(monkeypatch):
    def put(**values: object) -> None:
        monkeypatch.setenv(f"{PREFIX}PROTOCOL", "http/protobuf")
        monkeypatch.setenv(f"{PREFIX}TIMEOUT", "60")  # no export is made twice because the machine is busy
        for name, value in values.items():
            monkeypatch.setenv(f"{PREFIX}{name}", str(value))

    return put


def claim(telemetry, number: int = 0) -> None:
    telemetry.failover(SEED.traceparent).phase(f"claim-{number}", EPOCH_NS, EPOCH_NS + MS)


async def test_spans_are_posted_with_headers_to_the_path_for_traces(backend, variables):
    variables(ENDPOINT=f"{backend.url}/otlp/", HEADERS="authorization=Bearer%20secret,x-scope=shop")
    telemetry = start_telemetry("understudy-sidecar", "cart-1")
    claim(telemetry, 1)
    await until(lambda: telemetry.counts.sent == 1)
    claim(telemetry, 2)
    await until(lambda: telemetry.counts.sent == 2)
    await telemetry.aclose()
    path, headers, _ = backend.requests[0]
    assert path == "/otlp/v1/traces"
    assert headers["content-type"] == "application/x-protobuf"
    assert (headers["authorization"], headers["x-scope"]) == ("Bearer secret", "shop")
    assert backend.names() == ["claim-1", "claim-2"]


async def test_variables_for_traces_win_and_their_endpoint_is_used_as_it_is(backend, variables):
    variables(
        ENDPOINT="http://127.0.0.1:1",
        TRACES_ENDPOINT=f"{backend.url}/in?tenant=7",
        HEADERS="a=general",
        TRACES_HEADERS="a=traces",
        COMPRESSION="none",
        TRACES_COMPRESSION="gzip",
    )
    telemetry = start_telemetry("understudy-sidecar", "cart-1")
    claim(telemetry)
    await until(lambda: telemetry.counts.sent == 1)
    await telemetry.aclose()
    ((path, headers, body),) = backend.requests
    assert (path, headers["a"], headers["content-encoding"]) == ("/in?tenant=7", "traces", "gzip")
    assert ExportTraceServiceRequest.FromString(gzip.decompress(body)).resource_spans


async def test_a_receiver_that_is_down_or_busy_is_asked_again(backend, variables):
    variables(ENDPOINT=backend.url)
    backend.answers = [(503, b"later"), (429, b"slower"), (502, b"")]
    telemetry = start_telemetry("understudy-sidecar", "cart-1")
    claim(telemetry)
    await until(lambda: telemetry.counts.sent == 1, 40)
    await telemetry.aclose()
    assert len(backend.requests) == 4


async def test_spans_that_are_refused_for_good_are_counted_and_hold_up_nothing(backend, variables, caplog):
    variables(ENDPOINT=backend.url)
    told = ExportTracePartialSuccess(rejected_spans=1, error_message="too old")
    backend.answers = [
        (400, b"no such tenant"),
        (200, ExportTraceServiceResponse(partial_success=told).SerializeToString()),
    ]
    telemetry = start_telemetry("understudy-sidecar", "cart-1")
    for number in range(3):
        claim(telemetry, number)
        await until(lambda number=number: sum((telemetry.counts.sent, telemetry.counts.dropped)) == number + 1)
    await telemetry.aclose()
    assert (telemetry.counts.sent, telemetry.counts.dropped, len(backend.requests)) == (1, 2, 3)
    assert "1 spans refused by OTLP receiver, and dropped" in caplog.text
    assert "400: no such tenant" in caplog.text


async def test_a_receiver_that_never_answers_holds_up_neither_callers_nor_the_end(backend, variables):
    variables(ENDPOINT=backend.url)
    backend.speaks.clear()
    telemetry = start_telemetry("understudy-sidecar", "cart-1")
    claim(telemetry)
    await until(lambda: backend.requests)
    for number in range(1000):
        claim(telemetry, number)
    await asyncio.wait_for(telemetry.aclose(0.1), 30)
    assert telemetry.counts.dropped == 1001


async def test_our_own_receiver_over_mutual_tls(store, variables, tmp_path):
    authority, stranger = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    server, client = authority.control("control-1"), authority.member("cart-1")
    runner = web.AppRunner(otlp_application(OtlpService(store, time.monotonic)))
    await runner.setup()
    context: ssl.SSLContext = PeerTls(server).server()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    port = runner.addresses[0][1]
    told = {"ENDPOINT": f"https://127.0.0.1:{port}", "CERTIFICATE": authority.ca}
    variables(**told, CLIENT_CERTIFICATE=client.cert, CLIENT_KEY=client.key)
    telemetry = start_telemetry("understudy-sidecar", "cart-1")
    claim(telemetry, 1)
    await until(lambda: telemetry.counts.sent == 1)
    await telemetry.aclose()
    await store.flush()
    assert {span.name for span in await store.trace(SEED.hex)} == {"claim-1"}

    other = stranger.member("cart-1")
    for wrong in ({"CERTIFICATE": stranger.ca}, {"CLIENT_CERTIFICATE": other.cert, "CLIENT_KEY": other.key}):
        variables(**told | {"CLIENT_CERTIFICATE": client.cert, "CLIENT_KEY": client.key} | wrong)
        telemetry = start_telemetry("understudy-sidecar", "cart-1")
        claim(telemetry, 2)
        await telemetry.aclose(1.0)
        assert (telemetry.counts.sent, telemetry.counts.dropped) == (0, 1)
    await store.flush()
    assert {span.name for span in await store.trace(SEED.hex)} == {"claim-1"}
    await runner.cleanup()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ENDPOINT": "collector:4318"}, "is no http:// or https:// address"),
        ({"ENDPOINT": "http://h:99999"}, "out of range"),
        ({"COMPRESSION": "zstd"}, "known are gzip and none"),
        ({"CERTIFICATE": "/nowhere/ca.pem"}, "there is no file /nowhere/ca.pem"),
        ({"TIMEOUT": "soon"}, "not a number of seconds"),
        ({"TRACES_TIMEOUT": "-1"}, "not a number of seconds"),
    ],
)
def test_a_value_of_no_use_is_named(values, said):
    environment = {f"{PREFIX}{name}": value for name, value in ({"ENDPOINT": "http://127.0.0.1:4318"} | values).items()}
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        receiver_of(environment)
