"""Rows of the trace store's tables: how spans, log records and counts go in and come out. Reads run in its thread."""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from understudy.telemetry.otlp.counts import Period
from understudy.telemetry.otlp.logs import StoredLog
from understudy.telemetry.otlp.spans import StoredSpan
from understudy.telemetry.tracing.names import SERVICE_NAME, SERVICES, UNMEASURED

_INSERT_SPAN = (
    "INSERT INTO spans"
    " (trace_id, span_id, parent_id, name, start_ns, end_ns, error, attributes, resource, stored_ns, own)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_NOTE_TRACE = (
    "INSERT INTO traces (trace_id, start_ns, end_ns, stored_ns, spans, own) VALUES (?, ?, ?, ?, ?, ?)"
    " ON CONFLICT DO UPDATE SET start_ns = min(start_ns, excluded.start_ns), end_ns = max(end_ns, excluded.end_ns),"
    " stored_ns = max(stored_ns, excluded.stored_ns), spans = spans + excluded.spans, own = max(own, excluded.own)"
)
_INSERT_LOG = (
    "INSERT INTO logs (time_ns, trace_id, span_id, body, attributes, resource, stored_ns) VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_INSERT_PERIOD = "INSERT INTO counts VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
_SELECT = (
    "SELECT trace_id, span_id, parent_id, name, start_ns, end_ns, error, attributes, resource"
    " FROM spans WHERE trace_id = ? ORDER BY start_ns, parent_id != '', end_ns, span_id"
)


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """One trace in a list. ``name`` and ``attributes`` are the root's; ``measured`` is False without its end.

    ``start_ns`` and ``end_ns`` are those of all its spans; ``total_ms`` is the root's length, None if not measured.
    """

    trace_id: str
    name: str
    start_ns: int
    end_ns: int
    spans: int
    measured: bool
    attributes: Mapping[str, Any]
    total_ms: float | None = None


def insert_spans(db: sqlite3.Connection, spans: Sequence[StoredSpan], stored_ns: int) -> None:
    """Add spans, each once, and note their traces."""
    traces: dict[str, list[StoredSpan]] = defaultdict(list)
    for span in spans:
        traces[span.trace_id].append(span)
    for trace_id, group in traces.items():
        added = db.executemany(_INSERT_SPAN, [_span_row(span, stored_ns) for span in group]).rowcount
        if added > 0:
            start, end = min(span.start_ns for span in group), max(span.end_ns for span in group)
            db.execute(_NOTE_TRACE, (trace_id, start, end, stored_ns, added, any(map(_is_own, group))))


def insert_logs(db: sqlite3.Connection, records: Sequence[StoredLog], stored_ns: int) -> None:
    """Add log records."""
    rows = [
        (
            *(record.time_ns, record.trace_id, record.span_id, record.body),
            *(_to_json(record.attributes), _to_json(record.resource), stored_ns),
        )
        for record in records
    ]
    db.executemany(_INSERT_LOG, rows)


def insert_periods(db: sqlite3.Connection, periods: Sequence[Period], stored_ns: int) -> None:
    """Add counts, each period of an Envoy once."""
    rows = [(one.node, one.start_ns, one.end_ns, one.requests, one.failed, one.dropped, stored_ns) for one in periods]
    db.executemany(_INSERT_PERIOD, rows)


def select_trace(db: sqlite3.Connection, trace_id: str) -> list[StoredSpan]:
    """All spans of a trace, by start."""
    rows = db.execute(_SELECT, (trace_id,))
    return [
        StoredSpan(*(trace, span, parent, name), start, end, json.loads(attributes), json.loads(resource), error)
        for trace, span, parent, name, start, end, error, attributes, resource in rows
    ]


def select_window(db: sqlite3.Connection, window: tuple[int, int, int]) -> list[StoredSpan]:
    """All spans of the first traces that began in a window: its start, its end (not included), and how many."""
    begun = db.execute(
        "SELECT trace_id FROM traces WHERE start_ns >= ? AND start_ns < ? ORDER BY start_ns, trace_id LIMIT ?", window
    ).fetchall()
    return [span for (trace_id,) in begun for span in select_trace(db, trace_id)]


def select_traces(db: sqlite3.Connection, limit: int) -> list[TraceSummary]:
    """The newest traces of ours."""
    rows = db.execute(
        "SELECT trace_id, start_ns, end_ns, spans FROM traces WHERE own = 1 ORDER BY start_ns DESC, trace_id LIMIT ?",
        (max(0, limit),),
    ).fetchall()
    return [_summary(db, *row) for row in rows]


def select_logs(db: sqlite3.Connection, asked: tuple[int, int, int]) -> list[StoredLog]:
    """Log records from a first to a last moment, and how many at the most."""
    rows = db.execute(
        "SELECT time_ns, body, attributes, resource, trace_id, span_id FROM logs"
        " WHERE time_ns BETWEEN ? AND ? ORDER BY time_ns, rowid LIMIT ?",
        asked,
    )
    return [
        StoredLog(time_ns, body, json.loads(attributes), json.loads(resource), trace_id, span_id)
        for time_ns, body, attributes, resource, trace_id, span_id in rows
    ]


def select_counts(db: sqlite3.Connection, asked: tuple[int, int, int]) -> list[Period]:
    """Periods that ended from a first to a last moment, and how many at the most."""
    return [
        Period(*row)
        for row in db.execute(
            "SELECT node, start_ns, end_ns, requests, failed, dropped, arrived_ns FROM counts"
            " WHERE end_ns BETWEEN ? AND ? ORDER BY end_ns, node LIMIT ?",
            asked,
        )
    ]


def _summary(db: sqlite3.Connection, trace_id: str, start_ns: int, end_ns: int, spans: int) -> TraceSummary:
    root = db.execute(
        "SELECT name, attributes, start_ns, end_ns FROM spans"
        " WHERE trace_id = ? AND parent_id = '' ORDER BY start_ns LIMIT 1",
        (trace_id,),
    ).fetchone()
    name, attributes = (root[0], json.loads(root[1])) if root else ("", {})
    measured = root is not None and not attributes.get(UNMEASURED)
    total_ms = (root[3] - root[2]) / 1e6 if measured else None
    return TraceSummary(trace_id, name, start_ns, end_ns, spans, measured, attributes, total_ms)


def _span_row(span: StoredSpan, stored_ns: int) -> tuple[object, ...]:
    return (
        *(span.trace_id, span.span_id, span.parent_id, span.name, span.start_ns, span.end_ns),
        *(span.error, _to_json(span.attributes), _to_json(span.resource), stored_ns, _is_own(span)),
    )


def _is_own(span: StoredSpan) -> bool:
    """Whether it is a span of ours; one that names no service is taken for ours."""
    return not span.resource.get(SERVICE_NAME) or span.resource[SERVICE_NAME] in SERVICES


def _to_json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, separators=(",", ":"))
