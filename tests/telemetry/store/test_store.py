"""The store: everything once, within bounds, and never in the way."""

import asyncio
import json
import sqlite3

import pytest

from tests.telemetry.support import EPOCH_NS, TRACE, root, stored
from understudy.telemetry.otlp.counts import Period
from understudy.telemetry.otlp.logs import StoredLog
from understudy.telemetry.store.retention import Retention
from understudy.telemetry.store.schema import SCHEMA_VERSION, STEPS, StoreError, StoreTooNewError
from understudy.telemetry.store.store import SpanStore


async def test_a_trace_comes_back_as_it_was_stored_by_start(store):
    spans = [
        stored("claim", 5, 2, attributes={"understudy.slots": 85, "list": ["a", 1.5, True]}),
        root(20, attributes={"understudy.pool": "cart"}),
        stored("push", 7, 3, "control-1", error="an Envoy refused"),
    ]
    assert store.add(spans)
    assert await store.trace(TRACE) == [spans[1], spans[0], spans[2]]
    assert await store.trace(TRACE.upper()) == await store.trace(TRACE)
    assert await store.trace("0" * 32) == []


async def test_a_span_sent_twice_is_there_once(store):
    store.add([root(20), stored("claim", 5, 2)])
    store.add([stored("claim", 5, 2)])
    assert [span.name for span in await store.trace(TRACE)] == ["failover", "claim"]
    assert store.dropped == 0


async def test_traces_survive_a_restart(tmp_path):
    first = SpanStore(tmp_path / "traces.db")
    first.add([root(20)])
    await first.aclose()
    second = SpanStore(tmp_path / "traces.db")
    assert await second.trace(TRACE) == [root(20)]
    await second.aclose()


async def test_the_list_shows_the_latest_first_and_which_are_unmeasured(store):
    store.add([root(20, attributes={"understudy.pool": "cart"}), stored("claim", 5, 2)])
    store.add([stored("claim", 1000, 2, trace_id="b" * 32)])
    store.add([root(30, trace_id="c" * 32, attributes={"understudy.unmeasured": True})])
    listed = await store.traces()
    assert [(summary.trace_id[0], summary.measured) for summary in listed] == [
        ("b", False),
        (TRACE[0], True),
        ("c", False),
    ]
    assert (listed[1].name, listed[1].spans) == ("failover", 2)
    assert [summary.total_ms for summary in listed] == [None, 20, None]
    assert listed[1].attributes == {"understudy.pool": "cart"}
    assert len(await store.traces(limit=1)) == 1


async def test_the_oldest_traces_go_when_there_are_too_many(tmp_path):
    now = iter(range(EPOCH_NS, EPOCH_NS + 1000))
    store = SpanStore(tmp_path / "traces.db", retention=Retention(traces=3, sweep_every=1), now_ns=lambda: next(now))
    for number in range(1, 6):
        store.add([root(20, trace_id=f"{number:032x}"), stored("claim", 5, 2, trace_id=f"{number:032x}")])
    assert sorted(int(summary.trace_id, 16) for summary in await store.traces()) == [3, 4, 5]
    await store.aclose()


async def test_traces_go_when_they_are_too_old(tmp_path):
    clock = [EPOCH_NS]
    store = SpanStore(tmp_path / "traces.db", retention=Retention(age_ns=1000, sweep_every=1), now_ns=lambda: clock[0])
    store.add([root(20)])
    await store.flush()
    clock[0] += 1001
    store.add([root(20, trace_id="b" * 32)])
    assert [summary.trace_id for summary in await store.traces()] == ["b" * 32]
    await store.aclose()


async def test_a_flood_into_one_trace_keeps_its_root_and_its_first_phases(tmp_path):
    store = SpanStore(tmp_path / "traces.db", retention=Retention(spans_per_trace=3, sweep_every=1))
    store.add([stored("detect", 0, 1), stored("claim", 1, 2)])
    await store.flush()
    store.add([stored("noise", number, 1) for number in range(50)])
    store.add([root(20)])
    assert {span.name for span in await store.trace(TRACE)} == {"failover", "detect", "claim"}
    await store.aclose()


