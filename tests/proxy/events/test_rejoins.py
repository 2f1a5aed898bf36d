"""The span of a process that gets copies: which slots it covers, what was sent, and to which takeover it belongs."""

import asyncio

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.harness.waiting import until
from understudy.proxy.events import rejoins
from understudy.proxy.events.rejoins import LATELY, Rejoins, takeover_before
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import FailoverRecord, Member, MemberState, Owner
from understudy.statesync.pool.state import At, PoolState
from understudy.statesync.replication.sync_set import Process
from understudy.telemetry.tracing.clock import Clock
from understudy.telemetry.tracing.ids import TraceIds, takeover_seed
from understudy.telemetry.tracing.setup import start_telemetry

MS = 1_000_000
NOW = 1_000.0
B, C = Process("b", "b2"), Process("c", "c1")
OF_B, OF_D, EARLIER = (takeover_seed("cart", *who) for who in (("b", "b1"), ("d", "d1"), ("b", "b0")))


class Active:
    """A member that sends copies; its clock stands still until it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, trace: TraceIds | None = OF_B) -> None:
        monkeypatch.setattr(rejoins, "SETTLED_AFTER", 0.0)
        self.now = 1_000 * MS
        self.kept = InMemorySpanExporter()
        self.telemetry = start_telemetry("understudy-sidecar", "a", direct=self.kept, clock=Clock(lambda: 0, lambda: 0))
        self.telemetry.clock.now_ns = lambda: self.now  # type: ignore[method-assign]
        self.trace = trace
        self.rejoins = Rejoins(self.telemetry, "cart", lambda _: self.trace)

    def begun(self, *slots: int, to: Process = B) -> None:
        for slot in slots:
            self.rejoins.begun(to, slot)

    def joined(self, *slots: int, to: Process = B, after_ms: int = 0) -> None:
        self.now += after_ms * MS
        for slot in slots:
            self.rejoins.joined(to, slot)

    async def spans(self) -> list[tuple[str, float, dict[str, object]]]:
        """Who rejoined, in how many ms, and the figures, in the order of their ends."""
        await asyncio.sleep(0)
        await until(lambda: not self.rejoins._rejoining or any(one.under_way for one in self._open()))
        self.telemetry.shutdown()
        found = []
        for span in self.kept.get_finished_spans():
            assert (span.name, span.context.trace_id) == ("rejoin", OF_B.trace_id)
            told = {name.removeprefix("understudy."): value for name, value in (span.attributes or {}).items()}
            assert told.pop("pool") == "cart"
            found.append((told.pop("member"), (span.end_time - span.start_time) / MS, told))
        return found

    def _open(self):
        return self.rejoins._rejoining.values()


@pytest.fixture
def active(monkeypatch: pytest.MonkeyPatch) -> Active:
    return Active(monkeypatch)


async def test_a_process_that_rejoins_is_one_span_from_its_first_slot_to_its_last(active: Active) -> None:
    active.begun(1, 2)
    active.rejoins.sent(B, 1, 3, 300)
    active.joined(1, after_ms=50)
    active.begun(3)
    active.rejoins.sent(B, 2, 4, 400)
    active.joined(2, after_ms=40)
    active.joined(3, after_ms=10)
    told = {"slots": 3, "copy.sessions": 7, "copy.bytes": 700, "copy.longest_ms": 90.0}
    assert await active.spans() == [("b", 100.0, told)]


async def test_a_slot_that_begins_soon_after_the_last_one_belongs_to_the_same_span(active: Active) -> None:
    active.begun(1)
    active.joined(1, after_ms=5)
    active.begun(2)
    for _ in range(3):
        await asyncio.sleep(0)
    active.joined(2, after_ms=5)
    assert [(ms, told["slots"]) for _, ms, told in await active.spans()] == [(10.0, 2)]


async def test_a_process_whose_connection_ends_has_rejoined_in_the_slots_that_it_has(active: Active) -> None:
    active.begun(1, 2)
    active.joined(1, after_ms=5)
    active.rejoins.lost(B)
    active.joined(2, after_ms=5)
    assert [(ms, told["slots"]) for _, ms, told in await active.spans()] == [(5.0, 1)]


async def test_each_process_has_a_span_of_its_own(active: Active) -> None:
    active.begun(1)
    active.begun(1, to=C)
    active.rejoins.sent(C, 1, 1, 10)
    active.joined(1, after_ms=5)
    active.joined(1, to=C, after_ms=5)
    spans = await active.spans()
    assert [(who, ms, told["copy.sessions"]) for who, ms, told in spans] == [("b", 5.0, 0), ("c", 10.0, 1)]


async def test_slots_that_went_elsewhere_count_for_nothing(active: Active) -> None:
    active.begun(1, 2)
    active.joined(1, after_ms=5)
    active.now += 500 * MS
    active.rejoins.left(B, 2)
    active.rejoins.sent(B, 2, 1, 10)
    ((_, ms, told),) = await active.spans()
    assert (ms, told["slots"], told["copy.sessions"]) == (5.0, 1, 0)


async def test_a_process_whose_connection_ended_before_it_had_anything_has_not_rejoined(active: Active) -> None:
    active.begun(1, 2)
    active.rejoins.lost(B)
    active.joined(1)
    assert await active.spans() == []


async def test_a_process_that_lacks_a_slot_has_not_rejoined_yet(active: Active) -> None:
    active.begun(1, 2)
    active.joined(1)
    assert await active.spans() == []


async def test_without_a_takeover_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    active = Active(monkeypatch, None)
    active.begun(1)
    active.joined(1)
    assert await active.spans() == []


async def test_a_takeover_that_is_known_only_at_the_end_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    active = Active(monkeypatch, None)
    active.begun(1)
    active.trace = OF_B
    active.joined(1)
    assert len(await active.spans()) == 1


async def test_a_takeover_after_it_has_rejoined_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    active = Active(monkeypatch, None)
    active.begun(1)
    active.joined(1)
    active.trace = OF_B
    assert await active.spans() == []


def taken(trace: TraceIds, source: str, ago: float = 5.0, *, planned: bool = False) -> FailoverRecord:
    return FailoverRecord(trace.hex, "a", source, "killed", planned, (1,), (2,), NOW - ago)


def state_of(*records: FailoverRecord, owners: tuple[TraceIds, ...], members: tuple[str, ...]) -> PoolState:
    state = PoolState(PoolKeys("cart"))
    state.failovers = {str(number): At(record, 1) for number, record in enumerate(records)}
    state.owners = {slot: At(Owner("a", "a1", 2, traceparent=ids.traceparent), 1) for slot, ids in enumerate(owners)}
    state.owners[9] = At(Owner("a", "a1", 1), 1)
    state.members = {name: At(Member(name, "1", "h:1", "h:2", MemberState.UP), 1) for name in members}
    return state


@pytest.mark.parametrize(
    ("records", "owners", "members", "found"),
    [
        ([], (), ("a", "b"), None),
        ([taken(OF_B, "b")], (OF_B,), ("a", "b"), OF_B),
        ([taken(OF_B, "b"), taken(EARLIER, "b", 60.0)], (EARLIER, OF_B), ("a", "b"), OF_B),
        ([taken(OF_B, "b", 20.0), taken(OF_D, "d")], (OF_D, OF_B), ("a", "b"), OF_B),
        ([taken(OF_D, "d")], (OF_D,), ("a", "b"), OF_D),
        ([taken(OF_D, "d")], (OF_D,), ("a", "b", "d"), None),
        ([taken(OF_B, "b", LATELY + 1)], (OF_B,), ("a", "b"), None),
        ([taken(OF_B, "b", planned=True)], (OF_B,), ("a", "b"), None),
        ([taken(OF_B, "")], (OF_B,), ("a", "b"), None),
        ([taken(OF_B, "b")], (OF_D,), ("a", "b"), None),
    ],
    ids=[
        "no takeover",
        "its own",
        "its newest",
        "its own before a newer one",
        "of one that is away",
        "of another one that is back",
        "long ago",
        "planned",
        "a first claim",
        "no owner record left",
    ],
)
def test_a_process_rejoins_after_the_takeover_that_cost_the_copies(records, owners, members, found) -> None:
    assert takeover_before(state_of(*records, owners=owners, members=members), "b", NOW) == found
