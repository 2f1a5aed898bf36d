"""Reads spans from OTLP in its JSON encoding, as Collectors, Tempo and OTLP/HTTP senders write it.

OTLP/JSON is protobuf's JSON mapping with one exception: ids are hexadecimal, not base64 (OTLP specification, "JSON
Protobuf Encoding"). Tempo answers with plain protobuf JSON, so its ids are base64; the length shows which of the two it
is. Each span is read by itself, so that one broken span does not cost the whole request. Pure.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from understudy.telemetry.otlp.spans import OtlpBatch, from_request

T = TypeVar("T", bound=Message)
_GROUPS = ("resourceSpans", "resource_spans", "batches")
_SCOPES = ("scopeSpans", "scope_spans", "instrumentationLibrarySpans")
_IDS = {"traceId": 16, "trace_id": 16, "spanId": 8, "span_id": 8, "parentSpanId": 8, "parent_span_id": 8}


def read_otlp_json(text: str | bytes) -> OtlpBatch:
    """Read an ``ExportTraceServiceRequest`` in JSON; raises ``ValueError`` when the text is none."""
    return spans_of(parse_object(text))


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object that ``text`` is; raises ``ValueError`` for anything else, nested too deep included."""
    try:
        match json.loads(text):
            case dict() as found:
                return found
    except RecursionError:
        raise ValueError("JSON nested too deep") from None
    raise ValueError("not a JSON object")


def spans_of(document: dict[str, Any]) -> OtlpBatch:
    """The spans of a decoded document: ``resourceSpans``, or ``batches`` as Tempo calls them.

    Raises:
        ValueError: it has neither; a Collector's file of metrics, for instance.
    """
    groups = first(document, _GROUPS)
    if groups is None:
        raise ValueError("no resourceSpans in it")
    batches = [_group(group) for group in objects(groups)]
    return join(batches)


def join(batches: Iterable[OtlpBatch]) -> OtlpBatch:
    """Several batches as one; a span that is in several counts once, and the first reason stands."""
    spans, refused, reason = {}, 0, ""
    for batch in batches:
        spans.update({(span.trace_id, span.span_id): span for span in batch.spans})
        refused += batch.refused
        reason = reason or batch.reason
    return OtlpBatch(tuple(spans.values()), refused, reason)


def _group(group: dict[str, Any]) -> OtlpBatch:
    """The spans of one resource."""
    refused, reason = 0, ""
    try:
        resource = parse_into(group.get("resource") or {}, Resource())
    except ValueError as wrong:
        resource, reason = Resource(), str(wrong)
    request = ExportTraceServiceRequest()
    target = request.resource_spans.add(resource=resource).scope_spans.add().spans
    for scope in objects(first(group, _SCOPES)):
        for raw in objects(scope.get("spans")):
            try:
                target.append(parse_into(with_binary_ids(raw), Span()))
            except ValueError as wrong:
                refused, reason = refused + 1, reason or str(wrong)
    read = from_request(request)
    return OtlpBatch(read.spans, read.refused + refused, reason or read.reason)


def parse_into(raw: object, message: T) -> T:
    """Fill ``message`` from protobuf's JSON, without what later versions added; raises ``ValueError`` if it is none."""
    if not isinstance(raw, dict):
        raise ValueError(f"no JSON object where a {message.DESCRIPTOR.name} belongs")  # noqa: TRY004 - input, not a bug
    try:
        return ParseDict(raw, message, ignore_unknown_fields=True)
    except (ParseError, RecursionError, TypeError, AttributeError, ValueError) as wrong:
        # Protobuf's own reader lets Python's errors through where a value has quite another type than it expects.
        raise ValueError(f"not a {message.DESCRIPTOR.name}: {str(wrong)[:200]}") from None


def with_binary_ids(raw: dict[str, Any]) -> dict[str, Any]:
    """A span or log record with its ids as protobuf's JSON mapping has them: base64."""
    ids = {name: base64.b64encode(_id(raw[name], size)).decode() for name, size in _IDS.items() if name in raw}
    # What a span refers to is not kept, and a foreign form of it must not cost the span.
    return {name: value for name, value in raw.items() if name not in ("links", "events")} | ids


def _id(text: object, size: int) -> bytes:
    """The bytes of an id in hex, or in base64; an unreadable one is empty, which the reader of spans refuses.

    Some writers leave out leading zeros of hex; an absent parent may be written as the empty text.
    """
    if not isinstance(text, str) or not text:
        return b""
    try:
        if len(text) <= 2 * size and not text.endswith("="):
            return bytes.fromhex(text.zfill(2 * size))
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return b"?"


def first(document: dict[str, Any], names: Iterable[str]) -> object:
    """What stands under the first of ``names`` that is there; None without any."""
    return next((document[name] for name in names if name in document), None)


def objects(value: object) -> Iterator[dict[str, Any]]:
    """The objects in a JSON list; everything else is passed over."""
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, dict))