async def test_a_locked_file_costs_spans_and_nothing_else(tmp_path):
    path = tmp_path / "traces.db"
    store = SpanStore(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert store.add([root(20)])
    await store.flush()
    assert store.dropped == 1
    other.execute("ROLLBACK")
    store.add([stored("claim", 5, 2)])
    assert [span.name for span in await store.trace(TRACE)] == ["claim"]
    other.close()
    await store.aclose()


async def test_a_full_disk_costs_spans_and_nothing_else(tmp_path):
    store = SpanStore(tmp_path / "traces.db")
    store.add([root(20)])
    await store.flush()
    pages = store._thread.submit(lambda: store._db.execute("PRAGMA page_count").fetchone()[0]).result()
    store._thread.submit(lambda: store._db.execute(f"PRAGMA max_page_count = {pages}")).result()
    big = [stored("claim", number, 1, attributes={"text": "x" * 8000}) for number in range(100)]
    assert store.add(big)
    await store.flush()
    assert store.dropped == 100
    store._thread.submit(lambda: store._db.execute("PRAGMA max_page_count = 100000")).result()
    assert store.add(big)
    assert len(await store.trace(TRACE)) == 101
    await store.aclose()


async def test_more_than_it_can_hold_is_refused_so_that_the_sender_keeps_it(store, monkeypatch):
    monkeypatch.setattr("understudy.telemetry.store.store._MAX_PENDING", 10)
    assert not store.add([root(20)] * 11)
    assert store.add([root(20)])
    assert await store.trace(TRACE) == [root(20)]


async def test_a_closed_store_refuses_without_an_exception_for_writers(store):
    await store.aclose()
    assert not store.add([root(20)])
    with pytest.raises(StoreError, match="trace store"):
        await store.traces()


def test_a_newer_file_is_left_alone_with_a_clear_word(tmp_path):
    path = tmp_path / "traces.db"
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(StoreTooNewError, match=f"schema {SCHEMA_VERSION + 1} is newer than the {SCHEMA_VERSION}"):
        SpanStore(path)


@pytest.mark.parametrize("content", [b"not a database at all, but long enough for a header" * 20])
def test_a_file_that_is_no_database_is_refused(tmp_path, content):
    path = tmp_path / "traces.db"
    path.write_bytes(content)
    with pytest.raises(StoreError, match="not a database"):
        SpanStore(path)
    assert path.read_bytes() == content


def test_somebody_elses_database_is_refused_and_not_changed(tmp_path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE customers (name TEXT)")
    with pytest.raises(StoreError, match="not a trace store"):
        SpanStore(path)
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("customers",)]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"missing/traces\.db"):
        SpanStore(tmp_path / "missing" / "traces.db")


async def test_what_is_stored_is_plain_json(store, tmp_path):
    store.add([root(20, attributes={"name": "Ä"})])
    await store.flush()
    with sqlite3.connect(tmp_path / "traces.db") as db:
        assert json.loads(db.execute("SELECT attributes FROM spans").fetchone()[0]) == {"name": "Ä"}


async def test_a_file_of_the_first_schema_is_brought_up_to_date_with_its_traces(tmp_path):
    path = tmp_path / "traces.db"
    with sqlite3.connect(path) as db:
        for statement in (*STEPS[0], "PRAGMA user_version = 1"):
            db.execute(statement)
        db.execute(
            "INSERT INTO spans VALUES (?, ?, '', 'failover', 1, 2, '', '{}', '{}', ?)", (TRACE, "1" * 16, 1 << 62)
        )
    store = SpanStore(path)
    assert [found.trace_id for found in await store.traces()] == [TRACE]
    assert store.add_logs([StoredLog(5, "request")])
    assert await store.logs(5, 5) == [StoredLog(5, "request")]
    await store.aclose()


async def test_a_flood_of_others_pushes_no_failover_out(tmp_path):
    store = SpanStore(tmp_path / "traces.db", retention=Retention(foreign_traces=3, logs=3, sweep_every=1))
    store.add([root(20)])
    for number in range(1, 11):
        store.add([root(1, trace_id=f"{number:032x}", resource={"service.name": "shop"})])
        store.add_logs([StoredLog(number)])
    assert [found.trace_id for found in await store.traces()] == [TRACE]
    kept = [number for number in range(1, 11) if await store.trace(f"{number:032x}")]
    assert kept == [8, 9, 10]
    assert [log.time_ns for log in await store.logs(0, 100)] == [8, 9, 10]
    await store.aclose()


async def test_bounds_hold_while_several_write_and_somebody_reads(tmp_path):
    store = SpanStore(tmp_path / "traces.db", retention=Retention(traces=300, logs=300, counts=300, sweep_every=32))

    async def write(writer: int) -> None:
        for number in range(400):
            trace = f"{number + 1:031x}{writer}"
            taken = store.add([root(20, trace_id=trace), stored("claim", 5, 2, trace_id=trace)])
            taken &= store.add_logs([StoredLog(EPOCH_NS + number)])
            taken &= store.add_counts([Period(f"front-{writer}", EPOCH_NS + number, EPOCH_NS + number + 1, 1)])
            assert taken
            if number % 20 == 0:
                for one in await store.traces(5):
                    assert len(await store.trace(one.trace_id)) in (0, 2), "whole, or gone"

    await asyncio.gather(*(write(writer) for writer in range(4)))
    kept = await store.traces(10_000)
    assert 300 <= len(kept) <= 300 + 32
    assert {one.spans for one in kept} == {2}
    assert min(int(one.trace_id[:31], 16) for one in kept) > 300, "the newest stay"
    assert len(await store.logs(0, 1 << 62)) <= 300 + 32
    assert len(await store.counts(0, 1 << 62)) <= 300 + 32
    assert store.dropped == 0
    await store.aclose()
