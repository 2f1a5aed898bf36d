"""The trace store's tables, and how a file of an older version is brought up to date.

A schema number stands in the file (``PRAGMA user_version``). :data:`STEPS` are what was done from one number to the
next; a released step is never changed. Who reads and writes the tables: :mod:`understudy.telemetry.store.store`.
"""

import sqlite3

_FIRST = (
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
_SECOND = (
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
# One row a trace, so that lists, windows and retention need not look at every span. And what front Envoys counted: some
# bytes every few seconds from each, put together by the hour when it is old.
_THIRD = (
    """
CREATE TABLE traces (
    trace_id TEXT PRIMARY KEY,
    start_ns INTEGER NOT NULL,
    end_ns INTEGER NOT NULL,
    stored_ns INTEGER NOT NULL,
    spans INTEGER NOT NULL,
    own INTEGER NOT NULL
) WITHOUT ROWID""",
    """
INSERT INTO traces SELECT trace_id, min(start_ns), max(end_ns), max(stored_ns), count(*), max(own)
FROM spans GROUP BY trace_id""",
    "CREATE INDEX traces_by_start ON traces (start_ns)",
    "CREATE INDEX traces_by_age ON traces (own, stored_ns)",
    "DROP INDEX spans_by_age",
    """
CREATE TABLE counts (
    node TEXT NOT NULL,
    start_ns INTEGER NOT NULL,
    end_ns INTEGER NOT NULL,
    requests INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    dropped INTEGER NOT NULL,
    arrived_ns INTEGER NOT NULL,
    PRIMARY KEY (end_ns, node)
) WITHOUT ROWID""",
)
STEPS = (_FIRST, _SECOND, _THIRD)
"""What makes a file of schema n one of schema n + 1."""
SCHEMA_VERSION = len(STEPS)


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


def schema_of(db: sqlite3.Connection, path: str) -> int:
    """The schema of a file that may become ours, 0 for a new one; nothing is changed.

    Raises:
        StoreTooNewError: a newer version wrote the file.
        StoreError: it is some other database.
    """
    (found,) = db.execute("PRAGMA user_version").fetchone()
    if found > SCHEMA_VERSION:
        raise StoreTooNewError(path, found, SCHEMA_VERSION)
    if not found and db.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
        raise StoreError(path, "an SQLite file, but not a trace store")
    return int(found)


def bring_up_to_date(db: sqlite3.Connection, path: str) -> None:
    """Make the tables of a new file, or those of an older version into ours; the caller holds a transaction."""
    for step in STEPS[schema_of(db, path) :]:
        for statement in step:
            db.execute(statement)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
