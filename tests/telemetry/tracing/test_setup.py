"""Telemetry of one process: where spans go, under which name, and that nobody has to wait for it."""

import asyncio
import contextlib
import logging
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.harness.waiting import free_port, until
from tests.telemetry.support import EPOCH_NS, MS, receiving
from understudy.telemetry.store.store import SpanStore
from understudy.telemetry.tracing.clock import Clock
from understudy.telemetry.tracing.export_queue import Destinations, ExportQueue, QueueLimits
from understudy.telemetry.tracing.ids import trace_seed
from understudy.telemetry.tracing.otlp_grpc_exporter import NotDeliveredError, OtlpExporter
from understudy.telemetry.tracing.setup import PlannedIds, start_telemetry

SEED = trace_seed("cart", "takeover", "cart-2/b1")
FAST = QueueLimits(delay=0.01, longest_pause=0.05)


def claim(telemetry, number: int = 0) -> None:
    telemetry.failover(SEED.traceparent).phase(f"claim-{number}", EPOCH_NS, EPOCH_NS + MS)


def recorded(telemetry, exporter) -> list:
    telemetry.shutdown()
    return list(exporter.get_finished_spans())


async def names_in(store: SpanStore) -> set[str]:
    return {span.name for span in await store.trace(SEED.hex)}


async def test_spans_wait_for_an_unreachable_control_server_and_come_when_it_is_up(store, caplog):
    caplog.set_level(logging.INFO)
    port = free_port()
    telemetry = start_telemetry("understudy-sidecar", "cart-1", endpoint=f"127.0.0.1:{port}")
    claim(telemetry, 1)
    await until(lambda: telemetry.counts.waiting == 1)
    async with receiving(store, port):
        claim(telemetry, 2)
        await until(lambda: telemetry.counts.sent == 2, 30)
        assert await names_in(store) == {"claim-1", "claim-2"}
    assert caplog.records == []
    await telemetry.aclose()


async def test_a_control_server_that_restarts_on_its_port_gets_what_it_missed(store):
    port = free_port()
    telemetry = start_telemetry("understudy-sidecar", "cart-1", endpoint=f"127.0.0.1:{port}")
    for number in range(3):
        claim(telemetry, 2 * number)
        async with receiving(store, port):
            claim(telemetry, 2 * number + 1)
            await until(lambda: telemetry.counts.waiting == 0, 30)
    assert await names_in(store) == {f"claim-{number}" for number in range(6)}
    await telemetry.aclose()


async def test_another_control_server_gets_what_the_first_did_not_take(store):
    telemetry = start_telemetry("understudy-sidecar", "cart-1", endpoint=f"127.0.0.1:{free_port()}")
    claim(telemetry, 1)
    async with receiving(store) as endpoint:
        telemetry.set_endpoints([endpoint])
        claim(telemetry, 2)
        await until(lambda: telemetry.counts.sent == 2, 30)
    assert await names_in(store) == {"claim-1", "claim-2"}
    await telemetry.aclose()


async def test_spans_wait_while_no_control_server_is_known(store):
    telemetry = start_telemetry("understudy-sidecar", "cart-1")
    claim(telemetry, 1)
    assert telemetry.counts.waiting == 1
    async with receiving(store) as endpoint:
        telemetry.set_endpoints([endpoint])
        await until(lambda: telemetry.counts.sent == 1)
        telemetry.set_endpoints(())
        claim(telemetry, 2)
        telemetry.set_endpoints([endpoint])
        await until(lambda: telemetry.counts.waiting == 0)
    assert await names_in(store) == {"claim-1", "claim-2"}
    await telemetry.aclose()


