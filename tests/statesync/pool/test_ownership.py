"""Ownership: what a member should do next, and that the fence holds whatever members believe.

The state machine runs members with views as old as hypothesis likes against one store with etcd's compare semantics,
and lets transactions arrive late: the invariants of docs/ownership.md must hold in every history.
"""

from dataclasses import dataclass, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.harness.examples import examples
from understudy.statesync.etcd.client import CreateRevision, Event, Kv, ModRevision
from understudy.statesync.etcd.informer import InformerBatch
from understudy.statesync.pool.claims import claim, claim_transaction
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.owner_records import FailoverLog, finish_handover, start_handover, undo_handover
from understudy.statesync.pool.ownership import (
    ClaimFree,
    HandOver,
    TakeOver,
    Undo,
    View,
    is_handover,
    next_steps,
    site_cause,
    sites_in,
    standbys_of,
)
from understudy.statesync.pool.records import FailoverRecord, Intent, Lost, Member, MemberState, Owner, Phase, Table
from understudy.statesync.pool.state import At, PoolState

KEYS = PoolKeys("p")


def member(name: str, state: MemberState = MemberState.UP, boot: str = "1") -> At[Member]:
    return At(Member(name, boot, "app:1", "peer:1", state), 1)


def view(
    me: str = "a", *, orders, owner: Owner | None = None, owner_at: int = 5, table_at: int = 9, lost=None, members=None
) -> View:
    owners = {0: At(owner, owner_at)} if owner else {}
    everybody = {name: member(name) for name in "abc"} if members is None else members
    return View(me, "1", Table(1, orders, lost or {}), table_at, owners, everybody)


OURS = Owner("a", "1", 4)
THEIRS = Owner("b", "1", 4)
DEAD = {"b": Lost("1", "killed", "", 0.0)}


@pytest.mark.parametrize(
    ("seen", "steps"),
    [
        (view(orders=(("a", "b"),)), [ClaimFree((0,))]),
        (view(orders=(("b", "a"),)), []),
        (view(orders=(("a", "b"),), owner=OURS), []),
        (view(orders=(("a", "b"),), owner=replace(OURS, boot="0")), [ClaimFree((0,))]),
        (view(orders=(("b", "a"),), owner=replace(OURS, boot="0")), []),
        (view(orders=(("b", "a"),), owner=OURS), [HandOver(0, "b")]),
        (view(orders=(("b", "a"),), owner=OURS, owner_at=10), []),
        (view(orders=(("b", "a"),), owner=OURS, members={"a": member("a")}), []),
        (view(orders=(("b", "a"),), owner=OURS, members={"a": member("a"), "b": member("b", MemberState.DOWN)}), []),
        (view(orders=(("b", "a"),), owner=OURS, lost=DEAD), []),
        (view(orders=(("b", "a"),), owner=OURS, lost={"b": replace(DEAD["b"], boot="0")}), [HandOver(0, "b")]),
        (view(orders=(("a", "b"),), owner=replace(OURS, phase=Phase.HANDOVER, to="b")), [Undo(0)]),
        (view(orders=(("a", "b"),), owner=THEIRS), []),
        (view(orders=(("a", "b"),), owner=THEIRS, lost=DEAD), [TakeOver("b", "1", (0,))]),
        (view(orders=(("a", "b"),), owner=replace(THEIRS, boot="2"), lost=DEAD), [ClaimFree((0,))]),
        (view(orders=(("c", "a"),), owner=THEIRS, lost=DEAD), []),
        (view(orders=(("a", "b"),), owner=THEIRS, members={"a": member("a")}), [TakeOver("b", "1", (0,))]),
    ],
    ids=[
        "a free slot that the table gives us",
        "a free slot for somebody else",
        "ours as it should be",
        "ours from a former life",
        "from a former life, and wanted elsewhere",
        "wanted elsewhere",
        "won after the table was written",
        "wanted by an unknown member",
        "wanted by a member that is down",
        "wanted by a member that the table still names lost",
        "wanted by the successor of one that was lost",
        "a handover that nobody carries out",
        "theirs, and they live",
        "theirs, and said to be lost",
        "theirs, and their process has a successor",
        "lost, but somebody else is to have it",
        "their record is gone",
    ],
)
def test_what_a_member_does_next(seen: View, steps: list[object]) -> None:
    assert next_steps(seen) == steps


