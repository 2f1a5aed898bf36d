"""Spans out of a Collector's files, Jaeger and Tempo, whose answers are written as those tools document them."""

import contextlib
import json
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.recorded import answering
from tests.harness.waiting import free_port
from tests.telemetry.support import EPOCH_NS, MS, ROOT, TRACE
from understudy.telemetry.otlp.counts import Period
from understudy.telemetry.otlp.otlp_json import read_otlp_json
from understudy.telemetry.slo.trace_backends import TimeRange, TraceBackendError, load
from understudy.telemetry.slo.waterfall import phases, total_ms

CLAIM = "1111111111111111"


def otlp_line(*spans: dict) -> str:
    """One line as the Collector's file exporter writes it: a request in OTLP/JSON."""
    resource = {
        "attributes": [
            {"key": "service.name", "value": {"stringValue": "understudy-sidecar"}},
            {"key": "service.instance.id", "value": {"stringValue": "cart-1"}},
        ]
    }
    scope = {"scope": {"name": "understudy"}, "spans": list(spans)}
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]})


def otlp_span(name: str, span_id: str, length_ms: int, parent: str = ROOT, **more) -> dict:
    return {
        "traceId": TRACE,
        "spanId": span_id,
        "parentSpanId": parent,
        "name": name,
        "kind": 1,
        "startTimeUnixNano": str(EPOCH_NS),
        "endTimeUnixNano": str(EPOCH_NS + length_ms * MS),
        "attributes": [{"key": "understudy.slots", "value": {"intValue": "85"}}],
        "status": {},
        **more,
    }


FAILOVER = otlp_span("failover", ROOT, 31, parent="")


def test_a_collectors_rotated_files_are_read_together(tmp_path):
    (tmp_path / "traces-2026-05-04T10-19-06.000.json").write_text(otlp_line(FAILOVER) + "\n")
    (tmp_path / "traces.json").write_text(otlp_line(otlp_span("claim", CLAIM, 6)) + "\n" + otlp_line(FAILOVER) + "\n")
    (tmp_path / "notes.txt").write_text("not for us")
    found = load(str(tmp_path))
    assert (len(found.spans), found.refused) == (2, 0)
    assert total_ms(found.spans) == 31
    assert phases(found.spans)["claim"].duration_ms == 6
    claim = next(span for span in found.spans if span.name == "claim")
    assert (claim.instance, claim.parent_id, claim.attributes) == ("cart-1", ROOT, {"understudy.slots": 85})


def test_what_front_envoys_told_is_read_from_a_collectors_files_too(tmp_path):
    def attribute(key, value):
        return {"key": key, "value": {"stringValue": value}}

    envoy = {"attributes": [attribute("node_name", "front-1")]}
    record = {"timeUnixNano": str(EPOCH_NS), "attributes": [attribute("http.response.status_code", "503")]}
    point = {"timeUnixNano": str(EPOCH_NS), "startTimeUnixNano": str(EPOCH_NS - 5000 * MS), "asInt": "40"}
    metric = {
        "name": "understudy.requests",
        "sum": {"dataPoints": [point], "aggregationTemporality": 1, "isMonotonic": True},
    }
    logs = {"resourceLogs": [{"resource": envoy, "scopeLogs": [{"logRecords": [record]}]}]}
    metrics = {"resourceMetrics": [{"resource": envoy, "scopeMetrics": [{"metrics": [metric]}]}]}
    (tmp_path / "all.json").write_text("\n".join([otlp_line(FAILOVER), json.dumps(logs), json.dumps(metrics)]))
    found = load(str(tmp_path))
    assert (len(found.spans), len(found.reports), found.refused) == (1, 1, 0)
    assert found.counts == (Period("front-1", EPOCH_NS - 5000 * MS, EPOCH_NS, 40),)
    assert load(str(tmp_path), TimeRange(EPOCH_NS + 1)).reports == ()


def test_one_indented_document_is_read_as_well(tmp_path):
    file = tmp_path / "one.json"
    file.write_text(json.dumps(json.loads(otlp_line(FAILOVER)), indent=2))
    assert total_ms(load(str(file)).spans) == 31