async def test_a_receiver_that_refuses_is_tried_once_per_export(store, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    async with receiving(store) as endpoint:
        await store.aclose()
        tries = []
        add, store.add = store.add, lambda spans: tries.append(spans) or add(spans)
        kept = InMemorySpanExporter()
        telemetry = start_telemetry("understudy-control", "control-1", direct=kept)
        claim(telemetry)
        with pytest.raises(NotDeliveredError, match="UNAVAILABLE"):
            await asyncio.to_thread(OtlpExporter(endpoint).export, recorded(telemetry, kept))
    assert len(tries) == 1


async def test_a_silent_receiver_holds_up_neither_callers_nor_the_end(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    connected = asyncio.Event()

    async def stay_silent(reader, writer):
        connected.set()
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await reader.read()
        writer.close()

    silent = await asyncio.start_server(stay_silent, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    telemetry = start_telemetry("understudy-sidecar", "cart-1", endpoint=f"127.0.0.1:{port}")
    claim(telemetry, 1)
    await asyncio.wait_for(connected.wait(), 40)
    for number in range(1000):
        claim(telemetry, number)
    await asyncio.wait_for(telemetry.aclose(0.1), 30)
    assert (telemetry.counts.sent, telemetry.counts.dropped) == (0, 1001)
    silent.close()


def test_the_root_has_the_predicted_id_and_phases_hang_below_it_whatever_span_is_current():
    kept = InMemorySpanExporter()
    telemetry = start_telemetry("understudy-control", "control-1", direct=kept)
    applications = TracerProvider(shutdown_on_exit=False).get_tracer("application")
    with applications.start_as_current_span("request"):
        trace = telemetry.failover(SEED.traceparent)
        trace.root(EPOCH_NS, EPOCH_NS + 9 * MS, {"understudy.pool": "cart"})
        trace.phase("claim", EPOCH_NS, EPOCH_NS + MS)
    root, phase = recorded(telemetry, kept)
    assert (root.context.trace_id, root.context.span_id) == (SEED.trace_id, SEED.root_span_id)
    assert root.parent is None
    assert (phase.context.trace_id, phase.parent.span_id) == (SEED.trace_id, SEED.root_span_id)
    assert phase.context.span_id != SEED.root_span_id
    assert (root.start_time, root.end_time) == (EPOCH_NS, EPOCH_NS + 9 * MS)


def test_the_ids_planned_for_a_root_are_for_its_thread_alone():
    ids = PlannedIds()
    drawn = []
    with ids.planned(SEED):
        other = threading.Thread(target=lambda: drawn.append((ids.generate_trace_id(), ids.generate_span_id())))
        other.start()
        other.join()
        assert (ids.generate_trace_id(), ids.generate_span_id()) == (SEED.trace_id, SEED.root_span_id)
    drawn.append((ids.generate_trace_id(), ids.generate_span_id()))
    assert all(trace != SEED.trace_id and span != SEED.root_span_id for trace, span in drawn)


def test_nothing_global_is_set_and_an_applications_variables_do_not_stop_sampling(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    before = otel.get_tracer_provider()
    kept = InMemorySpanExporter()
    telemetry = start_telemetry("understudy-control", "control-1", direct=kept)
    claim(telemetry)
    assert len(recorded(telemetry, kept)) == 1
    assert otel.get_tracer_provider() is before


def test_the_resource_names_the_process_and_the_environment_wins(monkeypatch):
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=lab,understudy.site=west")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    kept = InMemorySpanExporter()
    telemetry = start_telemetry(
        "understudy-sidecar", "cart-1", attributes={"understudy.pool": "cart", "understudy.site": "east"}, direct=kept
    )
    claim(telemetry)
    resource = recorded(telemetry, kept)[0].resource.attributes
    assert resource["service.name"] == "shop"
    assert resource["service.instance.id"] == "cart-1"
    assert resource["service.version"]
    assert resource["understudy.pool"] == "cart"
    assert resource["understudy.site"] == "west"
    assert resource["deployment.environment.name"] == "lab"
    assert resource["telemetry.sdk.language"] == "python"


@pytest.mark.parametrize("variables", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}])
def test_switched_off_it_takes_all_calls_and_records_nothing(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    kept = InMemorySpanExporter()
    telemetry = start_telemetry("understudy-control", "control-1", endpoint="127.0.0.1:1", direct=kept)
    claim(telemetry)
    telemetry.failover(SEED.traceparent).root(EPOCH_NS, EPOCH_NS)
    telemetry.set_endpoints(["127.0.0.1:2"])
    assert recorded(telemetry, kept) == []
    assert (telemetry.counts.sent, telemetry.counts.waiting, telemetry.counts.dropped) == (0, 0, 0)


def test_the_console_shows_spans(monkeypatch, capsys):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    telemetry = start_telemetry("understudy-sidecar", "cart-1")
    claim(telemetry, 7)
    telemetry.shutdown()
    assert '"name": "claim-7"' in capsys.readouterr().out


async def test_a_named_receiver_gets_the_spans_instead_of_the_control_server(store, tmp_path, monkeypatch):
    other = SpanStore(tmp_path / "other.db")
    async with receiving(store) as control, receiving(other) as backend:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{backend}")
        telemetry = start_telemetry("understudy-sidecar", "cart-1", endpoint=control)
        telemetry.set_endpoints([control])
        claim(telemetry, 1)
        await until(lambda: telemetry.counts.sent == 1)
    assert await names_in(other) == {"claim-1"}
    assert await names_in(store) == set()
    await telemetry.aclose()
    await other.aclose()


async def test_a_protocol_that_is_not_spoken_costs_a_warning_and_no_span(store, monkeypatch, caplog):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    async with receiving(store) as control:
        telemetry = start_telemetry("understudy-sidecar", "cart-1", endpoint=control)
        claim(telemetry, 1)
        await until(lambda: telemetry.counts.sent == 1)
    assert await names_in(store) == {"claim-1"}
    assert "http/json is not spoken here" in caplog.text
    await telemetry.aclose()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "zipkin ignored"),
        ("OTEL_BSP_SCHEDULE_DELAY", "soon", "OTEL_BSP_SCHEDULE_DELAY=soon ignored"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0", "OTEL_BSP_MAX_QUEUE_SIZE=0 ignored"),
    ],
)
def test_a_wrong_variable_costs_a_warning_and_nothing_else(monkeypatch, caplog, name, value, said):
    monkeypatch.setenv(name, value)
    kept = InMemorySpanExporter()
    telemetry = start_telemetry("understudy-control", "control-1", direct=kept)
    claim(telemetry)
    assert len(recorded(telemetry, kept)) == 1
    assert said in caplog.text


@given(st.text(), st.integers(-(1 << 62), 1 << 62), st.integers(-(1 << 62), 1 << 62))
def test_recording_never_raises_and_never_ends_before_it_starts(traceparent, start, end):
    kept = InMemorySpanExporter()
    telemetry = start_telemetry("understudy-control", "control-1", direct=kept)
    telemetry.failover(traceparent).phase("claim", start, end)
    telemetry.failover(SEED.traceparent).phase("claim", start, end, {"error.type": "conflict"})
    span = recorded(telemetry, kept)[-1]
    assert 0 <= span.start_time <= span.end_time
    assert span.status.description == "conflict"


def test_after_the_end_calls_are_taken_and_ignored():
    kept = InMemorySpanExporter()
    telemetry = start_telemetry("understudy-control", "control-1", direct=kept)
    telemetry.shutdown()
    telemetry.shutdown()
    claim(telemetry)
    telemetry.set_endpoints(["127.0.0.1:1"])
    assert kept.get_finished_spans() == ()


def test_the_process_clock_is_the_one_given():
    telemetry = start_telemetry(
        "understudy-control", "control-1", direct=InMemorySpanExporter(), clock=Clock(lambda: 77, lambda: 5)
    )
    assert telemetry.now_ns() == 77
    telemetry.shutdown()


class Picky(SpanExporter):
    """Refuses every batch that holds one of some spans; may also be broken altogether."""

    def __init__(self, refused=(), broken: bool = False) -> None:
        self.refused = set(refused)
        self.broken = broken
        self.taken: list = []

    def export(self, spans):
        if self.broken:
            raise RuntimeError("broken")
        if self.refused & set(spans):
            return SpanExportResult.FAILURE
        self.taken += spans
        return SpanExportResult.SUCCESS


async def test_spans_that_are_never_taken_do_not_hold_up_the_others():
    picky = Picky(refused=[3, 40])
    pump = ExportQueue("picky", picky, FAST)
    pump.offer(range(100))
    await until(lambda: len(picky.taken) == 98)
    assert set(picky.taken) == set(range(100)) - {3, 40}
    await until(lambda: pump.counts.waiting == 2, what="its thread has counted what was taken")
    pump.retire()


async def test_a_broken_exporter_loses_nothing_while_there_is_room():
    exporter = Picky(broken=True)
    pump = ExportQueue("broken", exporter, QueueLimits(delay=0.01, longest_pause=0.05, queue=10))
    pump.offer(range(4))
    await until(lambda: pump._batch < 512)
    pump.offer(range(4, 15))
    await until(lambda: pump.counts.dropped >= 5)
    exporter.broken = False
    await until(lambda: pump.counts.waiting == 0)
    assert set(exporter.taken) == set(range(5, 15))
    pump.retire()


async def test_behind_a_receiver_that_hangs_the_oldest_spans_go():
    entered, let_go = threading.Event(), threading.Event()

    class Hanging(Picky):
        def export(self, spans):
            entered.set()
            let_go.wait(30)
            return super().export(spans)

    exporter = Hanging()
    pump = ExportQueue("hanging", exporter, QueueLimits(delay=0.01, queue=10))
    pump.offer([0])
    await until(entered.is_set)
    pump.offer(range(1, 26))
    assert (pump.counts.waiting, pump.counts.dropped) == (1 + 10, 15)
    let_go.set()
    await until(lambda: pump.counts.waiting == 0)
    assert exporter.taken == [0, *range(16, 26)]
    pump.retire()


async def test_what_a_retired_control_server_did_not_take_comes_back():
    destinations = Destinations((), lambda _: Picky(broken=True), FAST, hold=True)
    destinations.set_endpoints(["a"])
    for span in range(5):
        destinations.on_end(span)
    destinations.set_endpoints([])
    assert destinations.counts.waiting == 5
    destinations.close(1)
