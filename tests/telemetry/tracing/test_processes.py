"""Several processes, one trace."""

import asyncio
import json
import sys
from pathlib import Path

from tests.harness.waiting import until
from tests.telemetry.support import EPOCH_NS, MS, clean_environment, receiving
from understudy.telemetry.slo.waterfall import phases, total_ms
from understudy.telemetry.store.store import SpanStore
from understudy.telemetry.tracing.ids import trace_seed
from understudy.telemetry.tracing.setup import start_telemetry

PREPARES = """
import sys
from understudy.telemetry.tracing.export_queue import ExportQueue, QueueLimits
from understudy.telemetry.tracing.otlp_grpc_exporter import OtlpExporter
exporter = "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"
before = exporter in sys.modules
queue = ExportQueue("receiver", OtlpExporter("127.0.0.1:1"), QueueLimits())
while exporter not in sys.modules:
    queue._thread.join(0.01)
print(before, queue.counts.waiting)
"""


async def contribute(instance: str, endpoint: str, traceparent: str, *recorded: tuple[str, int, int]):
    """Run a member in a process of its own; gives what it says about its spans."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.telemetry.tracing.contributor", instance, endpoint, traceparent),
        json.dumps([(name, EPOCH_NS + start * MS, EPOCH_NS + end * MS) for name, start, end in recorded]),
        cwd=Path(__file__).parents[3],
        env={**clean_environment(), "OTEL_EXPORTER_OTLP_TIMEOUT": "40"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complained = await process.communicate()
    assert (process.returncode, complained) == (0, b"")
    return json.loads(said)


async def test_what_an_export_needs_is_loaded_before_there_is_a_span():
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PREPARES, stdout=-1, cwd="/")
    async with asyncio.timeout(60):
        said, _ = await process.communicate()
    assert said == b"False 0\n"


async def test_two_members_and_a_control_server_build_one_trace_without_talking(tmp_path):
    store = SpanStore(tmp_path / "traces.db")
    expected = trace_seed("cart", "takeover", "cart-2/boot-7")
    control = start_telemetry("understudy-control", "control-1", direct=store.exporter())
    trace = control.failover(expected.traceparent)
    trace.phase("detect", EPOCH_NS, EPOCH_NS + 10 * MS)
    trace.root(EPOCH_NS, EPOCH_NS + 40 * MS, {"understudy.pool": "cart", "understudy.slots": 85})

    async with receiving(store) as endpoint:
        said = await asyncio.gather(
            contribute("cart-1", endpoint, expected.traceparent, ("claim", 10, 20), ("first_ok", 21, 40)),
            contribute("cart-3", endpoint, expected.traceparent, ("claim", 12, 30)),
        )
    await control.aclose()
    assert said == [{"sent": 2, "dropped": 0}, {"sent": 1, "dropped": 0}]

    spans = await store.trace(expected.hex)
    assert {(span.instance, span.name) for span in spans} == {
        ("control-1", "failover"),
        ("control-1", "detect"),
        ("cart-1", "claim"),
        ("cart-1", "first_ok"),
        ("cart-3", "claim"),
    }
    root = next(span for span in spans if span.is_root)
    assert root.span_id == f"{expected.root_span_id:016x}"
    assert {span.parent_id for span in spans if not span.is_root} == {root.span_id}
    assert total_ms(spans) == 40.0
    assert (phases(spans)["claim"].start_ms, phases(spans)["claim"].duration_ms) == (10.0, 20.0)
    await store.aclose()

    reopened = SpanStore(tmp_path / "traces.db")
    assert len(await reopened.trace(expected.hex)) == 5
    await reopened.aclose()


async def test_a_member_whose_control_server_is_gone_ends_in_peace():
    seed = trace_seed("cart", "takeover", "cart-2/boot-7")
    said = await asyncio.wait_for(contribute("cart-1", "127.0.0.1:1", seed.traceparent, ("claim", 10, 20)), timeout=90)
    assert said == {"sent": 0, "dropped": 1}


async def test_spans_reach_every_control_server(tmp_path):
    stores = [SpanStore(tmp_path / f"{number}.db") for number in range(2)]
    seed = trace_seed("cart", "handover", "12")
    telemetry = start_telemetry("understudy-sidecar", "cart-1")
    async with receiving(stores[0]) as one, receiving(stores[1]) as other:
        telemetry.set_endpoints([one, other])
        telemetry.failover(seed.traceparent).phase("flush", EPOCH_NS, EPOCH_NS + MS)
        for store in stores:
            await until(lambda store=store: store.trace(seed.hex))
    await telemetry.aclose()
    for store in stores:
        await store.aclose()
