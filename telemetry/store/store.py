"""The trace store: finished spans, log records and request counts in one SQLite file, bounded in count and age.

One thread owns the database and handles everything in order, so a reader sees what was added before, and the event loop
never waits for a disk. Adding never raises: what cannot be written (disk full, file locked, too much at once) is
counted in :attr:`SpanStore.dropped`. A span is stored once, even if it is sent several times.
"""

import asyncio
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from understudy.telemetry.otlp.counts import Period
from understudy.telemetry.otlp.logs import StoredLog
from understudy.telemetry.otlp.spans import StoredSpan, from_request
from understudy.telemetry.store.retention import Retention, sweep
from understudy.telemetry.store.rows import (
    TraceSummary,
    insert_logs,
    insert_periods,
    insert_spans,
    select_counts,
    select_logs,
    select_trace,
    select_traces,
    select_window,
)
from understudy.telemetry.store.schema import StoreError, bring_up_to_date, schema_of

_LOG_EVERY = 30.0
_MAX_PENDING = 20_000
logger = logging.getLogger(__name__)
T = TypeVar("T")
A = TypeVar("A")
Insert = Callable[[sqlite3.Connection, Sequence[T], int], None]


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
            StoreError: it cannot be opened, or is not such a store.
        """
        self.path = str(path)
        self._retention = retention or Retention()
        self._now_ns = now_ns
        self._lock = threading.Lock()
        self._pending = 0
        self._dropped = 0
        self._writes = 0
        self._swept = 0
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
        return self._queue(tuple(spans), insert_spans)

    def add_logs(self, records: Sequence[StoredLog]) -> bool:
        """Queue log records for writing, just like :meth:`add`."""
        return self._queue(tuple(records), insert_logs)

    def add_counts(self, periods: Sequence[Period]) -> bool:
        """Queue counts of requests for writing, just like :meth:`add`."""
        return self._queue(tuple(periods), insert_periods)

    def _queue(self, items: tuple[T, ...], insert: Insert[T]) -> bool:
        if not items:
            return True
        with self._lock:
            if self._pending + len(items) > _MAX_PENDING:
                return False
            self._pending += len(items)
        try:
            self._thread.submit(self._write, items, insert)
        except RuntimeError:  # the thread has been shut down
            self._settle(len(items), stored=0)
            return False
        return True

    async def logs(self, start_ns: int, end_ns: int, limit: int = 10_000) -> list[StoredLog]:
        """Log records of a time, both ends included, in order; raises ``StoreError`` like :meth:`trace`."""
        return await self._read(select_logs, (start_ns, end_ns, max(0, limit)))

    async def trace(self, trace_id: str) -> list[StoredSpan]:
        """All spans of a trace (32 hex digits), by start; empty when it is not known.

        Raises:
            StoreError: the file cannot be read.
        """
        return await self._read(select_trace, trace_id.lower())

    async def traces(self, limit: int = 50) -> list[TraceSummary]:
        """The newest traces of ours, latest first; raises ``StoreError`` like :meth:`trace`."""
        return await self._read(select_traces, limit)

    async def window(self, start_ns: int, end_ns: int, limit: int = 100) -> list[StoredSpan]:
        """All spans of the first ``limit`` traces that began in ``[start_ns, end_ns)``, trace by trace."""
        return await self._read(select_window, (start_ns, end_ns, limit))

    async def counts(self, start_ns: int, end_ns: int, limit: int = 10_000) -> list[Period]:
        """Counts of periods that ended in a time, both ends included, by end; raises ``StoreError``."""
        return await self._read(select_counts, (start_ns, end_ns, max(0, limit)))

    async def flush(self) -> None:
        """Return when everything added before is written or counted as dropped."""
        await self._read(lambda *_: None, None)

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

    async def _read(self, query: Callable[[sqlite3.Connection, A], T], argument: A) -> T:
        try:
            return await asyncio.wrap_future(self._thread.submit(query, self._db, argument))
        except (sqlite3.Error, RuntimeError) as broken:
            raise StoreError(self.path, str(broken)) from broken

    # What follows runs in the store's thread only.

    def _open(self) -> sqlite3.Connection:
        if str(self.path) != ":memory:":
            with suppress(OSError):  # connecting says what is wrong with the path
                os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))  # traces are not for everybody
        db = sqlite3.connect(self.path, timeout=1.0, isolation_level=None)
        try:
            schema_of(db, self.path)  # before WAL changes the file
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            with _transaction(db):
                bring_up_to_date(db, self.path)
            self._sweep(db)
        except BaseException:
            db.close()
            raise
        return db

    def _sweep(self, db: sqlite3.Connection) -> None:
        with _transaction(db):
            self._swept = sweep(db, self._retention, self._now_ns(), self._swept)

    def _write(self, items: tuple[T, ...], insert: Insert[T]) -> None:
        stored_ns = self._now_ns()
        stored = 0
        try:
            with _transaction(self._db):
                insert(self._db, items, stored_ns)
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
            logger.warning("trace store %s: spans or logs are dropped: %s", self.path, broken)


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
