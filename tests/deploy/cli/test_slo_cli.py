"""``understudy slo`` from a terminal: exit codes, sources, and one clear line for each mistake."""

import json
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.harness.commands import commands
from tests.harness.recorded import answering
from tests.harness.waiting import free_port
from understudy.deploy.cli.main import cli
from understudy.telemetry.store.schema import SCHEMA_VERSION

MS = 1_000_000
BEGUN = time.time_ns() - 4 * 3600 * 10**9
"""Three hours ago: when the first change of active was, in every test alike."""


@pytest.fixture
def slo(tmp_path, monkeypatch):
    """Run ``understudy slo`` in an empty directory with a pool spec; the result has ``exit_code`` and ``output``."""
    monkeypatch.chdir(tmp_path)
    for name in ("UNDERSTUDY_ETCD", "UNDERSTUDY_POOL", "UNDERSTUDY_DIR"):
        monkeypatch.delenv(name, raising=False)
    Path("pool.yaml").write_text("pool: cart\n")
    runner = CliRunner(env={"COLUMNS": "160"})
    with ThreadPoolExecutor(1) as thread:  # the command runs an event loop of its own

        def run(*arguments):
            return thread.submit(runner.invoke, cli, ["slo", *map(str, arguments)]).result()

        yield run


def span(trace: int, name: str, start_ms: float, length_ms: float, root: bool = False, **facts: Any) -> dict[str, Any]:
    """A span in OTLP/JSON; attributes are named with ``_`` for ``.`` and without ``understudy``."""
    kinds = {bool: "boolValue", int: "intValue", str: "stringValue"}
    start = BEGUN + trace * 20_000 * MS + round(start_ms * MS)
    attributes = {"pool": "cart", **facts}
    return {
        "traceId": f"{trace + 1:032x}",
        "spanId": f"{trace + 1:016x}" if root else f"{abs(hash((trace, name, start_ms))) % (1 << 63) + 1:016x}",
        **({} if root else {"parentSpanId": f"{trace + 1:016x}"}),
        "name": name,
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(start + round(length_ms * MS)),
        "attributes": [
            {"key": f"understudy.{key.replace('__', '.')}", "value": {kinds[type(value)]: value}}
            for key, value in attributes.items()
        ],
    }


def takeover(trace: int, length_ms: float = 40) -> list[dict[str, Any]]:
    """A drill that killed a member of four, and all that is told of it."""
    about = {"slots": 64, "from": "cart-1", "cause": "connection refused"}
    return [
        span(trace, "failover", 0, length_ms, root=True, **about),
        span(trace, "detect", 0, 5, **about),
        span(trace, "claim", 6, 4, slots=64, losses=0),
        span(trace, "push", 10, 5, **about),
        span(trace, "ack", 12, length_ms - 12, **about),
        span(trace, "re_protect", 0, 900, **about),
        span(trace, "returned", 5, 30, **about, returned=False),
        span(trace, "audit", 30, 900, slots=64, writes__breached=0),
    ]


def compared(trace: int) -> dict[str, Any]:
    """What the clients of the drill saw."""
    seen = {"requests": 1000, "failed": 0, "lost_writes": 0, "needless_moves": 0}
    return span(trace, "drill", 1, 60, drill="kill", **{f"drill__{what}": count for what, count in seen.items()})


def handover(trace: int, slots: int) -> list[dict[str, Any]]:
    spans = [span(trace, "handover", 0, 500, root=True, slots=slots, planned=True)]
    for slot in range(slots):
        spans += [span(trace, "fence", slot, 4, slot=slot), span(trace, "confirm", slot + 4, 8, slot=slot)]
    return [*spans, span(trace, "re_protect", 0, 1, slots=slots)]


def written(*spans: dict[str, Any]) -> Path:
    path = Path("traces.json")
    path.write_text(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]}))
    return path


def whole(*lengths_ms: float) -> list[dict[str, Any]]:
    """What it takes to show every objective, with takeovers of these lengths among 300, and 299 planned moves."""
    lengths = [*lengths_ms, *[40.0] * (300 - len(lengths_ms))]
    spans = [one for number, length in enumerate(lengths) for one in takeover(number, length)]
    moves = [one for number in range(300, 599) for one in handover(number, 2)]
    return [*spans, *(compared(number) for number in range(300)), *moves]


