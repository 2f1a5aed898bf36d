"""What the protocol reports, and what becomes of it in counters and audits."""

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.proxy.members import recorder_of
from understudy.proxy.events.cause import Cause
from understudy.proxy.events.recorder import Recorder
from understudy.statesync.pool.claims import Claimed
from understudy.statesync.pool.records import FailoverRecord, Owner, SyncRecord
from understudy.statesync.pool.state import At
from understudy.statesync.replication.sync_set import Process, SyncSet
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.ids import takeover_seed
from understudy.telemetry.tracing.setup import start_telemetry

TRACE = takeover_seed("cart", "a", "a1")


def failover(
    *slots: int, epochs: tuple[int, ...], to: str = "b", source: str = "a", planned: bool = False
) -> FailoverRecord:
    return FailoverRecord(TRACE.hex, to, source, "", planned, slots, epochs, 1.0)


FAILOVERS = [
    failover(3, 5, epochs=(2, 4)),
    failover(8, epochs=(2,), planned=True),
    failover(9, epochs=(2,), source="b"),
    failover(10, epochs=(2,), to="c"),
]


@pytest.fixture
def recorder() -> Recorder:
    """The recorder of member b."""
    return recorder_of("b")


def reclaim(recorder: Recorder, slot: int, epoch: int) -> None:
    recorder.reclaimed(slot, At(Owner("b", "b1", epoch, traceparent=TRACE.traceparent), 7), FAILOVERS)


def test_each_slot_of_a_takeover_counts_and_the_takeover_once(recorder: Recorder) -> None:
    reclaim(recorder, 3, 2)
    reclaim(recorder, 5, 4)
    assert (recorder.counters.takeovers, recorder.counters.taken_over) == (1, 2)
    assert recorder.audit.next_audit() == 3
    recorder.audit.left(3)
    assert recorder.audit.next_audit() == 5


def test_the_spans_of_a_claim_with_losses_say_how_many_and_of_how_much() -> None:
    kept = InMemorySpanExporter()
    telemetry = start_telemetry(names.SERVICE_SIDECAR, "b", direct=kept)
    recorder = Recorder(
        telemetry,
        "cart",
        "b",
        slowest=lambda _: 0.0,
        on_progress=lambda: None,
        going_down=lambda: False,
        takeover_before=lambda _: None,
    )
    sync = SyncRecord.of_set(2, SyncSet(frozenset({Process("b", "b1")})))
    plain = Claimed(1, Owner("b", "b1", 2), 1, "a", sync)
    lossy = [Claimed(slot, plain.owner, 1, "a", sync.after_loss(slot, 1.0), loss=True) for slot in (2, 3)]
    for claims in ([plain], [plain, *lossy]):
        record = recorder.claim(Cause("a lost", TRACE, "a"))
        record.won()
        record.opening([1])
        record.opened([(claims, 7)], 1, 0)
    telemetry.shutdown()
    spans = [span for span in kept.get_finished_spans() if span.name == names.CLAIM]
    found = [(span.attributes or {}).get(name) for span in spans for name in (names.LOSSES, names.LOSS_SECONDS)]
    assert found == [0, None, 2, 3]


@pytest.mark.parametrize(("slot", "epoch"), [(3, 3), (8, 2), (9, 2), (10, 2), (11, 1)])
def test_what_was_no_takeover_by_this_member_does_not_count(recorder: Recorder, slot: int, epoch: int) -> None:
    reclaim(recorder, slot, epoch)
    assert (recorder.counters.takeovers, recorder.counters.taken_over) == (0, 0)
    assert recorder.audit.next_audit() is None
