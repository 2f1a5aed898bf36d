"""Rows of the trace store's tables: how spans, log records and counts go in and come out. Reads run in its thread."""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from telemetry.counts import Period
from telemetry.logs import StoredLog
from telemetry.names import SERVICE_NAME, SERVICES, UNMEASURED
from telemetry.spans import StoredSpan

# A conflict clause of this form, since OR IGNORE would reach into the trigger that keeps ``traces``
# (https://sqlite.org/lang_createtrigger.html).
INSERT_SPAN = (
    "INSERT INTO spans"
    " (trace_id, span_id, parent_id, name, start_ns, end_ns, error, attributes, resource, stored_ns, own)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
INSERT_LOG = (
    "INSERT INTO logs (time_ns, trace_id, span_id, body, attributes, resource, stored_ns) VALUES (?, ?, ?, ?, ?, ?, ?)"
)
INSERT_PERIOD = "INSERT INTO counts VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
_SELECT = (
    "SELECT trace_id, span_id, parent_id, name, start_ns, end_ns, error, attributes, resource"
    " FROM spans WHERE trace_id = ? ORDER BY start_ns, parent_id != '', end_ns, span_id"
)


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """One trace in a list. ``name`` and ``attributes`` are the root's; ``measured`` is False without its end."""

    trace_id: str
    name: str
    start_ns: int
    end_ns: int
    spans: int
    measured: bool
    attributes: Mapping[str, Any]


def span_row(span: StoredSpan, stored_ns: int) -> tuple[object, ...]:
    """A span for :data:`INSERT_SPAN`; one that names no service is taken for ours."""
    return (
        *(span.trace_id, span.span_id, span.parent_id, span.name, span.start_ns, span.end_ns),
        *(span.error, _to_json(span.attributes), _to_json(span.resource), stored_ns),
        not span.resource.get(SERVICE_NAME) or span.resource[SERVICE_NAME] in SERVICES,
    )


def log_row(record: StoredLog, stored_ns: int) -> tuple[object, ...]:
    """A log record for :data:`INSERT_LOG`."""
    return (
        *(record.time_ns, record.trace_id, record.span_id, record.body),
        *(_to_json(record.attributes), _to_json(record.resource), stored_ns),
    )


def period_row(period: Period, stored_ns: int) -> tuple[object, ...]:
    """A period for :data:`INSERT_PERIOD`."""
    return (
        *(period.node, period.start_ns, period.end_ns),
        *(period.requests, period.failed, period.dropped, stored_ns),
    )


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
        "SELECT name, attributes FROM spans WHERE trace_id = ? AND parent_id = '' ORDER BY start_ns LIMIT 1",
        (trace_id,),
    ).fetchone()
    name, attributes = (root[0], json.loads(root[1])) if root else ("", {})
    measured = root is not None and not attributes.get(UNMEASURED)
    return TraceSummary(trace_id, name, start_ns, end_ns, spans, measured, attributes)


def _to_json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, separators=(",", ":"))