def test_0_when_every_objective_is_shown_to_be_met(slo):
    done = slo("--from", written(*whole()), "--spec", "pool.yaml", "--window", "2d", "-o", "json")
    told = json.loads(done.stdout)
    assert {one["key"]: one["state"] for one in told["figures"] if one["state"] != "met"} == {
        "rpo_async_writes": "not judged"
    }
    assert (done.exit_code, told["verdict"], told["failovers"]) == (0, "met", 599)


def test_1_when_one_is_missed_and_the_terminal_names_trace_and_phase(slo):
    done = slo("--from", written(*whole(*[2500.0] * 4)), "--spec", "pool.yaml", "--window", "2d")
    assert done.exit_code == 1
    assert done.output.startswith("Missed: crash RTO")
    assert "worst in trace 000000000000; most of it went to ack" in done.output
    assert "understudy status --xds names it" in done.output
    assert "2.5 s from cart-1" in done.output


def test_3_when_there_is_too_little_evidence_and_how_many_drills_are_missing(slo):
    done = slo("--from", written(*takeover(0), compared(0)), "--spec", "pool.yaml", "--window", "2d")
    assert done.exit_code == 3
    assert "0 of 1 beyond it; 298 more within it would show the p99 at 95 %" in done.output


def test_an_empty_window_claims_nothing(slo):
    done = slo(
        "--from", written(*whole()), "--spec", "pool.yaml", "--window", "10m", "--html", "page.html", "--compare"
    )
    assert done.exit_code == 3
    assert "0 changes of active" in done.output
    assert "nothing of the kind was recorded" in done.output
    assert "No takeover was measured" in Path("page.html").read_text()


def test_another_pools_failovers_are_not_judged(slo):
    Path("other.yaml").write_text("pool: shop\n")
    done = slo("--from", written(*whole()), "--spec", "other.yaml", "--window", "2d", "-o", "json")
    assert (done.exit_code, json.loads(done.stdout)["failovers"]) == (3, 0)


def test_the_page_is_written_beside_the_answer_and_compares_with_the_window_before(slo):
    done = slo("--from", written(*whole()), "--spec", "pool.yaml", "--window", "2d", "--compare", "--html", "page.html")
    page = Path("page.html").read_text()
    assert done.exit_code == 0
    assert "Every objective was met" in page
    assert 'data-l="before"' in page
    assert "before" in done.output


