"""The trace store: finished spans and log records in one SQLite file, with bounds on count and age.

One thread owns the database; everything passes through it in order, so a reader sees what was added
before and the event loop never waits for a disk. Adding never raises: what cannot be written (disk full,
file locked, too much at once) is counted in :attr:`SpanStore.dropped`. A span is stored once, whoever
sends it how often.
"""

import asyncio
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from telemetry.logs import StoredLog
from telemetry.names import SERVICE_NAME, SERVICES, UNMEASURED
from telemetry.spans import StoredSpan, from_request

SCHEMA_VERSION = 2
_SCHEMA = (
    """
CREATE TABLE spans (
    trace_id TEXT NOT NULL,
    span_id TEXT NOT NULL,
    parent_id TEXT NOT NULL,
    name TEXT NOT NULL,
    start_ns INTEGER NOT NULL,
    end_ns INTEGER NOT NULL,
    error TEXT NOT NULL,
    attributes TEXT NOT NULL,
    resource TEXT NOT NULL,
    stored_ns INTEGER NOT NULL,
    PRIMARY KEY (trace_id, span_id)
) WITHOUT ROWID""",
    "CREATE INDEX spans_by_age ON spans (stored_ns)",
)
# Spans of others have bounds of their own, so that they never push failovers out.
_SCHEMA_2 = (
    "ALTER TABLE spans ADD COLUMN own INTEGER NOT NULL DEFAULT 1",
    """
CREATE TABLE logs (
    time_ns INTEGER NOT NULL,
    trace_id TEXT NOT NULL,
    span_id TEXT NOT NULL,
    body TEXT NOT NULL,
    attributes TEXT NOT NULL,
    resource TEXT NOT NULL,
    stored_ns INTEGER NOT NULL
)""",
    "CREATE INDEX logs_by_time ON logs (time_ns)",
)
_STEPS = (_SCHEMA, _SCHEMA_2)
"""What makes a file of schema n one of schema n + 1."""
_INSERT_LOG = (
    "INSERT INTO logs (time_ns, trace_id, span_id, body, attributes, resource, stored_ns) VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_INSERT = (
    "INSERT OR IGNORE INTO spans"
    " (trace_id, span_id, parent_id, name, start_ns, end_ns, error, attributes, resource, stored_ns, own)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_SELECT = (
    "SELECT trace_id, span_id, parent_id, name, start_ns, end_ns, error, attributes, resource"
    " FROM spans WHERE trace_id = ? ORDER BY start_ns, parent_id != '', end_ns, span_id"
)
_DAY_NS = 86_400 * 10**9
_LOG_EVERY = 30.0
_MAX_PENDING = 20_000
_log = logging.getLogger(__name__)
T = TypeVar("T")


class StoreError(Exception):
    """The store's file cannot be used; ``path`` and ``detail`` say which and why."""

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(f"trace store {path}: {detail}")
        self.path = path
        self.detail = detail


