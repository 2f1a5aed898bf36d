"""Sync records: what they allow, and that no claim succeeds beside a change of the sync set.

The last test runs three members against one store with etcd's compare semantics, in random histories. Their views may
be old, transactions arrive late, and processes die with their memory. Whoever becomes active must have every
write that was acknowledged from memory. ``tests/model/replication`` visits the rules of the sync sets themselves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness.examples import examples
from understudy.statesync.etcd.client import Compare, Delete, Event, Kv, ModRevision, Operation, Put
from understudy.statesync.etcd.informer import InformerBatch
from understudy.statesync.pool.claims import CLAIM_MOST, claim, claim_transaction, unclaimable
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.owner_records import (
    NO_MEMBER,
    NotInSet,
    after_set_back,
    finish_handover,
    records_compared,
    records_written,
    start_handover,
    sync_beside,
    take_up,
    undo_handover,
)
from understudy.statesync.pool.ownership import (
    ClaimFree,
    TakeOver,
    View,
    agreed_set,
    heir_of,
    is_valid,
    next_steps,
    process_of,
    standbys_of,
)
from understudy.statesync.pool.records import Loss, Lost, Member, MemberState, Owner, Phase, Revival, SyncRecord, Table
from understudy.statesync.pool.state import At, Changed, PoolState
from understudy.statesync.replication import sync_set
from understudy.statesync.replication.sync_set import Process, Progress, Source, SyncSet

KEYS = PoolKeys("p")
A, B, C, D = (Process(name, "1") for name in "abcd")
OWNER = Owner("a", "1", 4)


def sync_set_of(*members: Process, memory: bool = True, former: Sequence[Process] = ()) -> SyncSet:
    return SyncSet(frozenset(members), memory, frozenset(former))


def record(*members: Process, memory: bool = True, former: Sequence[Process] = (), losses: int = 0, epoch: int = 4):
    made = SyncRecord.of_set(epoch, sync_set_of(*members, memory=memory, former=former))
    return replace(made, losses=losses)


def view(
    me: Process = B,
    sync: SyncRecord | None = None,
    owner: Owner | None = OWNER,
    *,
    restores: bool = True,
    order: tuple[str, ...] = ("b", "c"),
    registered: Sequence[Process] = (A, B, C),
    lost: Sequence[Process] = (),
) -> View:
    members = {name: At(Member(name, boot, "h:1", "h:2", MemberState.UP), 1) for name, boot in registered}
    table = Table(1, (order,), {name: Lost(boot, "killed", "", 0.0) for name, boot in lost})
    owners = {0: At(owner, 5)} if owner else {}
    sync_sets = {0: At(sync, 6)} if sync else {}
    return View(me.member, me.boot, table, 9, owners, members, sync_sets, restores)


# -- records --


def test_a_sync_record_is_read_as_it_was_written() -> None:
    written = record(B, A, former=[C], losses=2)
    assert SyncRecord.decode(written.encode()) == written
    assert written.encode() == (
        b'{"epoch":4,"members":[["a","1"],["b","1"]],"memory":true,"former":[["c","1"]],"losses":2,'
        b'"loss_epoch":0,"loss_seconds":0,"loss_at":0.0}'
    )
    assert written.sync_set() == sync_set_of(A, B, former=[C])


def test_a_record_of_an_earlier_build_counts_losses_and_knows_no_bound() -> None:
    earlier = SyncRecord.decode(b'{"epoch":4,"members":[["a","1"]],"memory":false,"former":[],"losses":2}')
    assert (earlier.losses, earlier.last_loss) == (2, None)
    again = SyncRecord.of_set(5, sync_set_of(B), earlier).after_loss(3, 8.0)
    assert (again.losses, again.last_loss) == (3, Loss(5, 3, 8.0))


@pytest.mark.parametrize(
    "value",
    [
        b'{"epoch":4,"members":[]}',
        b'{"epoch":4}',
        b'{"epoch":4,"members":["a"]}',
        b'{"epoch":4,"members":[["a"]]}',
        b'{"epoch":4,"members":[["a",1]]}',
        b'{"epoch":4,"members":5}',
        b'{"epoch":4,"members":[["a","1"],["a","1"]]}',
        b'{"epoch":4,"members":[["a","1"]],"former":[["b","1"]]}',
        b'{"epoch":4,"members":[["a","1"]],"losses":-1}',
        b'{"epoch":4,"members":[["a","1"]],"losses":1,"loss_epoch":-1}',
        b'{"epoch":4,"members":[["a","1"]],"losses":1,"loss_seconds":0.5}',
        b'{"epoch":"4","members":[["a","1"]]}',
    ],
)
def test_what_is_no_sync_record_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each has a text of its own
        SyncRecord.decode(value)


def put(key: str, value: bytes, revision: int) -> InformerBatch:
    return InformerBatch(revision, (Event("put", Kv(key, value, revision, 1, 0)),))


def test_the_state_knows_the_newest_sync_record_whoever_told_it() -> None:
    state, old, new = PoolState(KEYS), record(A), record(A, B)
    key = KEYS.sync_set(3)
    assert state.apply(put(key, old.encode(), 5)) == Changed.SYNC_SETS
    assert state.note_sync_set(3, new, 7)
    assert not state.note_sync_set(3, old, 6)
    state.apply(put(key, old.encode(), 6))
    assert state.sync_sets == {3: At(new, 7)}
    assert [(where, revision, encode()) for where, revision, encode in state.stored()] == [(key, 7, new.encode())]
    state.apply(InformerBatch(8, (Event("delete", Kv(key, b"", 8, 0, 0)),)))
    assert state.sync_sets == {}
    assert state.read_sync_set(3, Kv(key, old.encode(), 8, 1, 0)) == old
    state.apply(InformerBatch(9, (Event("delete", Kv(key, b"", 9, 0, 0)),)))
    assert state.sync_sets == {}
    state.note_sync_set(3, old, 10)
    state.apply(InformerBatch(11, (), reset=True))
    assert state.sync_sets == {}


def test_a_sync_record_that_cannot_be_read_changes_nothing_and_is_named() -> None:
    state, known = PoolState(KEYS), record(A)
    state.note_sync_set(3, known, 5)
    assert state.apply(put(KEYS.sync_set(3), b"{}", 6)) == Changed.NOTHING
    assert state.read_sync_set(3, Kv(KEYS.sync_set(3), b"{}", 6, 1, 0)) is None
    state.apply(put(f"{KEYS.sync_set(3)}/x", known.encode(), 7))
    assert state.sync_sets == {3: At(known, 5)}
    assert set(state.faults) == {KEYS.sync_set(3), f"{KEYS.sync_set(3)}/x"}


# -- what they allow --


@pytest.mark.parametrize(
    ("at", "agreed"),
    [
        (None, SyncSet(frozenset({A}))),
        (At(record(A, B), 6), sync_set_of(A, B)),
        (At(record(A, B, epoch=3), 6), SyncSet(frozenset({A}))),
    ],
    ids=["none", "of this epoch", "of an earlier epoch"],
)
def test_a_sync_record_counts_only_in_the_epoch_of_the_owner_record(at: At[SyncRecord] | None, agreed: SyncSet) -> None:
    assert agreed_set(OWNER, at) == agreed
    assert is_valid(OWNER, at) == (agreed != SyncSet(frozenset({A})))


ALONE = (Source.ETCD, record(B, memory=False, epoch=5), False)
IN_MEMORY = record(A, B)
LOSSY = record(A, C).after_loss(3, 1.0)
LOSSY_ALONE = replace(ALONE[1], losses=1, loss_epoch=4, loss_seconds=3, loss_at=1.0)


@pytest.mark.parametrize(
    ("seen", "whole", "dead", "claimed"),
    [
        (view(owner=None), False, (), (Source.ETCD, record(B, memory=False, epoch=1), False)),
        (view(), True, (), ALONE),
        (view(sync=record(A, B, epoch=3)), True, (), ALONE),
        (view(sync=record(A, C, epoch=3, losses=2)), False, (), (Source.ETCD, replace(ALONE[1], losses=2), False)),
        (view(sync=IN_MEMORY), True, (), (Source.MEMORY, record(B, former=[A], epoch=5), False)),
        (view(sync=record(A, B, C)), True, (), (Source.MEMORY, record(B, C, former=[A], epoch=5), False)),
        (view(sync=record(A, B, memory=False)), True, (), (Source.MEMORY, record(B, memory=False, epoch=5), False)),
        (view(sync=IN_MEMORY), False, (), None),
        (view(sync=record(A, B, memory=False, losses=1)), False, (), (Source.ETCD, replace(ALONE[1], losses=1), False)),
        (view(sync=record(A, B, memory=False), restores=False), False, (), ALONE),
        (view(sync=record(A, C, memory=False)), True, (), ALONE),
        (view(sync=record(A, C)), True, (), None),
        (view(sync=record(A, C)), True, (C,), None),
        (view(sync=record(A, C)), False, (A, C), (Source.ETCD, ALONE[1].after_loss(3, 1.0), True)),
        (view(sync=LOSSY), False, (A, C), (Source.ETCD, replace(LOSSY_ALONE, losses=2, loss_epoch=5), True)),
        (view(sync=replace(LOSSY, memory=False)), False, (), (Source.ETCD, LOSSY_ALONE, False)),
        (view(sync=record(A, C), restores=False), False, (A, C), None),
        (view(sync=record(A, C, former=[D])), False, (A, C), None),
        (view(sync=record(A, former=[B])), False, (A,), (Source.ETCD, ALONE[1].after_loss(3, 1.0), True)),
        (view(Process("b", "2"), IN_MEMORY), True, (A,), None),
    ],
    ids=[
        "the first owner",
        "a slot of release 0.1.0",
        "a void record",
        "losses stay counted under a void record",
        "one of the set",
        "the others stay in the set",
        "one of the set, and etcd has everything",
        "one of the set whose copy is not whole",
        "one of the set whose copy is not whole, and etcd has everything",
        "that is no loss, about which an operator would have to decide",
        "not in the set, and etcd has everything",
        "not in the set",
        "not in the set, and one of it may live",
        "not in the set, and all of it are dead",
        "another loss",
        "a loss stays known after a claim without one",
        "all dead, and an operator has to decide",
        "all dead but a former active",
        "a former active, when all others are dead",
        "a process that has forgotten",
    ],
)
def test_who_may_claim_a_slot_and_from_where(
    seen: View, whole: bool, dead: Sequence[Process], claimed: tuple[Source, SyncRecord | None, bool] | None
) -> None:
    found = claim(
        seen, [0], cause="x", traceparent="", now=1.0, whole=lambda _: whole, dead=dead, loss_seconds=lambda _: 3
    )
    why = unclaimable(seen, 0, whole=lambda _: whole, dead=dead)
    assert [(one.source, one.sync, one.loss) for one in found] == ([claimed] if claimed else [])
    assert bool(why) == (claimed is None)
    for one in found:
        standing = seen.sync_sets.get(0)
        assert one.replaces_sync == (standing.revision if standing else 0)
        assert one.owner.epoch == (seen.owners[0].record.epoch + 1 if seen.owners else 1)


WORD = Revival(4, "ops@host", 7.0)
GONE = (B, C)
"""Who is registered when an operator has to decide: neither the active nor anybody else of the set ``a``, ``d``."""


@pytest.mark.parametrize(
    ("me", "sync", "word", "registered", "restores", "losses"),
    [
        (B, record(A, D), WORD, GONE, True, 1),
        (B, record(A, D), WORD, GONE, False, 1),
        (B, record(A, former=[D]), WORD, GONE, True, 1),
        (B, record(A, D), replace(WORD, epoch=3), GONE, True, None),
        (B, record(A, D), replace(WORD, epoch=5), GONE, True, None),
        (B, record(A, D), None, GONE, True, None),
        (B, record(A, D), WORD, (B, C, D), True, None),
        (B, record(A, D), WORD, (A, B, C), True, None),
        (B, record(A, D), WORD, (B, C, Process("d", "2")), True, 1),
        (B, record(A, C), WORD, GONE, True, None),
        (B, record(A, former=[C]), WORD, GONE, True, None),
        (C, record(A, former=[C]), WORD, GONE, True, 1),
        (B, record(A, D, memory=False), WORD, GONE, False, 0),
    ],
    ids=[
        "silent hosts",
        "the spec wants an operator to decide",
        "a former active is gone",
        "a word about an earlier record",
        "a word about a later record",
        "no word",
        "one of the set is registered",
        "the active is registered",
        "one of the set has restarted",
        "one of the set lives",
        "a former active lives",
        "the former active itself",
        "nothing is lost",
    ],
)
def test_an_operators_word_lets_a_slot_go_on_without_processes_that_are_not_registered(
    me: Process,
    sync: SyncRecord,
    word: Revival | None,
    registered: Sequence[Process],
    restores: bool,
    losses: int | None,
) -> None:
    seen = view(me, sync, registered=registered, restores=restores)
    seen = replace(seen, revivals={0: At(word, 8)} if word is not None else {})
    found = claim(seen, [0], cause="a lost", traceparent="", now=1.0)
    assert [one.sync.losses for one in found] == ([] if losses is None else [losses])
    for one in found:
        assert one.owner.cause == ("a lost; revived by ops@host" if losses else "a lost")


def test_an_operators_word_is_read_and_forgotten_as_etcd_has_it() -> None:
    state = PoolState(KEYS)
    state.apply(put(KEYS.revival(3), WORD.encode(), 4))
    assert state.revivals == {3: At(WORD, 4)}
    assert (KEYS.revival(3), 4) in [(key, revision) for key, revision, _ in state.stored()]
    state.apply(InformerBatch(5, (Event("delete", Kv(KEYS.revival(3), b"", 5, 0, 0)),)))
    assert state.revivals == {}


def test_a_slot_that_may_not_be_claimed_leaves_the_others_alone() -> None:
    base = view(sync=record(A, C))
    seen = replace(base, owners={0: At(OWNER, 5), 1: At(OWNER, 7)}, table=Table(1, (("b",), ("b",))))
    assert [one.slot for one in claim(seen, [0, 1], cause="", traceparent="", now=1.0)] == [1]
    assert unclaimable(seen, 0, whole=lambda _: True, dead=()) == (
        "its newest writes may be in memory alone, at a, c, and not all of these are proven dead"
    )


@pytest.mark.parametrize(
    ("seen", "heir", "standbys"),
    [
        (view(order=("c", "b")), "c", ("c", "b")),
        (view(sync=record(A, B, memory=False), order=("c", "b")), "c", ("c", "b")),
        (view(sync=record(A, B, epoch=3), order=("c", "b")), "c", ("c", "b")),
        (view(sync=IN_MEMORY, order=("c", "b")), "b", ("b", "c")),
        (view(sync=IN_MEMORY, order=("a", "c", "b")), "b", ("b", "c")),
        (view(sync=IN_MEMORY, order=("c",)), "b", ("b", "c")),
        (view(sync=record(A, B, C), order=("c", "b")), "c", ("c", "b")),
        (view(sync=IN_MEMORY, order=("c", "b"), registered=(A, C)), "c", ("c", "b")),
        (view(sync=IN_MEMORY, order=("c", "b"), registered=(A, C, Process("b", "2"))), "c", ("c", "b")),
        (view(sync=IN_MEMORY, order=("c", "b"), lost=(B,)), "c", ("c", "b")),
        (view(sync=record(A, D, former=[B]), order=("c", "b")), "b", ("b", "c")),
        (view(sync=record(A, C, former=[B]), order=("b", "c")), "c", ("c", "b")),
    ],
    ids=[
        "of release 0.1.0",
        "etcd has everything",
        "a void record",
        "who has the writes",
        "who has the writes, and the table does not know of the death",
        "who has the writes, though the table does not name it",
        "who has the writes, in the table's order",
        "nobody who has them lives",
        "who had them has restarted",
        "who has them is lost",
        "a former active, when the whole set is gone",
        "who has them, before a former active",
    ],
)
def test_who_is_to_claim_a_slot_whose_owner_is_gone(seen: View, heir: str, standbys: tuple[str, ...]) -> None:
    assert heir_of(seen, 0) == heir
    assert standbys_of(seen, 0) == standbys


def test_who_has_the_writes_takes_over_though_the_table_names_another() -> None:
    sync = record(A, B)
    assert next_steps(view(B, sync, order=("c", "b"), lost=(A,))) == [TakeOver("a", "1", (0,))]
    assert next_steps(view(C, sync, order=("c", "b"), lost=(A,))) == []
    restarted = (Process("a", "2"), B, C)
    assert next_steps(view(B, sync, order=("a", "b"), registered=restarted)) == [ClaimFree((0,))]
    assert next_steps(view(restarted[0], sync, order=("a", "b"), registered=restarted)) == []


def test_the_new_record_beside_an_owner_record_has_its_epoch_and_keeps_the_set() -> None:
    leaving = start_handover(OWNER, "b", cause="drain", traceparent="", now=1.0)
    arrived = finish_handover(leaving, "1", now=1.0)
    at = At(record(A, B, C, former=[D], losses=3, epoch=4).after_loss(2, 8.0), 6)

    after = sync_beside(leaving, at, arrived)
    assert after == replace(at.record, epoch=5, former=(A, D))
    assert after.last_loss == Loss(4, 2, 8.0)
    for kept in (undo_handover(leaving, now=1.0), take_up(OWNER, now=1.0)):
        assert sync_beside(leaving, at, kept) == replace(at.record, epoch=5)
    with pytest.raises(NotInSet, match="b is not in the sync set"):
        sync_beside(leaving, At(record(A, C), 6), arrived)
    with pytest.raises(NotInSet):
        sync_beside(leaving, at, finish_handover(leaving, "2", now=1.0))


@pytest.mark.parametrize("at", [None, At(record(A, B, epoch=3, losses=2), 6)], ids=["none", "void"])
def test_a_slot_of_release_010_gets_a_record_with_its_next_owner_record(at: At[SyncRecord] | None) -> None:
    losses = at.record.losses if at else 0
    leaving = start_handover(OWNER, "b", cause="drain", traceparent="", now=1.0)
    arrived = finish_handover(leaving, "1", now=1.0)
    alone = record(B, memory=False, losses=losses, epoch=5)
    assert sync_beside(leaving, at, arrived) == alone
    for kept in (undo_handover(leaving, now=1.0), take_up(OWNER, now=1.0)):
        assert sync_beside(leaving, at, kept) == replace(alone, members=(A,))


@pytest.mark.parametrize(
    ("sync", "living", "expected"),
    [
        (record(A, B, memory=False), (B,), record(A, B, epoch=1004)),
        (record(A, B, memory=False), (C,), record(A, B, memory=False, epoch=1004)),
        (record(A, B, former=(C,), losses=2), (), record(A, B, former=(C,), losses=2, epoch=1004)),
        (record(B, C, epoch=3), (B,), record(A, memory=False, epoch=1004)),
        (None, (A,), record(A, epoch=1004)),
    ],
    ids=["a process of the set lives", "none lives", "memory already", "a void record", "no record"],
)
def test_after_etcd_was_set_back_nobody_serves_by_an_old_record_or_without_what_memory_has(
    sync: SyncRecord | None, living: Sequence[Process], expected: SyncRecord
) -> None:
    at = At(sync, 6) if sync is not None else None
    owner = start_handover(OWNER, "b", cause="drain", traceparent="", now=0.0)
    after, beside = after_set_back(owner, at, living, 1000, now=1.0)
    assert (process_of(after), after.epoch, after.phase, after.to) == (A, 1004, Phase.STABLE, "")
    assert beside == expected


def test_a_slot_that_nobody_has_owned_as_far_as_etcd_knows_gets_a_new_epoch_too() -> None:
    after, beside = after_set_back(None, None, (A,), 1000, now=1.0)
    assert ((after.active, after.epoch), beside) == ((NO_MEMBER, 1000), None)


@pytest.mark.parametrize(
    ("seen", "out"),
    [
        (view(owner=None), False),
        (view(), False),
        (view(sync=record(A, C, epoch=3)), False),
        (view(sync=record(A, C)), True),
        (view(sync=record(A, C, former=[B])), True),
        (view(sync=record(A, B)), False),
        (view(sync=record(A, B, memory=False)), False),
        (view(Process("b", "2"), record(A, B)), True),
        (view(A, record(A, B)), False),
    ],
    ids=[
        "never owned",
        "no sync record is known",
        "a void record",
        "others alone",
        "a former active",
        "one of the set",
        "one of the set, and etcd has everything",
        "a successor of one of the set",
        "the active",
    ],
)
def test_a_copy_may_go_only_if_the_set_surely_is_without_it(seen: View, out: bool) -> None:
    assert seen.leaves_out(0) is out


def test_a_claim_transaction_fits_into_etcds_limit() -> None:
    slots = range(CLAIM_MOST)
    owners, sync_sets = dict.fromkeys(slots, At(OWNER, 5)), dict.fromkeys(slots, At(record(A, B), 6))
    claims = claim(
        replace(view(), owners=owners, sync_sets=sync_sets),
        slots,
        cause="",
        traceparent="",
        now=1.0,
        whole=lambda _: True,
    )
    branches = claim_transaction(KEYS, claims, [Put("failover", b"")])
    assert [len(branch) for branch in branches] == [2 * CLAIM_MOST + 2, 2 * CLAIM_MOST + 1, 2 * CLAIM_MOST]
    assert max(map(len, branches)) <= 128


# -- in any history --


@pytest.mark.parametrize("before", [None, record(A, B), record(A, B, epoch=3)], ids=["none", "valid", "void"])
def test_a_claim_fails_beside_a_change_of_the_set_that_it_does_not_know_of(before: SyncRecord | None) -> None:
    store = Store()
    store.txn([], records_written(KEYS, {0: OWNER}, {0: before} if before else {}))
    stale = replace(view(sync=before), owners={0: At(OWNER, 2)})
    stale = replace(stale, sync_sets={0: At(before, 2)} if before else {})
    (claimed,) = claim(stale, [0], cause="", traceparent="", now=1.0, whole=lambda _: True)
    compares, puts, _ = claim_transaction(KEYS, [claimed])

    changed = record(A, C)
    assert store.txn(records_compared(KEYS, {0: 2}, {0: 2 if before else 0}), records_written(KEYS, {}, {0: changed}))

    assert store.txn(compares, puts) == 0
    assert store.values[KEYS.sync_set(0)][0] == changed.encode()


class Store:
    """A few keys with etcd's semantics."""

    def __init__(self) -> None:
        self.revision = 1
        self.values: dict[str, tuple[bytes, int]] = {}

    def txn(self, compares: Sequence[Compare], puts: Sequence[Operation]) -> int:
        """Carry a transaction out; its revision, or 0 if a compare failed."""
        for compare in compares:
            _, revision = self.values.get(compare.key, (b"", 0))
            if (revision if isinstance(compare, ModRevision) else bool(revision)) != compare.revision:
                return 0
        self.revision += 1
        for operation in puts:
            assert not isinstance(operation, Delete)
            if isinstance(operation, Put):
                self.values[operation.key] = (operation.value, self.revision)
        return self.revision


