"""Reads failover traces from other tools: the files of an OpenTelemetry Collector, Jaeger, Tempo.

:func:`load` reads all of them. A Collector's files also hold the requests that front Envoys report, if they go through
it. Each span is returned once. Unusable spans are counted, with the reason of the first. A source that does not answer,
or sends something else, raises one :class:`TraceBackendError` with the source and a remedy. Answers are bounded in size
and time. The reader judges the spans. Jaeger keeps microseconds, so durations from it are exact to 1 us; the others
keep nanoseconds.
"""

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from understudy.telemetry.otlp.counts import Period, PeriodBatch, read_otlp_metrics_json
from understudy.telemetry.otlp.logs import LogBatch, StoredLog, read_otlp_logs_json
from understudy.telemetry.otlp.otlp_json import join, parse_object, read_otlp_json, spans_of
from understudy.telemetry.otlp.spans import MAX_TEXT, OtlpBatch, StoredSpan
from understudy.telemetry.tracing.names import SERVICE_NAME, SERVICES

MOST_TRACES = 2_000
"""The most traces that are requested from a backend; a shorter window shows the rest."""
_MOST_BYTES = 64 << 20
_TIMEOUT = 15.0
_SUFFIXES = (".json", ".jsonl", ".ndjson")
_NS_PER_US = 1_000
_DAY_NS = 86_400 * 10**9


class TraceBackendError(Exception):
    """Spans cannot be read from a source; ``source`` and ``detail`` say which source, why, and what to do."""

    def __init__(self, source: str, detail: str) -> None:
        super().__init__(f"{source}: {detail}")
        self.source = source
        self.detail = detail


@dataclass(frozen=True, slots=True)
class TimeRange:
    """The requested time, in ns since 1970, both ends included. Files are read as a whole and then filtered."""

    start_ns: int = 0
    end_ns: int = 1 << 62

    def holds(self, start_ns: int, end_ns: int) -> bool:
        """Whether the time from ``start_ns`` to ``end_ns`` overlaps it."""
        return start_ns <= self.end_ns and end_ns >= self.start_ns


@dataclass(frozen=True, slots=True)
class TraceData:
    """The content of a source: spans, the reports and counts of front Envoys, the number of unusable records, why."""

    spans: tuple[StoredSpan, ...] = ()
    reports: tuple[StoredLog, ...] = ()
    counts: tuple[Period, ...] = ()
    refused: int = 0
    reason: str = ""


def load(source: str, window: TimeRange | None = None) -> TraceData:
    """All that a source holds of ``window`` (None: all of a file, the last 30 days of a backend).

    Args:
        source: a file or directory of OTLP JSON as the Collector's file exporter writes it, one request a line
            (or one document); ``jaeger=URL`` or ``tempo=URL`` with the base address of the backend's HTTP API.
        window: what time is asked about.

    Raises:
        TraceBackendError: the source cannot be read, or holds no such thing.
    """
    kind, _, address = source.partition("=")
    match kind:
        case "jaeger":
            found = _put_together(_jaeger(_base(source, address), window or _lately()))
        case "tempo":
            found = _put_together(_tempo(_base(source, address), window or _lately()))
        case _:
            found = _put_together(_files(Path(source)))
    kept = window or TimeRange()
    return replace(
        found,
        spans=tuple(span for span in found.spans if kept.holds(span.start_ns, span.end_ns)),
        reports=tuple(report for report in found.reports if kept.holds(report.time_ns, report.time_ns)),
        counts=tuple(period for period in found.counts if kept.holds(period.start_ns, period.end_ns)),
    )


_Batch = OtlpBatch | LogBatch | PeriodBatch


def _put_together(batches: Iterable[_Batch]) -> TraceData:
    spans: list[OtlpBatch] = []
    reports: list[StoredLog] = []
    counts: list[Period] = []
    refused, reason = 0, ""
    for batch in batches:
        refused, reason = refused + batch.refused, reason or batch.reason
        match batch:
            case OtlpBatch():
                spans.append(batch)
            case LogBatch():
                reports += batch.records
            case PeriodBatch():
                counts += batch.periods
    return TraceData(join(spans).spans, tuple(reports), tuple(dict.fromkeys(counts)), refused, reason)


