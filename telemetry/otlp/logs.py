"""A stored log record, and how it is read from OTLP; the counterpart of :mod:`understudy.telemetry.otlp.spans`.

Front Envoys report each request that failed or was repeated as such a record (docs/telemetry.md). Records of other
senders are read as well. An unusable record is reported, and the rest of its request is kept. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from understudy.telemetry.otlp.otlp_json import first, objects, parse_into, parse_object, with_binary_ids
from understudy.telemetry.otlp.spans import MAX_NS, MAX_TEXT, mapping, plain

_GROUPS = ("resourceLogs", "resource_logs")
_SCOPES = ("scopeLogs", "scope_logs")
_RECORDS = ("logRecords", "log_records")


@dataclass(frozen=True, slots=True)
class StoredLog:
    """One log record. ``time_ns`` is ns since 1970, ids are lower-case hex, empty without a trace."""

    time_ns: int
    body: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    resource: Mapping[str, Any] = field(default_factory=dict)
    trace_id: str = ""
    span_id: str = ""


class LogBatch(msgspec.Struct, frozen=True):
    """What an export request held: the records, how many were refused, and why the first of those was."""

    records: tuple[StoredLog, ...]
    refused: int = 0
    reason: str = ""


def read_otlp_logs(payload: bytes) -> LogBatch:
    """Read the bytes of an ``ExportLogsServiceRequest``; raises ``ValueError`` when they are not one."""
    try:
        request = ExportLogsServiceRequest.FromString(payload)
    except DecodeError as broken:
        raise ValueError(f"not an ExportLogsServiceRequest: {broken}") from broken
    return logs_from_request(request)


def read_otlp_logs_json(text: str | bytes) -> LogBatch:
    """The same in OTLP's JSON encoding."""
    groups = first(parse_object(text), _GROUPS)
    if groups is None:
        raise ValueError("no resourceLogs in it")
    request = ExportLogsServiceRequest()
    refused, reason = 0, ""
    for group in objects(groups):
        try:
            resource = parse_into(group.get("resource") or {}, Resource())
        except ValueError as wrong:
            resource, reason = Resource(), reason or str(wrong)
        target = request.resource_logs.add(resource=resource).scope_logs.add().log_records
        for scope in objects(first(group, _SCOPES)):
            for raw in objects(first(scope, _RECORDS)):
                try:
                    target.append(parse_into(with_binary_ids(raw), LogRecord()))
                except ValueError as wrong:
                    refused, reason = refused + 1, reason or str(wrong)
    read = logs_from_request(request)
    return LogBatch(read.records, read.refused + refused, reason or read.reason)


def logs_from_request(request: ExportLogsServiceRequest) -> LogBatch:
    """The records of a request; those without a usable time or with odd ids are refused one by one."""
    kept: list[StoredLog] = []
    refused, reason = 0, ""
    for group in request.resource_logs:
        resource = mapping(group.resource.attributes)
        for scope in group.scope_logs:
            for record in scope.log_records:
                fault = _fault(record)
                if fault:
                    refused, reason = refused + 1, reason or fault
                else:
                    kept.append(_stored(record, resource))
    return LogBatch(tuple(kept), refused, reason)


def _fault(record: LogRecord) -> str:
    if not 0 < (record.time_unix_nano or record.observed_time_unix_nano) <= MAX_NS:
        return "a log record needs a time after 1970"
    if len(record.trace_id) not in (0, 16) or len(record.span_id) not in (0, 8):
        return "a trace id has 16 bytes, a span id 8"
    return ""


def _stored(record: LogRecord, resource: Mapping[str, Any]) -> StoredLog:
    body = plain(record.body)
    return StoredLog(
        time_ns=record.time_unix_nano or record.observed_time_unix_nano,
        body="" if body is None else str(body)[:MAX_TEXT],
        attributes=mapping(record.attributes),
        resource=resource,
        trace_id=record.trace_id.hex() if any(record.trace_id) else "",
        span_id=record.span_id.hex() if any(record.span_id) else "",
    )