def test_a_line_that_is_still_being_written_costs_only_itself(tmp_path):
    file = tmp_path / "traces.json"
    file.write_text(otlp_line(FAILOVER) + "\n" + otlp_line(otlp_span("claim", CLAIM, 6))[:100])
    found = load(str(file))
    assert (len(found.spans), found.refused) == (1, 1)
    assert "traces.json line 2" in found.reason


def test_a_span_of_nonsense_is_told_and_its_neighbours_kept(tmp_path):
    broken = [
        otlp_span("short id", CLAIM, 1, traceId="no hex"),
        otlp_span("backwards", CLAIM, -5),
        otlp_span("wrong type", CLAIM, 1, attributes="none"),
        otlp_span("far future", CLAIM, 1, endTimeUnixNano=str(1 << 70)),
    ]
    file = tmp_path / "traces.json"
    file.write_text(otlp_line(*broken, FAILOVER))
    found = load(str(file))
    assert ([span.name for span in found.spans], found.refused) == (["failover"], 4)


def test_links_and_fields_of_later_versions_are_passed_over(tmp_path):
    file = tmp_path / "traces.json"
    file.write_text(otlp_line({**FAILOVER, "links": [{"traceId": TRACE, "spanId": CLAIM}], "later": {"x": 1}}))
    assert load(str(file)).refused == 0


def test_only_what_touches_the_window_comes_back(tmp_path):
    file = tmp_path / "traces.json"
    file.write_text(otlp_line(FAILOVER))
    assert load(str(file), TimeRange(EPOCH_NS + 31 * MS)).spans
    assert not load(str(file), TimeRange(EPOCH_NS + 31 * MS + 1)).spans


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file_has_no_spans(tmp_path, text):
    file = tmp_path / "traces.json"
    file.write_text(text)
    assert load(str(file)).spans == ()


@pytest.mark.parametrize("text", ["hello", "[1, 2]", "[" * 100_000, '{"profiles": []}', "\x00\xff"])
def test_a_file_of_something_else_is_named(tmp_path, text):
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(TraceBackendError, match=r"other\.json: no OTLP JSON .* file exporter"):
        load(str(file))


def test_a_missing_file_and_an_empty_directory_are_named(tmp_path):
    with pytest.raises(TraceBackendError, match=r"absent\.json: No such file"):
        load(str(tmp_path / "absent.json"))
    with pytest.raises(TraceBackendError, match=r"no file that ends in \.json"):
        load(str(tmp_path))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["resourceSpans", "scopeSpans", "spans", "resource", "traceId", "attributes", "name"]),
                inner,
            )
        ),
    )
)
def test_any_json_is_read_or_refused(document):
    with contextlib.suppress(ValueError):
        assert read_otlp_json(json.dumps(document)).refused >= 0


# Backends


def jaeger_span(name: str, span_id: str, length_us: int, *, parent: str = "", **more) -> dict:
    return {
        "traceID": TRACE,
        "spanID": span_id,
        "operationName": name,
        "references": [{"refType": "CHILD_OF", "traceID": TRACE, "spanID": parent}] if parent else [],
        "startTime": EPOCH_NS // 1000,
        "duration": length_us,
        "tags": [
            {"key": "understudy.slots", "type": "int64", "value": 85},
            {"key": "understudy.planned", "type": "bool", "value": False},
            {"key": "otel.status_code", "type": "string", "value": "OK"},
        ],
        "logs": [],
        "processID": "p1",
        "warnings": None,
        **more,
    }


JAEGER = {
    "data": [
        {
            "traceID": TRACE,
            "spans": [
                jaeger_span("failover", ROOT.lstrip("0"), 31_000),
                jaeger_span(
                    "claim",
                    CLAIM,
                    6_500,
                    parent=ROOT,
                    processID="p2",
                    tags=[{"key": "otel.status_code", "type": "string", "value": "ERROR"}],
                ),
                {"operationName": "of somebody else"},
            ],
            "processes": {
                "p1": {"serviceName": "understudy-control", "tags": []},
                "p2": {
                    "serviceName": "understudy-sidecar",
                    "tags": [{"key": "service.instance.id", "type": "string", "value": "cart-1"}],
                },
            },
            "warnings": None,
        }
    ],
    "total": 0,
    "limit": 0,
    "offset": 0,
    "errors": None,
}


