"""How a member's takeover comes to its end: claim, slots open, and the first good answer."""

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from understudy.proxy.events.claim_progress import TOLD_NS, ClaimProgress
from understudy.proxy.events.incarnation import SETTLED_AFTER, Incarnation
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.clock import Clock
from understudy.telemetry.tracing.ids import takeover_seed, trace_seed
from understudy.telemetry.tracing.setup import start_telemetry

IDS = takeover_seed("cart", "cart-2", "b1")
REQUEST = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
MS = 1_000_000


class Member:
    """The first answers of a member whose clock stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1_000 * MS
        self.kept = InMemorySpanExporter()
        self.telemetry = start_telemetry(
            "understudy-sidecar", "cart-1", direct=self.kept, clock=Clock(lambda: 0, lambda: 0)
        )
        self.telemetry.clock.now_ns = lambda: self.now  # type: ignore[method-assign]
        self.answers = ClaimProgress(self.telemetry, "cart", "cart-1", self.beat)
        self.beats = 0

    def beat(self) -> None:
        self.beats += 1

    def claim(self, *slots: int):
        began, self.now = self.now, self.now + 5 * MS
        return self.answers.claimed(IDS, slots, began, self.now, by_request=True)

    def open(self, claim) -> None:
        self.now += 2 * MS
        self.answers.opened(claim, {names.POOL: "cart"})

    def answer(self, slot: int, came: int, request: str = "") -> None:
        self.now += MS
        self.answers.answered(slot, came, request)

    def spans(self) -> dict[str, tuple[float, float]]:
        self.telemetry.shutdown()
        return {s.name: (s.start_time / MS, s.end_time / MS) for s in self.kept.get_finished_spans()}


def test_a_call_that_waited_is_the_end():
    member = Member()
    came = member.now
    with member.answers.waiting(7):
        claim = member.claim(7, 8)
        member.open(claim)
        (told,) = member.answers.told()
        assert (told.waiting, told.answered, told.slots) == (True, 0, 2)
        member.answer(7, came)
    (told,) = member.answers.told()
    assert (told.waiting, told.awaited, told.answered - told.opened) == (False, True, MS)
    assert member.beats == 2
    assert member.spans() == {"claim": (1000, 1005), "catch_up": (1005, 1007), "first_ok": (1007, 1008)}


def test_a_call_that_came_later_is_told_with_its_own_time_alone():
    member = Member()
    member.open(member.claim(7))
    assert not member.answers.told()[0].waiting
    member.now += 5_000 * MS
    member.answer(7, member.now)
    member.answer(7, member.now)
    assert not member.answers.told()[0].awaited
    assert member.spans()["first_ok"] == (6007, 6008)


def test_a_slot_that_opens_before_the_others_does_not_end_the_claim():
    member = Member()
    claim = member.claim(7, 8)
    member.answer(7, 0)
    assert member.answers.told()[0].opened == 0
    member.open(claim)
    (told,) = member.answers.told()
    assert (told.answered < told.opened, told.awaited) == (True, True)


def test_a_caller_who_gives_up_is_not_waited_for():
    member = Member()
    with member.answers.waiting(7), member.answers.waiting(7):
        member.open(member.claim(7))
    assert not member.answers.told()[0].waiting


def test_the_first_answer_links_to_its_request_and_the_last_one_is_remembered():
    member = Member()
    member.open(member.claim(7))
    member.answer(7, 0, REQUEST)
    member.answer(8, 0, "x" * 1000)
    assert member.answers.told()[0].request == member.answers.last_request == member.answers.last_in(7) == REQUEST
    assert member.answers.last_in(8) == ""
    member.telemetry.shutdown()
    span = next(s for s in member.kept.get_finished_spans() if s.name == names.FIRST_OK)
    assert span.attributes[names.FIRST_REQUEST] == REQUEST
    (link,) = span.links
    assert (f"{link.context.trace_id:x}", f"{link.context.span_id:x}") == ("a" * 32, "b" * 16)
    assert link.attributes == {names.LINK: names.FIRST_REQUEST}


def test_a_handovers_trace_has_one_first_answer_for_each_member():
    member = Member()
    ids = trace_seed("cart", "handover", "7")
    for slot in (1, 2, 3):
        member.answers.handed_over(ids, slot, member.now)
    for slot in (3, 1, 2):
        member.answer(slot, member.now)
    assert len(member.answers.told()) == 1
    assert len(member.spans()) == 1


def test_old_claims_are_told_no_more():
    member = Member()
    member.open(member.claim(7))
    member.now += TOLD_NS + 1
    assert member.answers.told() == ()


def test_a_new_life_begins_when_a_takeover_that_one_survived_is_over():
    lives = Incarnation()
    assert not lives.settle(100.0)
    lives.taken(10.0)
    lives.taken(10.1)
    assert not lives.settle(10.0 + SETTLED_AFTER - 0.1)
    assert lives.settle(10.0 + SETTLED_AFTER)
    assert not lives.settle(99.0)
    assert lives.count == 1
