"""The rules of the sync set, one table each. That they suffice is what tests/model and the state machine show."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.statesync.replication.sync_set import (
    Claim,
    Process,
    Progress,
    Removal,
    Source,
    SyncSet,
    acknowledges_from_memory,
    all_saved,
    announced,
    claim,
    handed_over,
    held,
    needed,
    resigned,
    savable,
    visible,
    with_learner,
    without,
)

A, B, C, D = (Process(name, "1") for name in "abcd")
B2 = Process("b", "2")


def of(*members: Process, memory: bool = False, former: tuple[Process, ...] = ()) -> SyncSet:
    return SyncSet(frozenset(members), memory, frozenset(former))


def test_both_sets_count_while_a_change_is_under_way() -> None:
    assert needed(of(A, B), None) == {A, B}
    assert needed(of(A, B), of(A, C)) == {A, B, C}


@pytest.mark.parametrize(
    ("change", "confirmed", "all_have"),
    [
        (None, {B: 7, C: 5}, 5),
        (None, {B: 7}, 0),
        (None, {B: 99, C: 99}, 9),
        (None, {B: 7, C: 7, D: 1}, 7),
        (of(A, B, C, D), {B: 7, C: 7, D: 1}, 1),
        (of(A, B), {B: 7, C: 5}, 5),
    ],
)
def test_a_write_is_held_when_all_have_it_that_must(
    change: SyncSet | None, confirmed: dict[Process, int], all_have: int
) -> None:
    assert held(of(A, B, C), change, A, Progress(9, confirmed)) == all_have


@pytest.mark.parametrize(("kept_back", "may"), [(0, 5), (9, 5), (4, 3), (1, 0)])
def test_what_all_have_is_saved_except_where_a_later_write_to_the_session_may_be_in_etcd(
    kept_back: int, may: int
) -> None:
    assert savable(of(A, B), None, A, Progress(9, {B: 5}, kept_back=kept_back)) == may


@pytest.mark.parametrize(
    ("agreed", "change", "may"),
    [
        (of(A, B, memory=True), None, True),
        (of(A, B), None, False),
        (of(A, B), of(A, B, memory=True), False),
        (of(A, B, memory=True), of(A, B), False),
        (of(A, memory=True), None, False),
    ],
)
def test_writes_are_acknowledged_from_memory_if_the_record_says_so_and_two_have_them(
    agreed: SyncSet, change: SyncSet | None, may: bool
) -> None:
    assert acknowledges_from_memory(agreed, change) is may


@pytest.mark.parametrize(("agreed", "seen"), [(of(A, B, memory=True), 7), (of(A, B), 3), (of(A, memory=True), 3)])
def test_readers_see_what_is_saved_or_what_all_have_where_memory_counts(agreed: SyncSet, seen: int) -> None:
    assert visible(agreed, None, A, Progress(9, {B: 7}, saved=3)) == seen


def test_memory_is_announced_for_two_at_the_least() -> None:
    assert announced(of(A, B)) == of(A, B, memory=True)
    assert announced(of(A)) is None
    assert announced(of(A, B, memory=True)) is None


@pytest.mark.parametrize(
    ("agreed", "saved", "after"),
    [
        (of(A, B, memory=True, former=(C,)), 7, of(A, B)),
        (of(A, B, memory=True), 6, None),
        (of(A, B), 7, None),
    ],
)
def test_memory_is_cleared_when_everything_acknowledged_is_saved(
    agreed: SyncSet, saved: int, after: SyncSet | None
) -> None:
    assert all_saved(agreed, Progress(9, {}, saved=saved, acknowledged=7)) == after


@pytest.mark.parametrize(
    ("agreed", "progress", "after"),
    [
        # Two are left: nothing to save.
        (of(A, B, C, memory=True), Progress(9, {C: 9}, acknowledged=9), Removal(of(A, C, memory=True))),
        # etcd has all anyway.
        (of(A, B), Progress(9, {}, acknowledged=9), Removal(of(A))),
        # One is left. What both have must be saved before.
        (of(A, B, memory=True), Progress(9, {B: 7}, saved=6, acknowledged=7), None),
        (of(A, B, memory=True), Progress(9, {B: 7}, saved=7, acknowledged=7), Removal(of(A))),
        # What it had before its epoch goes along: the other one may lack it and is still in the set.
        (of(A, B, memory=True), Progress(9, {B: 5}, saved=5, acknowledged=7), Removal(of(A), saves=True)),
        # What a save keeps back need not be saved before: it goes along too.
        (of(A, B, memory=True), Progress(9, {B: 5}, 2, 2, 7, kept_back=4), None),
        (of(A, B, memory=True), Progress(9, {B: 5}, 3, 3, 7, kept_back=4), Removal(of(A), saves=True)),
    ],
)
def test_who_does_not_confirm_is_taken_out_when_nothing_gets_lost_by_it(
    agreed: SyncSet, progress: Progress, after: Removal | None
) -> None:
    assert without(agreed, {B}, A, progress) == after


@pytest.mark.parametrize(
    ("confirmed", "sent", "joins"),
    [({C: 7}, 5, True), ({C: 6}, 5, False), ({C: 7}, 8, False), ({C: 8}, 8, True), ({}, 0, False)],
)
def test_a_learner_joins_with_everything_that_was_acknowledged_or_may_be_saved(
    confirmed: dict[Process, int], sent: int, joins: bool
) -> None:
    found = with_learner(of(A, B, memory=True, former=(C, D)), C, Progress(9, confirmed, sent, acknowledged=7))
    assert found == (of(A, B, C, memory=True, former=(D,)) if joins else None)


def test_a_learner_of_an_empty_slot_must_have_said_that_it_is_there() -> None:
    assert with_learner(of(A), C, Progress(0, {})) is None
    assert with_learner(of(A), C, Progress(0, {C: 0})) == of(A, C)


def test_a_slot_is_handed_over_within_the_set() -> None:
    assert handed_over(of(A, B), A, B) == of(A, B)
    assert handed_over(of(A, B, memory=True), A, B) == of(A, B, memory=True, former=(A,))
    assert handed_over(of(A, B), A, C) is None


@pytest.mark.parametrize(
    ("agreed", "me", "dead", "how"),
    [
        # Who is in the set has everything, and keeps the others.
        (of(A, B, C), B, (), Claim(of(B, C), Source.MEMORY)),
        (of(A, B, C, memory=True), B, (), Claim(of(B, C, memory=True, former=(A,)), Source.MEMORY)),
        # etcd has everything: anybody may claim.
        (of(A, B), C, (), Claim(of(C), Source.ETCD)),
        # It has not: only the set may, and a process that has started again is not in it.
        (of(A, B, memory=True), C, (A,), None),
        (of(A, B, memory=True), B2, (A, C), None),
        # The set is gone.
        (of(A, B, memory=True), C, (A, B), Claim(of(C), Source.ETCD, loss=True)),
        (of(A, B, memory=True), B2, (A, B), Claim(of(B2), Source.ETCD, loss=True)),
        # A former active lives, which may have more than etcd has: only it may claim, from etcd as well.
        (of(A, B, memory=True, former=(D,)), C, (A, B), None),
        (of(A, B, memory=True, former=(D,)), D, (A, B), Claim(of(D), Source.ETCD, loss=True)),
        (of(A, B, memory=True, former=(C, D)), D, (A, B), None),
        (of(A, B, memory=True, former=(C, D)), D, (A, B, C), Claim(of(D), Source.ETCD, loss=True)),
    ],
)
def test_who_may_claim_a_slot_of_a_lost_active(
    agreed: SyncSet, me: Process, dead: tuple[Process, ...], how: Claim | None
) -> None:
    assert claim(agreed, A, me, dead) == how


@pytest.mark.parametrize(
    ("me", "dead", "left"),
    [
        (D, (A, B), (C,)),
        (C, (A, B), None),  # the first that lives claims
        (D, (A, B, C), None),
        (D, (A,), None),  # the set is not gone
        (D, (), None),
        (B2, (A, B), None),  # it was none
    ],
)
def test_of_several_former_actives_all_but_the_first_resign(
    me: Process, dead: tuple[Process, ...], left: tuple[Process, ...] | None
) -> None:
    agreed = of(A, B, memory=True, former=(C, D))
    assert resigned(agreed, A, me, dead) == (of(A, B, memory=True, former=left) if left is not None else None)


PROCESSES = [A, B, C, D, B2]
SETS = st.sets(st.sampled_from(PROCESSES))


@given(members=SETS, memory=st.booleans(), former=SETS, alive=SETS)
def test_somebody_may_claim_whoever_has_died_once_all_have_resigned_who_do(
    members: set[Process], memory: bool, former: set[Process], alive: set[Process]
) -> None:
    """Two former actives waited for each other, and their slot was not served again."""
    agreed = SyncSet(frozenset(members | {A}), memory, frozenset(former - {A}) if memory else frozenset())
    alive = alive - {A} or {C}
    dead = frozenset(PROCESSES) - alive
    for me in sorted(alive):
        agreed = resigned(agreed, A, me, dead) or agreed
    assert any(claim(agreed, A, me, dead) for me in alive)


@given(members=SETS, memory=st.booleans(), former=SETS, lost=SETS, other=st.sampled_from(PROCESSES), numbers=st.data())
def test_no_change_of_the_set_makes_it_empty(
    members: set[Process],
    memory: bool,
    former: set[Process],
    lost: set[Process],
    other: Process,
    numbers: st.DataObject,
) -> None:
    """An empty set was written, and everybody was in sync with it (patroni 3328)."""
    agreed = SyncSet(frozenset(members | {A}), memory, frozenset(former) if memory else frozenset())
    draw = lambda: numbers.draw(st.integers(0, 9))  # noqa: E731
    progress = Progress(9, {process: draw() for process in PROCESSES}, draw(), draw(), draw())
    removal, found = without(agreed, lost, A, progress), claim(agreed, A, other, lost)
    changes = {
        "removal": removal.sync if removal is not None else None,
        "growth": with_learner(agreed, other, progress),
        "announcement": announced(agreed),
        "clearing": all_saved(agreed, progress),
        "claim": found.sync if found is not None else None,
    }
    for kind, change in changes.items():
        if change is not None:
            assert (other if kind == "claim" else A) in change.members, kind
            assert change.memory or not change.former, kind