@dataclass
class Served:
    """What an active goes by: its owner record, and the sync set as etcd last confirmed it."""

    owner: Owner
    fence: int
    agreed: SyncSet
    sync_at: int
    change: SyncSet | None = None


@dataclass
class Node:
    """A member: its process, what it has in memory, and what it believes."""

    process: Process
    writes: set[int] = field(default_factory=set)
    owner: At[Owner] | None = None
    sync: At[SyncRecord] | None = None
    known: int = 0
    served: Served | None = None


class OneSlot:
    """Three members, one slot, and writes that are acknowledged from memory."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.store = Store()
        self.nodes = {name: Node(Process(name, "0")) for name in "abc"}
        self.saved: set[int] = set()
        self.acknowledged: set[int] = set()
        self.written = 0
        self.dead: set[Process] = set()
        self.late: list[Callable[[], None]] = []

        self._begin(of_release_010=self._chance(), seen=self._chance())

    def _chance(self) -> bool:
        return self.random.random() < 0.5

    def step(self) -> None:
        """Let something happen."""
        happenings: list[Callable[[], None]] = [
            lambda: self.look(self.random.choice("abc")),
            lambda: self.claim(self.random.choice("abc"), late=self._chance()),
            lambda: self.end_handover(self.random.choice("abc"), late=self._chance(), again=self._chance()),
        ]
        if self.late:
            happenings.append(self.arrive_late)
        if any(node.served for node in self.nodes.values()):
            happenings += [self.write, self.change_the_set, self.start_handover]
        if len(self.dead) < 2:
            happenings.append(self.die)
        self.random.choice(happenings)()

    def _begin(self, *, of_release_010: bool, seen: bool) -> None:
        """a owns the slot; b has its writes too, and the others may not know so yet.

        A slot of release 0.1.0 has no sync record, and every write of it is in etcd.
        """
        owner, sync = Owner("a", "0", 1), SyncRecord(1, (Process("a", "0"), Process("b", "0")), memory=True)
        revision = self.store.txn([], records_written(KEYS, {0: owner}, {}))
        if not seen:
            self.look("b")
            self.look("c")
        if not of_release_010:
            self.store.txn([], records_written(KEYS, {}, {0: sync}))
        self._serve(self.nodes["a"], owner, None if of_release_010 else sync, revision)
        self.nodes["a"].served.sync_at = self._sync_at()
        self.look("a")
        if seen:
            self.look("b")
            self.look("c")

    # -- transactions --

    def _send(self, late: bool, work: Callable[[], None]) -> None:
        if late:
            self.late.append(work)
        else:
            work()

    def arrive_late(self) -> None:
        self.late.pop(self.random.randrange(len(self.late)))()

    def look(self, name: str) -> None:
        node, values = self.nodes[name], self.store.values
        if KEYS.owner(0) in values:
            value, revision = values[KEYS.owner(0)]
            node.owner = At(Owner.decode(value), revision)
            node.known = max(node.known, node.owner.record.epoch)
        if KEYS.sync_set(0) in values:
            value, revision = values[KEYS.sync_set(0)]
            node.sync = At(SyncRecord.decode(value), revision)

    def _view(self, node: Node) -> View:
        owners = {0: node.owner} if node.owner else {}
        sync_sets = {0: node.sync} if node.sync else {}
        return View(*node.process, Table(), 0, owners, {}, sync_sets)

    def claim(self, name: str, *, late: bool) -> None:
        node, dead = self.nodes[name], frozenset(self.dead)
        seen, whole = self._view(node), self._chance()
        for claimed in claim(seen, [0], cause="", traceparent="", now=0.0, whole=lambda _: whole, dead=dead):
            if node.owner and process_of(node.owner.record) == node.process:
                return
            node.known = max(node.known, claimed.owner.epoch)
            compares, puts, _ = claim_transaction(KEYS, [claimed])

            def arrive(claimed=claimed, compares=compares, puts=puts) -> None:
                revision = self.store.txn(compares, puts)
                if not revision:
                    return
                if claimed.loss:
                    self.acknowledged &= self.saved
                has = node.writes if claimed.source is Source.MEMORY else self.saved
                if node.process not in self.dead and node.process == process_of(claimed.owner):
                    node.writes = set(has)
                    self._serve(node, claimed.owner, claimed.sync, revision)
                assert self.acknowledged <= has | self._of_dead(claimed.owner)

            self._send(late, arrive)

    def _of_dead(self, owner: Owner) -> set[int]:
        """Everything, if the process that has won has died meanwhile: it never serves."""
        return self.acknowledged if process_of(owner) in self.dead else set()

    def _serve(self, node: Node, owner: Owner, sync: SyncRecord | None, revision: int) -> None:
        agreed = sync.sync_set() if sync else SyncSet(frozenset({node.process}))
        node.served = Served(owner, revision, agreed, revision if sync else self._sync_at())
        node.owner = At(owner, revision)
        if sync:
            node.sync = At(sync, revision)

    def _sync_at(self) -> int:
        return self.store.values.get(KEYS.sync_set(0), (b"", 0))[1]

    # -- the active --

    def _a_serving(self) -> tuple[Node, Served]:
        """One that believes that it is the active."""
        return self.random.choice([(node, node.served) for node in self.nodes.values() if node.served])

    def write(self) -> None:
        """A write reaches those of the set that listen to it, and is acknowledged when all that must have it do.

        What all of the set have may be saved in etcd, in a commit that compares the owner record alone.
        """
        cut_off = {self.random.choice("abc")} if self._chance() else set()
        self._write(*self._a_serving(), cut_off, saves=self._chance())

    def _write(self, node: Node, served: Served, cut_off: set[str], *, saves: bool) -> None:
        self.written += 1
        node.writes.add(self.written)
        needed = sync_set.needed(served.agreed, served.change)
        have = {node.process}
        for name, other in self.nodes.items():
            if other.process in needed and name not in cut_off and other.known <= served.owner.epoch:
                self._follow(other, node, served)
                have.add(other.process)
        if needed <= have and sync_set.acknowledges_from_memory(served.agreed, served.change):
            self.acknowledged |= node.writes
        if needed <= have and saves and self._standing() == served.fence:
            self.saved |= node.writes
            self.acknowledged |= node.writes

    @staticmethod
    def _follow(other: Node, node: Node, served: Served) -> None:
        """A member has what an active has, and refuses what earlier actives send."""
        other.writes = set(node.writes)
        other.known = max(other.known, served.owner.epoch)

    def _standing(self) -> int:
        return self.store.values.get(KEYS.owner(0), (b"", 0))[1]

    def change_the_set(self) -> None:
        node, served = self._a_serving()
        changes = [] if served.change is not None else self._changes(node, served)
        if not changes:
            return
        change = self.random.choice(changes)
        for other in self.nodes.values():
            if other.process in change.members - served.agreed.members:
                self._follow(other, node, served)
        served.change = change
        made = SyncRecord.of_set(served.owner.epoch, change)
        compares = records_compared(KEYS, {0: served.fence}, {0: served.sync_at})

        def arrive() -> None:
            revision = self.store.txn(compares, records_written(KEYS, {}, {0: made}))
            if node.served is not served:
                return
            if revision:
                served.agreed, served.change, served.sync_at = change, None, revision
                node.sync = At(made, revision)
            else:
                node.served = None

        self._send(self._chance(), arrive)

    def _changes(self, node: Node, served: Served) -> list[SyncSet]:
        """The changes of its sync set that an active may make now."""
        agreed, all_saved = served.agreed, node.writes <= self.saved
        found = [
            agreed._replace(members=agreed.members | {other.process}, former=agreed.former - {other.process})
            for other in self.nodes.values()
            if other.process not in agreed.members and other.known <= served.owner.epoch
        ]
        rest = Progress(1, {}, saved=int(all_saved), acknowledged=1)
        for process in sorted(agreed.members - {node.process}):
            if all_saved or not agreed.memory or len(agreed.members) > 2:
                removal = sync_set.without(agreed, {process}, node.process, rest)
                found += [removal.sync] if removal else []
        announced = sync_set.announced(agreed)
        return [*found, *([announced] if announced else []), *([SyncSet(agreed.members)] if all_saved else [])]

    # -- handovers --

    def start_handover(self) -> None:
        (node, served), to = self._a_serving(), self.random.choice("abc")
        if to == node.process.member:
            return
        leaving = start_handover(served.owner, to, cause="", traceparent="", now=0.0)
        node.served = None
        puts = records_written(KEYS, {0: leaving}, {})
        revision = self.store.txn(records_compared(KEYS, {0: served.fence}, {}), puts)
        if revision:
            for name in (node.process.member, to):
                self.look(name)

    def end_handover(self, name: str, *, late: bool, again: bool) -> None:
        """As its target, or taken back by the owner; or a slot that was given up is taken up again."""
        node = self.nodes[name]
        at, sync = node.owner, node.sync
        if at is None:
            return
        if at.record.phase is Phase.HANDOVER and at.record.to == name:
            after = finish_handover(at.record, node.process.boot, now=0.0)
        elif at.record.phase is Phase.HANDOVER and process_of(at.record) == node.process:
            after = undo_handover(at.record, now=0.0)
        elif again and node.served and process_of(at.record) == node.process:
            node.served = None
            after = take_up(at.record, now=0.0)
        else:
            return
        try:
            beside = sync_beside(at.record, sync, after)
        except NotInSet:
            return
        valid = is_valid(at.record, sync)
        node.known = max(node.known, after.epoch)
        compares = records_compared(KEYS, {0: at.revision}, {0: sync.revision if sync else 0})
        puts = records_written(KEYS, {0: after}, {0: beside})

        def arrive() -> None:
            revision = self.store.txn(compares, puts)
            if not revision or node.process != process_of(after):
                return
            if not valid:  # release 0.1.0 had everything in etcd
                node.writes = set(self.saved)
            assert self.acknowledged <= node.writes
            self._serve(node, after, beside, revision)

        self._send(late, arrive)

    # -- deaths --

    def die(self) -> None:
        name = self.random.choice("abc")
        old = self.nodes[name].process
        self.dead.add(old)
        self.nodes[name] = Node(Process(name, str(int(old.boot) + 1)))


@settings(max_examples=examples(700))
@given(st.integers(0, 2**32))
def test_whoever_becomes_active_has_every_write_that_was_acknowledged_from_memory(seed: int) -> None:
    slot = OneSlot(seed)
    for _ in range(30):
        slot.step()