def test_jaeger_is_asked_for_our_services_and_read():
    with answering({"/api/traces": JAEGER}) as (address, asked):
        found = load(f"jaeger={address}/", TimeRange(EPOCH_NS, EPOCH_NS + 10**9))
    questions = [parse_qs(urlsplit(path).query) for path in asked]
    assert {"understudy-control", "understudy-sidecar"} <= {question["service"][0] for question in questions}
    assert {question["start"][0] for question in questions} == {str(EPOCH_NS // 1000)}
    assert total_ms(found.spans) == 31
    claim = next(span for span in found.spans if span.name == "claim")
    assert (claim.duration_ns, claim.parent_id, claim.instance) == (6_500_000, ROOT, "cart-1")
    assert claim.error
    assert found.refused
    assert "Jaeger" in found.reason


TEMPO_SEARCH = {
    "traces": [
        {
            "traceID": TRACE.lstrip("0"),
            "rootServiceName": "understudy-control",
            "rootTraceName": "failover",
            "startTimeUnixNano": str(EPOCH_NS),
            "durationMs": 31,
        }
    ],
    "metrics": {"inspectedTraces": 1, "inspectedBytes": "1024"},
}
# Tempo writes plain protobuf JSON: ids in base64, enumerations by name.
TEMPO_TRACE = {
    "batches": [
        {
            "resource": {"attributes": [{"key": "service.instance.id", "value": {"stringValue": "control-1"}}]},
            "scopeSpans": [
                {
                    "scope": {"name": "understudy"},
                    "spans": [
                        {
                            "traceId": "S/kvNXezTaajzpKdDg5HNg==",
                            "spanId": "APBnqgupArc=",
                            "name": "failover",
                            "kind": "SPAN_KIND_INTERNAL",
                            "startTimeUnixNano": str(EPOCH_NS),
                            "endTimeUnixNano": str(EPOCH_NS + 31 * MS),
                            "status": {"code": "STATUS_CODE_ERROR", "message": "lost"},
                        }
                    ],
                }
            ],
        }
    ]
}


@pytest.mark.parametrize(
    "trace", [TEMPO_TRACE, {"trace": {"resourceSpans": TEMPO_TRACE["batches"]}}], ids=["by-id", "by-id-v2"]
)
def test_tempo_is_searched_and_each_trace_fetched(trace):
    with answering({"/api/search": TEMPO_SEARCH, f"/api/traces/{TRACE}": trace}) as (address, asked):
        found = load(f"tempo={address}", TimeRange(EPOCH_NS, EPOCH_NS + 10**9))
    assert "understudy-control" in parse_qs(urlsplit(asked[0]).query)["q"][0]
    (span,) = found.spans
    assert (span.trace_id, span.span_id, span.name, span.error) == (TRACE, ROOT, "failover", "lost")
    assert (total_ms(found.spans), span.instance) == (31, "control-1")


def test_tempo_without_such_traces_is_no_error():
    with answering({"/api/search": {"metrics": {}}}) as (address, _):
        assert load(f"tempo={address}").spans == ()


@pytest.mark.parametrize("kind", ["jaeger", "tempo"])
@pytest.mark.parametrize("answer", [None, b"<html>login</html>", b"[]", {"status": "ok"}], ids=str)
def test_a_backend_that_is_none_is_told(kind, answer):
    with (
        answering({"/api/traces": answer, "/api/search": answer}) as (address, _),
        pytest.raises(TraceBackendError, match=r"http://127\.0\.0\.1"),
    ):
        load(f"{kind}={address}")


@pytest.mark.parametrize("kind", ["jaeger", "tempo"])
def test_a_backend_that_is_down_or_misspelt_is_told(kind):
    with pytest.raises(TraceBackendError, match="does not answer"):
        load(f"{kind}=http://127.0.0.1:{free_port()}")
    with pytest.raises(TraceBackendError, match="such as http://"):
        load(f"{kind}=localhost:3200")