def test_a_slot_being_handed_over_is_left_alone() -> None:
    seen = view(orders=(("b", "a"),), owner=OURS)
    assert next_steps(seen, handing_over=frozenset({0})) == []


def test_the_heirs_of_a_slot_are_its_order_without_the_owner() -> None:
    assert standbys_of(view(orders=(("a", "b", "c"),), owner=THEIRS), 0) == ("a", "c")


@dataclass
class Store:
    """One owner record with etcd's semantics: a compare on ``mod_revision`` and a put in one step."""

    revision: int = 0
    owner: Owner | None = None
    mod_revision: int = 0

    def swap(self, expected: int, owner: Owner) -> bool:
        if self.mod_revision != expected:
            return False
        self.revision += 1
        self.owner, self.mod_revision = owner, self.revision
        return True

    def write(self, fence: int) -> bool:
        self.revision += 1
        return self.mod_revision == fence


class Ownership(RuleBasedStateMachine):
    """Three members fight for one slot with stale views; nothing they do may break the fence."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.views: dict[str, At[Owner] | None] = dict.fromkeys("abc")
        self.late: list[tuple[int, Owner]] = []
        self.history: list[Owner] = []
        self.fences: dict[str, tuple[int, int]] = {}
        self.acknowledged: list[tuple[int, str]] = []

    def _see(self, name: str) -> View:
        seen = self.views[name]
        return View(name, "1", Table(), 0, {0: seen} if seen else {}, {})

    def _swap(self, expected: int, owner: Owner, by: str) -> None:
        before = self.store.owner
        if self.store.swap(expected, owner):
            assert before is None or owner.epoch >= before.epoch
            assert before is None or owner.epoch > before.epoch or owner.phase is Phase.HANDOVER
            self.history.append(owner)
            if owner.phase is Phase.STABLE:
                self.fences[by] = (owner.epoch, self.store.mod_revision)

    @rule(name=st.sampled_from("abc"))
    def look(self, name: str) -> None:
        self.views[name] = At(self.store.owner, self.store.mod_revision) if self.store.owner else None

    @rule(name=st.sampled_from("abc"), late=st.booleans())
    def claim(self, name: str, late: bool) -> None:
        (claimed,) = claim(self._see(name), [0], cause="", traceparent="", now=0.0)
        compares, _, _ = claim_transaction(KEYS, [claimed])
        expected = compares[0].revision if isinstance(compares[0], ModRevision) else 0
        assert isinstance(compares[0], CreateRevision) == (self.views[name] is None)
        if late:
            self.late.append((expected, claimed.owner))
        else:
            self._swap(expected, claimed.owner, name)

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def arrive_late(self, data: st.DataObject) -> None:
        expected, owner = self.late.pop(data.draw(st.integers(0, len(self.late) - 1)))
        self._swap(expected, owner, owner.active)

    @rule(name=st.sampled_from("abc"), to=st.sampled_from("abc"))
    def start_handover(self, name: str, to: str) -> None:
        seen = self.views[name]
        if seen and seen.record.active == name and seen.record.phase is Phase.STABLE and to != name:
            self._swap(seen.revision, start_handover(seen.record, to, cause="", traceparent="", now=0.0), name)

    @rule(name=st.sampled_from("abc"))
    def finish_or_undo(self, name: str) -> None:
        seen = self.views[name]
        if seen and seen.record.phase is Phase.HANDOVER:
            if seen.record.to == name:
                self._swap(seen.revision, finish_handover(seen.record, "1", now=0.0), name)
            elif seen.record.active == name:
                self._swap(seen.revision, undo_handover(seen.record, now=0.0), name)

    @rule(name=st.sampled_from("abc"))
    def write(self, name: str) -> None:
        if name in self.fences and self.store.write(self.fences[name][1]):
            self.acknowledged.append((self.fences[name][0], name))

    @invariant()
    def at_most_one_writer_per_epoch(self) -> None:
        writers: dict[int, set[str]] = {}
        for epoch, name in self.acknowledged:
            writers.setdefault(epoch, set()).add(name)
        assert all(len(names) == 1 for names in writers.values())

    @invariant()
    def acknowledged_epochs_never_fall(self) -> None:
        epochs = [epoch for epoch, _ in self.acknowledged]
        assert epochs == sorted(epochs)

    @invariant()
    def nobody_writes_during_a_handover(self) -> None:
        if self.store.owner and self.store.owner.phase is Phase.HANDOVER:
            assert all(fence != self.store.mod_revision for _, fence in self.fences.values())


TestOwnership = Ownership.TestCase
TestOwnership.settings = settings(max_examples=examples(150), stateful_step_count=40, deadline=None)


def test_an_answer_that_comes_after_newer_news_does_not_bring_the_past_back() -> None:
    state = PoolState(KEYS)

    assert state.note_owner(0, OURS, 5)
    assert state.note_owner(0, THEIRS, 7)
    assert not state.note_owner(0, OURS, 6)
    assert state.owners[0] == At(THEIRS, 7)


@pytest.mark.parametrize(
    ("cause", "sites", "planned"),
    [
        (site_cause(["east"], offline=True), "east", True),
        (site_cause(["west", "east"], offline=False), "east, west", True),
        ("drain", "", True),
        ("rebalance", "", True),
        ("unfit: disk", "", True),
        ("site lost: connection refused", "", False),
        ("site lost: no answer; it is offline", "", False),
        ("first owner", "", False),
    ],
)
def test_a_cause_tells_whether_somebody_wanted_it_and_of_which_sites_it_is(cause: str, sites: str, planned: bool):
    assert (sites_in(cause), is_handover(cause)) == (sites, planned)


def test_intents_for_sites_and_for_members_are_kept_apart():
    state = PoolState(KEYS)
    put = {KEYS.intent("east"): Intent("east"), KEYS.site_intent("east"): Intent(until=9.0, site="east")}
    events = tuple(Event("put", Kv(key, record.encode(), 1, 1, 0)) for key, record in put.items())
    state.apply(InformerBatch(1, events, reset=True))

    assert state.intents["east"].record == Intent("east")
    assert [state.offline(now) for now in (8.0, 9.0)] == [{"east"}, frozenset()]
    state.apply(InformerBatch(2, (Event("delete", Kv(KEYS.site_intent("east"), b"", 2, 0, 0)),)))
    assert (set(state.intents), set(state.sites)) == ({"east"}, set())


def test_a_failover_record_forgets_slots_that_were_not_taken_after_all() -> None:
    keys = PoolKeys("p")
    log = FailoverLog(keys, "b")
    log.add("t", "a", {1: 4, 2: 5, 3: 6}, cause="a lost", planned=False, now=1.0)
    put = log.without("t", "a", {2})
    assert put is not None
    assert put.key == keys.failover("t", "b", "a")
    left = FailoverRecord.decode(put.value)
    assert (left.slots, left.epochs) == ((1, 3), (4, 6))
    assert log.without("t", "a", {1, 3}) is None
    again = FailoverRecord.decode(log.add("t", "a", {7: 2}, cause="a lost", planned=False, now=2.0).value)
    assert again.slots == (7,)


def test_a_failover_record_names_the_slots_that_were_claimed_with_a_loss() -> None:
    log = FailoverLog(KEYS, "b")
    log.add("t", "a", {1: 4, 2: 5}, cause="a lost", planned=False, now=1.0, losses={1: 3, 2: 2})
    more = FailoverRecord.decode(log.add("t", "a", {3: 6}, cause="a lost", planned=False, now=1.0).value)
    assert (more.slots, more.restored, more.loss_seconds) == ((1, 2, 3), (1, 2), 3)
    put = log.without("t", "a", {2})
    assert put is not None
    left = FailoverRecord.decode(put.value)
    assert (left.slots, left.restored) == ((1, 3), (1,))