def _lately() -> TimeRange:
    now = time.time_ns()
    return TimeRange(now - 30 * _DAY_NS, now)


def _base(source: str, address: str) -> str:
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise TraceBackendError(source, "after = comes the backend's address, such as http://127.0.0.1:16686")
    return address.rstrip("/")


# Files


def _files(path: Path) -> Iterator[_Batch]:
    """Every request in a file, or in all JSON files of a directory, also rotated ones."""
    if path.is_dir():
        files = sorted(one for one in path.iterdir() if one.is_file() and one.suffix in _SUFFIXES)
        if not files:
            raise TraceBackendError(str(path), f"no file that ends in {', '.join(_SUFFIXES)}")
    else:
        files = [path]
    for one in files:
        try:
            yield from _file(one)
        except OSError as error:
            raise TraceBackendError(str(one), error.strerror or str(error)) from None


def _file(path: Path) -> list[_Batch]:
    """Read one file. A half-written last line counts as refused: the Collector may be writing it now."""
    batches: list[_Batch] = []
    usable, wrong = 0, ""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                batches.append(_read(line))
                usable += 1
            except ValueError as error:
                wrong = wrong or f"{path.name} line {number}: {error}"
                batches.append(OtlpBatch((), refused=1, reason=wrong))
    if usable or not batches:
        return batches
    try:
        # No line is a document by itself: the file is one document over many lines.
        return [_read(path.read_bytes())]
    except ValueError as error:
        detail = wrong if len(batches) == 1 else str(error)
        raise TraceBackendError(
            str(path),
            f"no OTLP JSON ({detail}); the Collector's file exporter writes it with format: json, uncompressed",
        ) from None


def _read(text: bytes) -> _Batch:
    """Read one request of any signal; raises ``ValueError`` if it is not one."""
    if b'"resourceLogs":' in text:
        return read_otlp_logs_json(text)
    if b'"resourceMetrics":' in text:
        return read_otlp_metrics_json(text)
    return read_otlp_json(text)


# Jaeger


def _jaeger(base: str, window: TimeRange) -> Iterator[OtlpBatch]:
    """All traces with a span of one of our services, by the HTTP API that Jaeger's own UI uses."""
    for service in SERVICES:
        query = urllib.parse.urlencode(
            {
                "service": service,
                "start": window.start_ns // _NS_PER_US,
                "end": window.end_ns // _NS_PER_US,
                "limit": MOST_TRACES,
            }
        )
        answer = _get(f"{base}/api/traces?{query}")
        traces = answer.get("data")
        if not isinstance(traces, list):
            errors = answer.get("errors")
            raise TraceBackendError(
                f"jaeger={base}", f"no list of traces in the answer ({str(errors)[:200]}); is it Jaeger?"
            )
        yield from (_jaeger_trace(trace) for trace in traces)


def _jaeger_trace(trace: Mapping[str, Any]) -> OtlpBatch:
    spans: list[StoredSpan] = []
    refused, reason = 0, ""
    try:
        processes = {key: _jaeger_resource(process) for key, process in (trace.get("processes") or {}).items()}
        raw_spans = list(trace["spans"])
    except (AttributeError, KeyError, TypeError, ValueError) as wrong:
        return OtlpBatch((), 1, f"not a trace of Jaeger: {wrong!r}")
    for raw in raw_spans:
        try:
            spans.append(_jaeger_span(raw, processes.get(raw.get("processID"), {})))
        except (AttributeError, KeyError, TypeError, ValueError) as wrong:
            refused, reason = refused + 1, reason or f"not a span of Jaeger: {wrong!r}"
    return OtlpBatch(tuple(spans), refused, reason)


def _jaeger_resource(process: Mapping[str, Any]) -> dict[str, Any]:
    return _jaeger_tags(process.get("tags")) | {SERVICE_NAME: process["serviceName"]}


