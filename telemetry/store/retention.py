"""What the trace store keeps, and how it deletes the rest.

Runs in the store's thread, on its connection. Failovers have limits of their own, so that a flood of other traces or of
requests does not displace them. Counts of front Envoys are kept in full around changes of active, and per hour
otherwise, which is enough for a review of weeks.
"""

import sqlite3

import msgspec

from understudy.telemetry.otlp.counts import FINE_NS

_HOUR_NS = 3600 * 10**9
_DAY_NS = 24 * _HOUR_NS
_LONGEST_CHANGE_NS = 10 * 60 * 10**9
"""No trace of a change of active lasts longer (``understudy.xds.tracing.post_failover`` gives up before)."""


class Retention(msgspec.Struct, frozen=True):
    """What is kept: the newest ``traces`` traces, of each up to ``spans_per_trace`` spans, for ``age_ns``.

    ``foreign_traces``: those to which only others added, requests through Envoy for instance. ``logs``: log records.
    ``counts``: periods of request counts. ``sweep_every``: bounds are enforced at the start and after so many writes.
    """

    traces: int = 10_000
    foreign_traces: int = 1_000
    logs: int = 100_000
    counts: int = 500_000
    spans_per_trace: int = 2_000
    age_ns: int = 90 * _DAY_NS
    sweep_every: int = 256


def sweep(db: sqlite3.Connection, kept: Retention, now_ns: int, swept_ns: int = 0) -> int:
    """Enforce the bounds; the caller holds a transaction.

    Counts up to ``swept_ns`` were put together before. Returns up to when they are now.
    """
    oldest = now_ns - kept.age_ns
    _drop(db, "SELECT trace_id FROM traces WHERE own IN (0, 1) AND stored_ns < ?", (oldest,))
    for own, most in ((1, kept.traces), (0, kept.foreign_traces)):
        newest_first = "SELECT trace_id FROM traces WHERE own = ? ORDER BY stored_ns DESC, start_ns DESC"
        _drop(db, f"{newest_first} LIMIT -1 OFFSET ?", (own, most))
    _shorten(db, kept.spans_per_trace)
    db.execute("DELETE FROM logs WHERE stored_ns < ?", (oldest,))
    db.execute(
        "DELETE FROM logs WHERE rowid IN (SELECT rowid FROM logs ORDER BY rowid DESC LIMIT -1 OFFSET ?)", (kept.logs,)
    )
    swept_ns = _put_together(db, swept_ns, now_ns)
    db.execute("DELETE FROM counts WHERE end_ns < ?", (oldest,))
    db.execute(
        "DELETE FROM counts WHERE end_ns <= (SELECT end_ns FROM counts ORDER BY end_ns DESC LIMIT 1 OFFSET ?)",
        (kept.counts,),
    )
    return swept_ns


def _drop(db: sqlite3.Connection, which: str, arguments: tuple[int, ...]) -> None:
    """Remove whole traces."""
    gone = db.execute(which, arguments).fetchall()
    db.executemany("DELETE FROM spans WHERE trace_id = ?", gone)
    db.executemany("DELETE FROM traces WHERE trace_id = ?", gone)


def _shorten(db: sqlite3.Connection, most: int) -> None:
    """Cut traces that are too long.

    The root stays, and so do the spans that came first: a flood cannot push a failover's phases out.
    """
    for (trace_id,) in db.execute("SELECT trace_id FROM traces WHERE spans > ?", (most,)).fetchall():
        db.execute(
            "DELETE FROM spans WHERE trace_id = ? AND span_id IN (SELECT span_id FROM spans"
            " WHERE trace_id = ? ORDER BY parent_id != '', stored_ns, start_ns LIMIT -1 OFFSET ?)",
            (trace_id, trace_id, most),
        )
        db.execute("UPDATE traces SET spans = ? WHERE trace_id = ?", (most, trace_id))


def _put_together(db: sqlite3.Connection, after: int, now_ns: int) -> int:
    """Make one row an hour and Envoy of periods over an hour old, but for those that touch a change of active.

    Looks at those that ended after ``after``; returns up to when it looked.
    """
    before = (now_ns - _HOUR_NS) // _HOUR_NS * _HOUR_NS
    if before <= after:
        return after
    old = (
        "FROM counts WHERE end_ns > ? AND end_ns <= ? AND end_ns - start_ns <= ? AND NOT EXISTS"
        " (SELECT 1 FROM traces INDEXED BY traces_by_start WHERE own = 1"
        " AND traces.start_ns < counts.end_ns AND traces.start_ns > counts.start_ns - ?"
        " AND traces.end_ns > counts.start_ns)"
    )
    arguments = (after, before, FINE_NS, _LONGEST_CHANGE_NS)
    hours = db.execute(
        "SELECT node, min(start_ns), max(end_ns), sum(requests), sum(failed), sum(dropped), 0"
        f" {old} GROUP BY node, (end_ns - 1) / {_HOUR_NS} HAVING count(*) > 2",
        arguments,
    ).fetchall()
    for row in hours:
        within = (row[0], row[1], row[2])
        db.execute(f"DELETE {old} AND node = ? AND start_ns >= ? AND end_ns <= ?", (*arguments, *within))
        db.execute("INSERT OR REPLACE INTO counts VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    return before
