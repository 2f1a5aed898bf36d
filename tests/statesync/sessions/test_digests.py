"""Which differences between a copy and etcd prove something, and digests that depend on nothing but content."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Owner, SyncRecord
from understudy.statesync.replication.history import version_of
from understudy.statesync.replication.sync_set import Process, SyncSet
from understudy.statesync.sessions.digests import (
    NOTHING,
    CopyProgress,
    Difference,
    DigestEntry,
    Fault,
    Findings,
    Reading,
    Snapshot,
    compare,
    digest_of,
    entries_of,
    entry_of,
    read_set,
    read_slot,
)
from understudy.statesync.sessions.session import Session
from understudy.statesync.sessions.session_header import Answer

SESSION = Session(
    "text/plain", b"hello", 5000, epoch=3, revision=7, answers=(Answer("k", "f", 201),), version=version_of(3, 5)
)
A, B = Process("a", "a1"), Process("b", "b1")


def test_every_part_of_a_session_counts_but_not_its_revision() -> None:
    changes = [
        {"body": b"hellO"},
        {"content_type": "text/html"},
        {"expires": 5001},
        {"epoch": 4},
        {"version": version_of(3, 6)},
        {"since": version_of(3, 2)},
        {"deleted": True},
        {"answers": ()},
    ]
    others = {entry_of("a", replace(SESSION, **change)).digest for change in changes}  # type: ignore[arg-type]
    assert len(others | {entry_of("a", SESSION).digest, entry_of("b", SESSION).digest}) == len(changes) + 2
    assert entry_of("a", replace(SESSION, revision=8)) == entry_of("a", SESSION)


def test_a_session_as_it_was_written_and_as_it_is_read_back_has_the_same_entry() -> None:
    assert entry_of("a", Session.decode(SESSION.encode(), 7)) == entry_of("a", SESSION)


def test_a_slots_digest_depends_on_no_order() -> None:
    entries = [(f"key-{n}", DigestEntry(n, random.Random(n).getrandbits(128))) for n in range(50)]
    shuffled = random.Random(1).sample(entries, len(entries))
    assert digest_of(dict(entries)) == digest_of(dict(shuffled))
    assert digest_of(dict(entries)) != digest_of(dict(entries[1:]))


# -- one comparison --


def read(entry: tuple[int, int] | None) -> Reading:
    return Reading(100, {"k": DigestEntry(*entry)} if entry else {}, frozenset(), 0)


def copy_of(entry: tuple[int, int] | None, *progress: int, in_set: bool = False) -> Snapshot:
    return Snapshot({"k": DigestEntry(*entry)} if entry else {}, CopyProgress(*progress), in_set)


@pytest.mark.parametrize(
    ("mine", "in_etcd", "fault"),
    [
        ((5, 1), (5, 1), None),
        ((5, 1), (5, 2), Fault.CONTENT),
        ((30, 1), (30, 2), Fault.CONTENT),  # neither shown nor saved, and yet the same write
        ((5, 1), (20, 2), Fault.OLDER),
        ((5, 1), (21, 2), None),  # not shown yet
        ((10, 1), (5, 2), Fault.NEWER),
        ((11, 1), (5, 2), None),  # not saved yet
        (None, (21, 1), None),  # not shown yet
        ((11, 1), None, None),  # not saved yet
    ],
)
def test_one_comparison_proves_what_can_have_no_other_cause(
    mine: tuple[int, int] | None, in_etcd: tuple[int, int] | None, fault: Fault | None
) -> None:
    """The copy shows everything up to 20, and etcd has everything up to 10."""
    found = compare(copy_of(mine, 20, 10, 25), read(in_etcd))
    held, there = mine[0] if mine else 0, in_etcd[0] if in_etcd else 0
    assert found == Findings((Difference("k", fault, held, there),) if fault else (), {})


def test_a_session_that_is_missing_at_rest_is_proved_at_once() -> None:
    assert compare(copy_of(None, 20, 20, 20), read((7, 1))).proved == (Difference("k", Fault.MISSING, 0, 7),)


def test_a_value_that_is_no_session_is_not_held_against_the_copy() -> None:
    assert not compare(copy_of((5, 1), 20, 20, 20), Reading(100, {}, frozenset({"k"}), 0)).any


# -- several comparisons --

MISSING = Difference("k", Fault.MISSING, 0, 7)
EXTRA = Difference("k", Fault.EXTRA, 7, 0)


@pytest.mark.parametrize(
    ("later", "in_etcd", "proved", "open_"),
    [
        (copy_of(None, 22, 19, 22), (7, 1), False, True),  # the removal may still not be saved
        (copy_of(None, 22, 20, 22), (7, 1), True, False),
        (copy_of(None, 22, 20, 22), None, False, False),
        (copy_of(None, 22, 20, 22), (21, 1), False, True),  # another one, made and removed since
        (copy_of((7, 1), 22, 20, 22), (7, 1), False, False),
    ],
    ids=["not saved yet", "still missing", "removed", "written again", "came"],
)
def test_a_missing_session_is_proved_when_its_removal_would_be_saved(
    later: Snapshot, in_etcd: tuple[int, int] | None, proved: bool, open_: bool
) -> None:
    first = compare(copy_of(None, 20, 10, 25), read((7, 1)))
    assert first == Findings((), {MISSING: 20})
    found = compare(later, read(in_etcd), first)
    assert ((MISSING in found.proved), bool(found.open)) == (proved, open_)


@pytest.mark.parametrize(
    ("later", "proved", "open_"),
    [
        ([copy_of((7, 1), 20, 10, 20)], False, True),  # not in the set: it may lack the removal
        ([copy_of((7, 1), 20, 10, 20, in_set=True)], True, False),
        ([copy_of((7, 1), 20, 10, 23, in_set=True)], False, True),  # it has more than it shows
        ([copy_of((7, 1), 20, 10, 23, in_set=True), copy_of((7, 1), 22, 10, 24, in_set=True)], False, True),
        ([copy_of((7, 1), 20, 10, 23, in_set=True), copy_of((7, 1), 23, 10, 30)], True, False),
        ([copy_of((7, 1), 20, 10, 23, in_set=True), copy_of(None, 23, 10, 30)], False, False),
    ],
)
def test_a_session_that_etcd_lacks_is_proved_when_the_copy_would_have_heard_of_its_removal(
    later: list[Snapshot], proved: bool, open_: bool
) -> None:
    found = compare(copy_of((7, 1), 20, 10, 20, in_set=True), read(None))
    assert found == Findings((), {EXTRA: 0})
    for snapshot in later:
        found = compare(snapshot, read(None), found)
    assert ((EXTRA in found.proved), bool(found.open)) == (proved, open_)


# -- a slot that is written --


@dataclass
class Slot:
    """A slot as its active, one copy and etcd have it. A write is its version and whether it puts or removes."""

    writes: list[tuple[str, bool]] = field(default_factory=list)
    shown: dict[str, int] = field(default_factory=lambda: {"active": 0, "copy": 0})
    has: int = 0
    told: int = 0
    etcd: dict[str, int] = field(default_factory=dict)
    """For each session the last write that was saved."""

    def state(self, upto: int) -> dict[str, DigestEntry]:
        found: dict[str, DigestEntry] = {}
        for version, (key, put) in enumerate(self.writes[:upto], start=1):
            found.pop(key, None)
            if put:
                found[key] = DigestEntry(version, version)
        return found

    def last_of(self, key: str, upto: int) -> int:
        return max((v for v, (name, _) in enumerate(self.writes[:upto], start=1) if name == key), default=0)

    @property
    def saved(self) -> int:
        lacking = [v for v, (key, _) in enumerate(self.writes[: self.has], start=1) if self.etcd.get(key, 0) < v]
        return lacking[0] - 1 if lacking else self.has

    def step(self, what: str, key: str, part: float) -> None:
        """Something happens; ``part`` of what could come forward does."""

        def some(low: int, high: int) -> int:
            return low + round(part * (high - low))

        match what:
            case "put" | "remove":
                self.writes.append((key, what == "put"))
            case "confirm":
                self.has = some(self.has, len(self.writes))
                self.shown["active"] = some(self.shown["active"], self.has)
            case "tell":
                self.shown["copy"] = some(self.shown["copy"], self.shown["active"])
                self.told = some(self.told, self.saved)
            case "save":
                newest = self.last_of(key, self.has)  # the newest version that all have, whatever was saved before it
                self.etcd[key] = max(self.etcd.get(key, 0), newest)

    def at_rest(self) -> None:
        for key in "abc":
            self.has = len(self.writes)
            self.step("save", key, 1.0)
        self.shown = {"active": self.has, "copy": self.has}
        self.told = self.saved

    def snapshot(self, who: str) -> Snapshot:
        active = who == "active"
        saved, last = (self.saved, len(self.writes)) if active else (self.told, self.has)
        return Snapshot(self.state(self.shown[who]), CopyProgress(self.shown[who], saved, last), in_set=True)

    def reading(self) -> Reading:
        entries = {key: DigestEntry(v, v) for key, v in self.etcd.items() if v and self.writes[v - 1][1]}
        return Reading(1, entries, frozenset(), 0)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "remove", "confirm", "tell", "save", "copy", "read"]),
        st.sampled_from("abc"),
        st.sampled_from([0.5, 1.0]),
    ),
    max_size=60,
)


@given(steps=STEPS, who=st.sampled_from(["active", "copy"]))
def test_a_true_copy_is_never_found_wrong(steps: list[tuple[str, str, float]], who: str) -> None:
    slot, taken, found = Slot(), None, NOTHING
    for what, key, part in steps:
        if what == "copy" and taken is None:
            taken = slot.snapshot(who)
        elif what == "read" and taken is not None:
            found, taken = compare(taken, slot.reading(), found), None
            assert found.proved == ()
        elif what not in ("copy", "read"):
            slot.step(what, key, part)
    slot.at_rest()
    for _ in range(2):
        found = compare(slot.snapshot(who), slot.reading(), found)
    assert found == NOTHING


@given(
    steps=STEPS,
    who=st.sampled_from(["active", "copy"]),
    key=st.sampled_from("abc"),
    how=st.sampled_from(["lost", "content", "older", "extra"]),
)
def test_a_wrong_copy_is_found_once_the_slot_is_at_rest(
    steps: list[tuple[str, str, float]], who: str, key: str, how: str
) -> None:
    slot = Slot()
    for what, name, part in steps:
        slot.step(what, name, part)
    slot.step("put", "c", 1.0)
    slot.step("put", key, 1.0)
    slot.at_rest()

    def spoiled() -> Snapshot:
        true = slot.snapshot(who)
        entries = dict(true.entries)
        entry = entries[key]
        match how:
            case "lost":
                del entries[key]
            case "content":
                entries[key] = entry._replace(digest=-1)
            case "older":
                entries[key] = entry._replace(version=entry.version - 1)
            case _:
                entries["never"] = entry
        return Snapshot(entries, true.progress, true.in_set)

    found = compare(spoiled(), slot.reading())
    found = compare(spoiled(), slot.reading(), found)
    assert {one.key for one in found.proved} == {"never" if how == "extra" else key}
    assert found.open == {}


# -- what etcd has --


async def test_a_slot_is_read_as_it_was_at_a_revision(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    for n in range(150):
        revision = await client.put(keys.session(3, f"key-{n:03}"), SESSION.encode())
    await client.put(keys.session(3, "broken"), b"no session")
    await client.put(keys.session(3, "key-000"), replace(SESSION, body=b"later").encode())
    await client.put(keys.session(4, "elsewhere"), SESSION.encode())

    then = await read_slot(client, keys, 3, revision=revision)
    now = await read_slot(client, keys, 3)

    assert (len(then.entries), then.revision, then.unreadable) == (150, revision, frozenset())
    assert (len(now.entries), now.unreadable) == (150, {"broken"})
    assert {key for key in then.entries if then.entries[key] != now.entries[key]} == {"key-000"}
    assert await entries_of([("key-149", SESSION)]) == {"key-149": then.entries["key-149"]}
    assert then.written["key-149"] == (revision, 3)


async def test_a_process_belongs_to_a_set_only_while_both_records_stand(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    assert (await read_set(client, keys, 3)).members == frozenset()
    await client.put(keys.owner(3), Owner("a", "a1", 5).encode())
    assert (await read_set(client, keys, 3)).members == {A}
    await client.put(keys.sync_set(3), SyncRecord.of_set(5, SyncSet(frozenset({A, B}))).encode())
    two = await read_set(client, keys, 3)
    assert [two.stood(two, one) for one in (A, B, Process("b", "b2"))] == [True, True, False]
    await client.put(keys.sync_set(3), SyncRecord.of_set(5, SyncSet(frozenset({A, B}))).encode())
    again = await read_set(client, keys, 3)
    assert (again.members, two.stood(again, A)) == (two.members, False)
    await client.put(keys.owner(3), Owner("b", "b1", 6).encode())
    assert (await read_set(client, keys, 3)).members == {B}