def _jaeger_span(raw: Mapping[str, Any], resource: Mapping[str, Any]) -> StoredSpan:
    tags = _jaeger_tags(raw.get("tags"))
    trace_id = _hex(raw["traceID"], 32)
    parents = [
        ref["spanID"]
        for ref in raw.get("references") or ()
        if ref["refType"] == "CHILD_OF" and _hex(ref["traceID"], 32) == trace_id
    ]
    start_ns, length_ns = int(raw["startTime"]) * _NS_PER_US, int(raw["duration"]) * _NS_PER_US
    if start_ns <= 0 or length_ns < 0:
        raise ValueError("a span must start after 1970 and not end before it starts")
    failed = tags.get("otel.status_code") == "ERROR" or tags.get("error") in (True, "true")
    return StoredSpan(
        trace_id=trace_id,
        span_id=_hex(raw["spanID"], 16),
        parent_id=_hex(parents[0], 16) if parents else "",
        name=str(raw["operationName"])[:MAX_TEXT],
        start_ns=start_ns,
        end_ns=start_ns + length_ns,
        attributes=tags,
        resource=resource,
        error=str(tags.get("otel.status_description") or "error")[:MAX_TEXT] if failed else "",
    )


def _jaeger_tags(tags: Iterable[Mapping[str, Any]] | None) -> dict[str, Any]:
    """Attributes from tags. Jaeger writes lists as JSON texts, and they stay texts."""
    return {
        str(tag["key"]): tag["value"][:MAX_TEXT] if isinstance(tag["value"], str) else tag["value"]
        for tag in tags or ()
    }


def _hex(text: str, width: int) -> str:
    """An id with the leading zeros that Jaeger and Tempo leave out; raises ``ValueError`` if it is not an id."""
    whole = text.lower().zfill(width)
    if len(whole) != width or not int(whole, 16):
        raise ValueError(f"not an id: {text[:40]!r}")
    return whole


# Tempo


def _tempo(base: str, window: TimeRange) -> Iterator[OtlpBatch]:
    """Search for traces of our services (TraceQL), then fetch each: Tempo cannot return many whole traces at once."""
    ours = "|".join(SERVICES)
    query = urllib.parse.urlencode(
        {
            "q": f'{{ resource.{SERVICE_NAME} =~ "{ours}" }}',
            "start": window.start_ns // 10**9,
            "end": min(window.end_ns // 10**9 + 1, (1 << 32) - 1),
            "limit": MOST_TRACES,
        }
    )
    answer = _get(f"{base}/api/search?{query}")
    traces = answer.get("traces", [] if "metrics" in answer else None)
    if not isinstance(traces, list):
        raise TraceBackendError(f"tempo={base}", "no list of traces in the answer; is it Tempo?")
    for found in traces:
        try:
            trace_id = _hex(found["traceID"], 32)
        except (AttributeError, KeyError, TypeError, ValueError) as wrong:
            yield OtlpBatch((), 1, f"not a trace of Tempo: {wrong!r}")
            continue
        document = _get(f"{base}/api/traces/{trace_id}")
        inner = document.get("trace")
        try:
            yield spans_of(inner if isinstance(inner, dict) else document)
        except ValueError as wrong:
            raise TraceBackendError(f"tempo={base}", f"trace {trace_id}: {wrong}") from None


# Shared


def _get(url: str) -> dict[str, Any]:
    """The JSON object at ``url``, whose scheme has been checked."""
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310 - http or https only
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310
            body = answer.read(_MOST_BYTES + 1)
    except urllib.error.HTTPError as error:
        with error:
            text = error.read(200).decode(errors="replace").strip()
        raise TraceBackendError(url, f"answered {error.code} {error.reason}: {text}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise TraceBackendError(url, f"does not answer ({reason}); is the address right and the backend up?") from None
    if len(body) > _MOST_BYTES:
        raise TraceBackendError(url, f"answers more than {_MOST_BYTES >> 20} MiB; ask about a shorter window")
    try:
        return parse_object(body)
    except ValueError as error:
        detail = "" if isinstance(error, json.JSONDecodeError) else f" ({error})"
        raise TraceBackendError(url, f"answers no JSON object{detail}: {body[:80]!r}") from None