class StoreTooNewError(StoreError):
    """The file was written by a newer version of this project; ``found`` is its schema, ``known`` ours."""

    def __init__(self, path: str, found: int, known: int) -> None:
        super().__init__(
            path,
            f"its schema {found} is newer than the {known} that this version knows; "
            "use the newer version, or another file",
        )
        self.found = found
        self.known = known


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept: the newest ``traces`` traces, of each up to ``spans_per_trace`` spans, for ``age_ns``.

    ``foreign_traces``: those to which only others added, requests through Envoy for instance. ``logs``: log records.
    """

    traces: int = 10_000
    foreign_traces: int = 1_000
    logs: int = 100_000
    spans_per_trace: int = 2_000
    age_ns: int = 90 * _DAY_NS
    sweep_every: int = 256
    """Bounds are enforced at the start and after this many writes."""


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


class SpanStore:
    """Spans in SQLite. Made and closed once per process; its methods may be called from any thread or task."""

    def __init__(
        self,
        path: str | Path,
        *,
        retention: Retention | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Open or create the store at ``path`` (``:memory:`` for one that goes with the process).

        Raises:
            StoreTooNewError: a newer version wrote the file.
            StoreError: it cannot be opened or is no such store.
        """
        self.path = str(path)
        self._retention = retention or Retention()
        self._now_ns = now_ns
        self._lock = threading.Lock()
        self._pending = 0
        self._dropped = 0
        self._writes = 0
        self._logged_at = float("-inf")
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trace-store")
        try:
            self._db = self._thread.submit(self._open).result()
        except sqlite3.Error as broken:
            self._thread.shutdown()
            raise StoreError(self.path, str(broken)) from broken
        except StoreError:
            self._thread.shutdown()
            raise

    @property
    def dropped(self) -> int:
        """How many spans and log records could not be stored since the start."""
        return self._dropped

    def add(self, spans: Sequence[StoredSpan]) -> bool:
        """Queue spans for writing; returns at once and never raises.

        False means that nothing was taken because too much is waiting or the store is closed: the sender
        should try again later. Spans that are taken and then fail to be written are counted in
        :attr:`dropped`.
        """
        return self._queue(tuple(spans), _span_row, _INSERT)

    def add_logs(self, records: Sequence[StoredLog]) -> bool:
        """Queue log records for writing, just like :meth:`add`."""
        return self._queue(tuple(records), _log_row, _INSERT_LOG)

    def _queue(self, items: tuple[T, ...], row: Callable[[T, int], tuple[object, ...]], insert: str) -> bool:
        if not items:
            return True
        with self._lock:
            if self._pending + len(items) > _MAX_PENDING:
                return False
            self._pending += len(items)
        try:
            self._thread.submit(self._write, items, row, insert)
        except RuntimeError:  # the thread has been shut down
            self._settle(len(items), stored=0)
            return False
        return True

    async def logs(self, start_ns: int, end_ns: int, limit: int = 10_000) -> list[StoredLog]:
        """Log records of a time, both ends included, in order; raises ``StoreError`` like :meth:`trace`."""
        return await self._read(self._select_logs, (start_ns, end_ns, max(0, limit)))

    async def trace(self, trace_id: str) -> list[StoredSpan]:
        """All spans of a trace (32 hex digits), by start; empty when it is not known.

        Raises:
            StoreError: the file cannot be read.
        """
        return await self._read(self._select_trace, trace_id.lower())

    async def traces(self, limit: int = 50) -> list[TraceSummary]:
        """The newest traces of ours, latest first; raises ``StoreError`` like :meth:`trace`."""
        return await self._read(self._select_traces, limit)

    async def window(self, start_ns: int, end_ns: int, limit: int = 100) -> list[StoredSpan]:
        """All spans of the first ``limit`` traces that began in ``[start_ns, end_ns)``, trace by trace."""
        return await self._read(self._select_window, (start_ns, end_ns, limit))

    async def flush(self) -> None:
        """Return when everything added before is written or counted as dropped."""
        await self._read(lambda _: None, None)

    def exporter(self) -> SpanExporter:
        """An OpenTelemetry exporter that writes into this store (for ``start_telemetry(direct=...)``)."""
        return _StoreExporter(self)

    def close(self) -> None:
        """Write what is queued and close the file; later spans are refused."""
        try:
            closing: Future[None] = self._thread.submit(self._db.close)
        except RuntimeError:
            return
        self._thread.shutdown()
        closing.result()

    async def aclose(self) -> None:
        """:meth:`close` without holding up the event loop."""
        await asyncio.to_thread(self.close)

    async def _read(self, query: Callable[[Any], T], argument: object) -> T:
        try:
            return await asyncio.wrap_future(self._thread.submit(query, argument))
        except (sqlite3.Error, RuntimeError) as broken:
            raise StoreError(self.path, str(broken)) from broken

    # What follows runs in the store's thread only.

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=1.0, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            with _transaction(db):
                self._bring_up_to_date(db)
            self._sweep(db)
        except BaseException:
            db.close()
            raise
        return db

    def _bring_up_to_date(self, db: sqlite3.Connection) -> None:
        (found,) = db.execute("PRAGMA user_version").fetchone()
        if found > SCHEMA_VERSION:
            raise StoreTooNewError(self.path, found, SCHEMA_VERSION)
        if not found and db.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
            raise StoreError(self.path, "an SQLite file, but not a trace store")
        for step in _STEPS[found:]:
            for statement in step:
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _sweep(self, db: sqlite3.Connection) -> None:
        """Enforce the bounds of :class:`Retention`."""
        kept = self._retention
        with _transaction(db):
            db.execute("DELETE FROM spans WHERE stored_ns < ?", (self._now_ns() - kept.age_ns,))
            db.execute("DELETE FROM logs WHERE stored_ns < ?", (self._now_ns() - kept.age_ns,))
            db.execute(
                "DELETE FROM logs WHERE rowid IN (SELECT rowid FROM logs ORDER BY rowid DESC LIMIT -1 OFFSET ?)",
                (kept.logs,),
            )
            for own, most in ((1, kept.traces), (0, kept.foreign_traces)):
                db.execute(
                    "DELETE FROM spans WHERE trace_id IN (SELECT trace_id FROM spans GROUP BY trace_id"
                    " HAVING max(own) = ? ORDER BY max(stored_ns) DESC, min(start_ns) DESC LIMIT -1 OFFSET ?)",
                    (own, most),
                )
            too_long = db.execute(
                "SELECT trace_id FROM spans GROUP BY trace_id HAVING count(*) > ?", (kept.spans_per_trace,)
            ).fetchall()
            for (trace_id,) in too_long:
                # The root stays, and so do the spans that came first: a flood cannot push a failover's phases out.
                db.execute(
                    "DELETE FROM spans WHERE trace_id = ? AND span_id IN (SELECT span_id FROM spans"
                    " WHERE trace_id = ? ORDER BY parent_id != '', stored_ns, start_ns LIMIT -1 OFFSET ?)",
                    (trace_id, trace_id, kept.spans_per_trace),
                )

    def _select_trace(self, trace_id: str) -> list[StoredSpan]:
        rows = self._db.execute(_SELECT, (trace_id,))
        return [
            StoredSpan(*(trace, span, parent, name), start, end, json.loads(attributes), json.loads(resource), error)
            for trace, span, parent, name, start, end, error, attributes, resource in rows
        ]

    def _select_window(self, window: tuple[int, int, int]) -> list[StoredSpan]:
        begun = self._db.execute(
            "SELECT trace_id FROM spans GROUP BY trace_id HAVING min(start_ns) >= ? AND min(start_ns) < ?"
            " ORDER BY min(start_ns), trace_id LIMIT ?",
            window,
        ).fetchall()
        return [span for (trace_id,) in begun for span in self._select_trace(trace_id)]

    def _select_traces(self, limit: int) -> list[TraceSummary]:
        rows = self._db.execute(
            "SELECT trace_id, min(start_ns), max(end_ns), count(*) FROM spans GROUP BY trace_id HAVING max(own) = 1"
            " ORDER BY min(start_ns) DESC, trace_id LIMIT ?",
            (max(0, limit),),
        ).fetchall()
        return [self._summary(*row) for row in rows]

    def _summary(self, trace_id: str, start_ns: int, end_ns: int, spans: int) -> TraceSummary:
        root = self._db.execute(
            "SELECT name, attributes FROM spans WHERE trace_id = ? AND parent_id = '' ORDER BY start_ns LIMIT 1",
            (trace_id,),
        ).fetchone()
        name, attributes = (root[0], json.loads(root[1])) if root else ("", {})
        measured = root is not None and not attributes.get(UNMEASURED)
        return TraceSummary(trace_id, name, start_ns, end_ns, spans, measured, attributes)

    def _select_logs(self, asked: tuple[int, int, int]) -> list[StoredLog]:
        rows = self._db.execute(
            "SELECT time_ns, body, attributes, resource, trace_id, span_id FROM logs"
            " WHERE time_ns BETWEEN ? AND ? ORDER BY time_ns, rowid LIMIT ?",
            asked,
        )
        return [
            StoredLog(time_ns, body, json.loads(attributes), json.loads(resource), trace_id, span_id)
            for time_ns, body, attributes, resource, trace_id, span_id in rows
        ]

    def _write(self, items: tuple[T, ...], row: Callable[[T, int], tuple[object, ...]], insert: str) -> None:
        stored_ns = self._now_ns()
        stored = 0
        try:
            rows = [row(item, stored_ns) for item in items]
            with _transaction(self._db):
                self._db.executemany(insert, rows)
            stored = len(items)
            self._writes += 1
            if self._writes % self._retention.sweep_every == 0:
                self._sweep(self._db)
        except sqlite3.Error as broken:
            self._complain(broken)
        finally:
            self._settle(len(items), stored)

    def _settle(self, taken: int, stored: int) -> None:
        with self._lock:
            self._pending -= taken
            self._dropped += taken - stored

    def _complain(self, broken: sqlite3.Error) -> None:
        now = time.monotonic()
        if now - self._logged_at >= _LOG_EVERY:
            self._logged_at = now
            _log.warning("trace store %s: spans or logs are dropped: %s", self.path, broken)


class _StoreExporter(SpanExporter):
    """Writes this process's own spans into the store, by the same way that OTLP takes."""

    def __init__(self, store: SpanStore) -> None:
        self._store = store

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Hand spans to the store; a failure when it takes none at the moment."""
        taken = self._store.add(from_request(encode_spans(spans)).spans)
        return SpanExportResult.SUCCESS if taken else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Nothing: who made the store closes it."""


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """A write transaction; whatever happens inside, none stays open."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # Some errors (a full disk among them) have rolled back already.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _span_row(span: StoredSpan, stored_ns: int) -> tuple[object, ...]:
    return (
        *(span.trace_id, span.span_id, span.parent_id, span.name, span.start_ns, span.end_ns),
        *(span.error, _to_json(span.attributes), _to_json(span.resource), stored_ns),
        not span.resource.get(SERVICE_NAME) or span.resource[SERVICE_NAME] in SERVICES,
    )


def _log_row(record: StoredLog, stored_ns: int) -> tuple[object, ...]:
    return (
        *(record.time_ns, record.trace_id, record.span_id, record.body),
        *(_to_json(record.attributes), _to_json(record.resource), stored_ns),
    )


def _to_json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, separators=(",", ":"))
