"""What the protocol reports, and what becomes of it in counters and audits."""

import pytest

from tests.proxy.members import recorder_of
from understudy.proxy.events.recorder import Recorder
from understudy.statesync.pool.records import FailoverRecord, Owner
from understudy.statesync.pool.state import At
from understudy.telemetry.tracing.ids import takeover_seed

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


@pytest.mark.parametrize(("slot", "epoch"), [(3, 3), (8, 2), (9, 2), (10, 2), (11, 1)])
def test_what_was_no_takeover_by_this_member_does_not_count(recorder: Recorder, slot: int, epoch: int) -> None:
    reclaim(recorder, slot, epoch)
    assert (recorder.counters.takeovers, recorder.counters.taken_over) == (0, 0)
    assert recorder.audit.next_audit() is None
