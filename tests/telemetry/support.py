"""What the telemetry tests share: spans made by hand, a control server's receiver, a clean environment."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from understudy.telemetry.otlp.spans import StoredSpan
from understudy.telemetry.receiver.otlp_grpc import add_otlp_receiver
from understudy.telemetry.receiver.otlp_service import Bounds, OtlpService
from understudy.telemetry.store.store import SpanStore

MS = 1_000_000
EPOCH_NS = 1_750_000_000 * 10**9
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
ROOT = "00f067aa0ba902b7"


def stored(name: str, start_ms: float, duration_ms: float, who: str = "cart-1", **fields) -> StoredSpan:
    """A phase of one trace, ``start_ms`` after a fixed moment."""
    given = {
        "trace_id": TRACE,
        "span_id": f"{abs(hash((name, who, start_ms))) % (1 << 64):016x}",
        "parent_id": ROOT,
        "resource": {"service.instance.id": who},
        **fields,
    }
    start_ns = EPOCH_NS + round(start_ms * MS)
    return StoredSpan(name=name, start_ns=start_ns, end_ns=start_ns + round(duration_ms * MS), **given)


def root(duration_ms: float, who: str = "control-1", **fields) -> StoredSpan:
    """The root span of the same trace."""
    return stored("failover", 0, duration_ms, who, span_id=ROOT, parent_id="", **fields)


def text_attribute(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


def otlp_span(**fields) -> Span:
    """A sound OTLP span, unless the fields say otherwise."""
    given = {
        "trace_id": bytes.fromhex(TRACE),
        "span_id": bytes.fromhex("1111111111111111"),
        "parent_span_id": bytes.fromhex(ROOT),
        "name": "claim",
        "start_time_unix_nano": EPOCH_NS,
        "end_time_unix_nano": EPOCH_NS + MS,
        **fields,
    }
    return Span(**given)


def otlp_request(*spans: Span) -> ExportTraceServiceRequest:
    resource = Resource(attributes=[text_attribute("service.instance.id", "cart-1")])
    return ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=resource, scope_spans=[ScopeSpans(spans=spans)])]
    )


@asynccontextmanager
async def receiving(store: SpanStore, port: int = 0, **bounds) -> AsyncIterator[str]:
    """A gRPC server with the receiver on ``port`` (0: any); gives its ``host:port``."""
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    add_otlp_receiver(server, OtlpService(store, time.monotonic, Bounds(**bounds)))
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        await server.stop(None)


def clean_environment() -> dict[str, str]:
    """This process's environment without any ``OTEL_*`` variable."""
    return {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
