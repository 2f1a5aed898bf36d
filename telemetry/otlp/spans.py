"""A stored span, and how it is read from OTLP.

Store, receiver and review use :class:`StoredSpan`. :func:`read_otlp` turns an OTLP export request
(``opentelemetry.proto.collector.trace.v1``) into such spans. An unusable span is counted, and the rest of its request
is kept. Pure.
"""

import base64
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import msgspec
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from understudy.telemetry.tracing.names import SERVICE_INSTANCE_ID, SERVICE_NAME

MAX_TEXT = 8192
"""Longer attribute texts are cut to this many characters."""
MOST_ATTRIBUTES = 128
"""Attributes of a span, a record or a resource, and values in a list; more are left out. As OpenTelemetry's SDKs do."""
MAX_KEY = 256
"""Longer attribute names are cut to this many characters."""
_MAX_DEPTH = 4
MAX_NS = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class StoredSpan:
    """One finished span. Ids are lower-case hex, a root's ``parent_id`` is empty; times are ns since 1970."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any] = field(default_factory=dict)
    resource: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def is_root(self) -> bool:
        """Whether this is its trace's root span."""
        return not self.parent_id

    @property
    def duration_ns(self) -> int:
        """How long it took, in ns."""
        return self.end_ns - self.start_ns

    @property
    def instance(self) -> str:
        """Who recorded it: ``service.instance.id``, or else ``service.name``."""
        return str(self.resource.get(SERVICE_INSTANCE_ID) or self.resource.get(SERVICE_NAME) or "unknown")


class OtlpBatch(msgspec.Struct, frozen=True):
    """What an export request held: the spans, how many were refused, and why the first of those was."""

    spans: tuple[StoredSpan, ...]
    refused: int = 0
    reason: str = ""


def read_otlp(payload: bytes) -> OtlpBatch:
    """Read the bytes of an ``ExportTraceServiceRequest``; raises ``ValueError`` when they are not one."""
    try:
        request = ExportTraceServiceRequest.FromString(payload)
    except DecodeError as broken:
        raise ValueError(f"not an ExportTraceServiceRequest: {broken}") from broken
    return from_request(request)


def from_request(request: ExportTraceServiceRequest) -> OtlpBatch:
    """The spans of a request; those with invalid ids or times are refused one by one."""
    kept: list[StoredSpan] = []
    refused, first_reason = 0, ""
    for group in request.resource_spans:
        resource = mapping(group.resource.attributes)
        for scope in group.scope_spans:
            for span in scope.spans:
                reason = _fault(span)
                if reason:
                    refused += 1
                    first_reason = first_reason or reason
                else:
                    kept.append(_stored(span, resource))
    return OtlpBatch(tuple(kept), refused, first_reason)


def _fault(span: Span) -> str:
    """Why a span cannot be kept; empty when it can (id rules: OTLP ``trace.proto``)."""
    if len(span.trace_id) != 16 or not any(span.trace_id):
        return "a trace id must be 16 bytes and not all zero"
    if len(span.span_id) != 8 or not any(span.span_id):
        return "a span id must be 8 bytes and not all zero"
    if len(span.parent_span_id) not in (0, 8):
        return "a parent span id must be 8 bytes or none"
    if not 0 < span.start_time_unix_nano <= span.end_time_unix_nano <= MAX_NS:
        return "a span must start after 1970 and not end before it starts"
    return ""


def _stored(span: Span, resource: Mapping[str, Any]) -> StoredSpan:
    """A sound OTLP span in our form; a parent id of zeros means none, as some senders write it."""
    failed = span.status.code == Status.STATUS_CODE_ERROR
    return StoredSpan(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex() if any(span.parent_span_id) else "",
        name=span.name[:MAX_TEXT],
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=mapping(span.attributes),
        resource=resource,
        error=(span.status.message[:MAX_TEXT] or "error") if failed else "",
    )


def mapping(pairs: Iterable[KeyValue], depth: int = 0) -> dict[str, Any]:
    """OTLP attributes as JSON can hold them."""
    return {pair.key[:MAX_KEY]: plain(pair.value, depth) for pair in islice(pairs, MOST_ATTRIBUTES)}


def plain(value: AnyValue, depth: int = 0) -> Any:  # noqa: ANN401 - an attribute's type is its sender's choice
    """An attribute's value as JSON can hold it: bytes become base64, what is nested too deep becomes null."""
    kind = value.WhichOneof("value") if depth <= _MAX_DEPTH else None
    match kind:
        case "string_value":
            found: Any = value.string_value[:MAX_TEXT]
        case "bool_value" | "int_value":
            found = getattr(value, kind)
        case "double_value":
            # JSON has no word for infinity or "not a number".
            found = value.double_value if math.isfinite(value.double_value) else str(value.double_value)
        case "bytes_value":
            found = base64.b64encode(value.bytes_value[:MAX_TEXT]).decode()
        case "array_value":
            found = [plain(item, depth + 1) for item in islice(value.array_value.values, MOST_ATTRIBUTES)]
        case "kvlist_value":
            found = mapping(value.kvlist_value.values, depth + 1)
        case _:
            found = None
    return found
