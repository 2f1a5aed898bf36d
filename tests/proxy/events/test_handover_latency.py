"""What a handover's trace says of the calls that it held up, and by how much that may be wrong."""

import time
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.harness.waiting import until
from understudy.proxy.events.handover_latency import HandoverLatency
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.ids import TraceIds, trace_seed
from understudy.telemetry.tracing.setup import start_telemetry

TRACE = trace_seed("cart", names.KIND_HANDOVER, "7")
LATER = trace_seed("cart", names.KIND_HANDOVER, "8")
REQUEST = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
LONG = "01" + REQUEST[2:] + "-" + "x" * 1000
STOOD_STILL, ASKED = 0.05, 0.5
CLOCK = 0.001
"""Seconds by which times that are put from one clock to another may be rounded."""


class Member:
    """The book of one member whose application took :data:`ASKED` seconds to answer it."""

    def __init__(self) -> None:
        self.kept = InMemorySpanExporter()
        self.telemetry = start_telemetry("understudy-sidecar", "cart-1", direct=self.kept)
        self.book = HandoverLatency(self.telemetry, "cart", "cart-1", lambda _: ASKED)

    async def told(self, trace: TraceIds) -> ReadableSpan:
        """The span of a trace, once it is there."""

        def found() -> list[ReadableSpan]:
            return [span for span in self.kept.get_finished_spans() if span.context.trace_id == trace.trace_id]

        (span,) = await until(found, what="what the trace held up is told")
        assert span.name == names.HELD_UP
        return span


@pytest.fixture
def member() -> Iterator[Member]:
    member = Member()
    yield member
    member.book.close()
    member.telemetry.shutdown()


def seconds(span: ReadableSpan) -> float:
    return (span.end_time - span.start_time) / 1e9


async def test_the_call_that_waited_longest_is_told_with_the_time_in_which_calls_could_not_be_read(member):
    now = time.monotonic()
    with member.book.moving([3, 4], TRACE):
        with member.book.call(3, now - 0.3, REQUEST):
            pass
        took = time.monotonic() - (now - 0.3)
        with member.book.call(4, now, ""):
            pass
        # Meanwhile the event loop comes to nothing: whoever calls now is not even read.
        await until(lambda: time.monotonic() > now + 0.01)
        time.sleep(STOOD_STILL)  # noqa: ASYNC251 - that is the fault
    with member.book.call(9, now - 9.0, ""):
        pass  # of a slot that stays
    span = await member.told(TRACE)
    assert 0.3 - CLOCK <= seconds(span) <= took + CLOCK, "however slow this machine is"
    assert span.attributes[names.SLOT] == 3
    assert span.attributes[names.CALLS] == 2
    assert span.attributes[names.HELD_REQUEST] == REQUEST
    assert span.attributes[names.ERROR_MS] / 1000 >= STOOD_STILL / 2 + 2 * ASKED


async def test_it_is_told_once_no_call_waits_any_more_even_of_a_slot_that_moves_on(member):
    with member.book.moving([3], TRACE):
        pass
    with member.book.call(3, time.monotonic(), ""):
        with member.book.moving([3], LATER):
            pass
        assert seconds(await member.told(LATER)) == 0.0
        assert len(member.kept.get_finished_spans()) == 1, "the other one still has a call that waits"
    assert (await member.told(TRACE)).attributes[names.CALLS] == 1


async def test_a_process_that_ends_tells_what_it_has(member):
    with member.book.moving([3], TRACE), member.book.call(3, time.monotonic() - 0.1, LONG):
        pass
    with member.book.moving([5], None):
        pass
    member.book.close()
    span = await member.told(TRACE)
    assert seconds(span) >= 0.1 - CLOCK
    assert names.HELD_REQUEST not in span.attributes
    assert len(member.kept.get_finished_spans()) == 1