def test_the_objectives_of_the_spec_count(slo):
    Path("strict.yaml").write_text("pool: cart\nobjectives: {rto: {p99: 20ms}}\n")
    done = slo("--from", written(*whole()), "--spec", "strict.yaml", "--window", "2d", "-o", "json")
    rto = next(one for one in json.loads(done.stdout)["figures"] if one["key"] == "rto")
    assert (done.exit_code, rto["state"], rto["target"]) == (1, "missed", 0.02)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--window", "soon"], "'soon' is not a duration of at most a year; examples: 90m, 24h, 30d, 4w"),
        (["--window", "400d"], "not a duration of at most a year"),
        (["--window", "0d"], "not a duration of at most a year"),
        (["--from", "absent.json", "--spec", "pool.yaml"], "--from absent.json: No such file"),
        (["--from", "pool.yaml", "--spec", "pool.yaml"], "no OTLP JSON"),
        (["--from", "jaeger=localhost:16686", "--spec", "pool.yaml"], "such as http://127.0.0.1:16686"),
        (["--from", "tempo=http://127.0.0.1:1", "--spec", "pool.yaml"], "does not answer"),
        (["--spec", "absent.yaml", "--from", "traces.json"], "absent.yaml"),
        (["--spec", "wrong.yaml", "--from", "traces.json"], "objectives.rto"),
        (["--spec", "pool.yaml", "--pool", "shop", "--from", "traces.json"], "is for pool 'cart'"),
        (["--spec", "pool.yaml", "--from", "traces.json", "--html", "no/where.html"], "--html no/where.html"),
        (["--from", "traces.json", "--etcd", "127.0.0.1:1"], "etcd"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_told_in_one_line_and_exits_with_2(slo, arguments, told):
    written(*takeover(0))
    Path("wrong.yaml").write_text("pool: cart\nobjectives: {rto: {p99: soon}}\n")
    done = slo(*arguments)
    assert done.exit_code == 2, done.output
    assert told in done.output
    assert "Traceback" not in done.output


def test_what_could_not_be_used_is_told_beside_the_answer(slo):
    broken = {**takeover(0)[0], "traceId": "no hex"}
    done = slo("--from", written(broken, *takeover(1)), "--spec", "pool.yaml", "--window", "2d", "-o", "json")
    assert "1 records of traces.json could not be used" in done.stderr
    assert json.loads(done.stdout)["failovers"] == 1


def jaeger_answer(*spans: dict[str, Any]) -> dict[str, Any]:
    """Traces as Jaeger's HTTP API gives them (its own UI's format: microseconds, tags, references, processes)."""
    types = {"stringValue": "string", "intValue": "int64", "boolValue": "bool"}
    traces: dict[str, list[dict[str, Any]]] = {}
    for one in spans:
        references = [{"refType": "CHILD_OF", "traceID": one["traceId"], "spanID": one.get("parentSpanId", "")}]
        traces.setdefault(one["traceId"], []).append(
            {
                "traceID": one["traceId"].lstrip("0"),
                "spanID": one["spanId"].lstrip("0"),
                "operationName": one["name"],
                "references": references if "parentSpanId" in one else [],
                "startTime": int(one["startTimeUnixNano"]) // 1000,
                "duration": (int(one["endTimeUnixNano"]) - int(one["startTimeUnixNano"])) // 1000,
                "tags": [
                    {"key": pair["key"], "type": types[kind], "value": value}
                    for pair in one["attributes"]
                    for kind, value in pair["value"].items()
                ],
                "logs": [],
                "processID": "p1",
                "warnings": None,
            }
        )
    process = {"p1": {"serviceName": "understudy-control", "tags": []}}
    data = [
        {"traceID": trace, "spans": found, "processes": process, "warnings": None} for trace, found in traces.items()
    ]
    return {"data": data, "total": 0, "limit": 0, "offset": 0, "errors": None}


def test_a_review_reads_from_jaeger(slo):
    with answering({"/api/traces": jaeger_answer(*takeover(0, 55), *takeover(1))}) as (address, asked):
        done = slo("--from", f"jaeger={address}", "--spec", "pool.yaml", "--window", "2d", "-o", "json")
    told = json.loads(done.stdout)
    assert (done.exit_code, told["failovers"], told["worst"][0]["total_ms"]) == (3, 2, 55.0)
    assert all("service=understudy-" in path for path in asked)


def test_a_review_reads_from_tempo(slo):
    def trace(number, *spans):
        found = {"batches": [{"resource": {"attributes": []}, "scopeSpans": [{"spans": list(spans)}]}]}
        return {f"/api/traces/{number + 1:032x}": found}

    search = {"traces": [{"traceID": f"{number + 1:x}", "durationMs": 55} for number in (0, 1)], "metrics": {}}
    answers = {"/api/search": search} | trace(0, *takeover(0, 55)) | trace(1, *takeover(1))
    with answering(answers) as (address, _):
        done = slo("--from", f"tempo={address}", "--spec", "pool.yaml", "--window", "2d", "-o", "json")
    told = json.loads(done.stdout)
    assert (done.exit_code, told["failovers"], told["worst"][0]["total_ms"]) == (3, 2, 55.0)


async def test_a_database_of_a_newer_version_is_left_alone_by_a_control_server_and_named(tmp_path):
    path = tmp_path / "traces.db"
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = path.read_bytes()
    ports = ["--grpc", f"127.0.0.1:{free_port()}", "--http", f"127.0.0.1:{free_port()}"]
    async with commands(tmp_path) as understudy:
        code, told = await understudy.run(
            *("control", "--name", "c", "--pool", "cart", "--traces", str(path), "--etcd", "127.0.0.1:1", *ports)
        )
    assert code == 2
    assert f"its schema {SCHEMA_VERSION + 1} is newer" in told
    assert path.read_bytes() == before
