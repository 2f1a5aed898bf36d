"""Which of a slot's writes etcd does not have: against a plain list of them, in any order of events."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from understudy.statesync.replication import saves as saves_module
from understudy.statesync.replication.messages import LoggedWrite
from understudy.statesync.replication.saves import OUTCOMES_MOST, Save, Saves

KEYS = st.sampled_from(["a", "b", "c", ""])
FEW = 2
"""Outcomes in one save, here."""


def write(key: str, version: int, *, outcome: bool = False) -> LoggedWrite:
    return LoggedWrite(key, b"v%d" % version if key else None, b"o%d" % version if outcome else b"")


class Etcd(RuleBasedStateMachine):
    """An heir saves what it has as a copy, and its own writes; each save is committed or refused.

    ``stored`` is etcd: the version of each session. The active before may have saved any of the writes that the heir
    has and that not all of the set are known to have (``inherited``).
    """

    @initialize(
        unsaved=st.lists(KEYS, max_size=4),
        inherited=st.lists(KEYS, max_size=4),
        saved_before=st.sets(st.integers(1, 8)),
    )
    def begin(self, unsaved: list[str], inherited: list[str], saved_before: set[int]) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(saves_module, "OUTCOMES_MOST", FEW)
        self.shown, self.inherited = len(unsaved), len(unsaved) + len(inherited)
        self.written = {
            version: write(key, version, outcome=True) for version, key in enumerate(unsaved + inherited, 1)
        }
        self.held = 0
        self.stored: dict[str, int] = {}
        self.outcomes: set[bytes] = set()
        self.under_way: list[Save] = []
        self.removal: list[int] | None = None
        for version in sorted(saved_before):
            if self.shown < version <= self.inherited:
                self._store(self.written[version].key, version)
        self.saves = Saves(filter(None, inherited))
        self._hold(self.shown)

    def teardown(self) -> None:
        if not hasattr(self, "saves"):
            return
        try:
            self.removal = None
            self._hold(len(self.written))
            while self.saves.due or self.under_way:
                self.take()
                self.commit()
            assert self.saves.saved(self.held) == len(self.written)
            self.etcd_has_everything_up_to_the_last_saved_version()
        finally:
            self.patch.undo()

    def _store(self, key: str, version: int) -> None:
        if key:
            assert self.stored.get(key, 0) <= version, "an earlier version replaces a later one"
            self.stored[key] = version

    def _hold(self, upto: int) -> None:
        for version in range(self.held + 1, upto + 1):
            self.saves.add(version, self.written[version])
            self.held = version
        if self.held >= self.inherited:
            self.saves.release()

    @rule(key=KEYS, outcome=st.booleans())
    def writes(self, key: str, outcome: bool) -> None:
        version = len(self.written) + 1
        self.written[version] = write(key, version, outcome=outcome)

    @precondition(lambda self: self.held < len(self.written))
    @rule(count=st.integers(1, 3))
    def all_have(self, count: int) -> None:
        self._hold(min(self.held + count, len(self.written)))

    @precondition(lambda self: self.removal is None)
    @rule()
    def take(self) -> None:
        taken = self.saves.take()
        assert all(len(save.outcomes) <= FEW for save in taken)
        self.under_way += taken
        assert not self.saves.due

    @precondition(lambda self: self.under_way)
    @rule()
    def commit(self) -> None:
        save = self.under_way.pop(0)  # etcd has them in the order in which they were sent
        self.saves.done(save)
        if save.key:
            assert save.value == self.written[save.last].value
        self._store(save.key, save.last)
        self.outcomes |= set(save.outcomes)

    @precondition(lambda self: self.under_way)
    @rule()
    def refuse(self) -> None:
        self.saves.failed(self.under_way.pop(0))

    @precondition(lambda self: self.removal is None and self.held < self.inherited)
    @rule()
    def removal_begins(self) -> None:
        """A change of the set saves all that was inherited; nothing else may be under way, or be fit to be."""
        if self.saves.due or self.saves.under_way:
            return
        first = max(self.saves.saved(self.held), self.shown) + 1
        self.removal = list(range(first, self.inherited + 1))
        self.with_it = list(self.saves.outcomes)

    @precondition(lambda self: self.removal is not None)
    @rule()
    def removal_takes_effect(self) -> None:
        newest = {self.written[version].key: version for version in self.removal or ()}
        for key, version in newest.items():
            self._store(key, version)
        self.outcomes |= {self.written[version].outcome for version in self.removal or ()}
        self.outcomes |= set(self.with_it)
        self.removal = None
        self.saves.settle(self.inherited)
        self.saves.release()
        self.held = max(self.held, self.inherited)

    @precondition(lambda self: self.removal is not None)
    @rule()
    def removal_fails(self) -> None:
        self.removal = None

    @invariant()
    def etcd_has_everything_up_to_the_last_saved_version(self) -> None:
        for version in range(1, self.saves.saved(self.held) + 1):
            one = self.written[version]
            assert not one.key or self.stored.get(one.key, 0) >= version
            assert not one.outcome or one.outcome in self.outcomes

    @invariant()
    def what_is_not_saved_is_counted(self) -> None:
        if not len(self.saves):
            assert self.saves.saved(self.held) == self.held
            assert (self.saves.bytes, self.saves.writes) == (0, 0)
        assert self.saves.bytes >= 0
        written = [(self.written[version].key, version) for version in range(1, self.held + 1)]
        assert self.saves.writes >= sum(version > self.stored.get(key, 0) for key, version in written if key)
        assert self.saves.under_way == bool(self.under_way)


TestSaves = Etcd.TestCase


def test_a_session_that_is_written_often_is_saved_once_with_its_newest_version() -> None:
    saves = Saves()
    for version in (1, 2, 3):
        saves.add(version, write("a", version, outcome=True))
    (save,) = saves.take()
    assert (save.value, save.outcomes, save.first, save.last) == (b"v3", [b"o1", b"o2", b"o3"], 1, 3)
    saves.add(4, write("a", 4))
    assert saves.saved(4) == 0
    saves.done(save)
    assert saves.saved(4) == 3


def test_a_save_that_was_refused_does_not_replace_a_newer_one() -> None:
    saves = Saves()
    saves.add(1, write("a", 1, outcome=True))
    (first,) = saves.take()
    saves.add(2, write("a", 2))
    (second,) = saves.take()
    saves.failed(first)
    saves.done(second)
    (rest,) = saves.take()
    assert (rest.key, rest.outcomes) == ("", [b"o1"])
    assert saves.saved(2) == 0
    saves.done(rest)
    assert saves.saved(2) == 2


def test_an_earlier_write_waits_until_all_have_the_later_one_to_its_session() -> None:
    saves = Saves(["a"])
    saves.add(1, write("a", 1))
    saves.add(2, write("b", 2))
    (other,) = saves.take()
    assert (other.key, saves.due, saves.kept_back) == ("b", False, 1)
    saves.done(other)
    assert saves.saved(2) == 0
    saves.add(3, write("a", 3))
    assert not saves.due
    saves.release()
    (save,) = saves.take()
    assert (save.value, save.first, save.last, saves.kept_back) == (b"v3", 1, 3, 0)


def test_what_was_saved_in_another_way_is_not_saved_again() -> None:
    saves = Saves()
    for version, key in enumerate(["a", "b", "a"], 1):
        saves.add(version, write(key, version, outcome=True))
    saves.settle(2)
    assert saves.saved(3) == 2
    (save,) = saves.take()
    assert (save.key, save.value) == ("a", b"v3")
    saves.done(save)
    assert (saves.saved(3), saves.bytes) == (3, 0)


def test_the_outcomes_of_a_session_that_is_written_very_often_go_in_several_saves() -> None:
    saves = Saves()
    for version in range(1, 2 * OUTCOMES_MOST + 2):
        saves.add(version, write("a", version, outcome=True))
    taken = saves.take()
    assert sorted(len(save.outcomes) for save in taken) == [1, OUTCOMES_MOST, OUTCOMES_MOST]
    assert [save.value for save in taken if save.key] == [b"v%d" % (2 * OUTCOMES_MOST + 1)]
    assert len({outcome for save in taken for outcome in save.outcomes}) == 2 * OUTCOMES_MOST + 1


def test_no_save_has_too_many_outcomes_however_often_etcd_refuses() -> None:
    saves = Saves()
    version = 0
    for _ in range(4):
        for _ in range(OUTCOMES_MOST):
            version += 1
            saves.add(version, write("a", version, outcome=True))
        taken = saves.take()
        assert max(len(save.outcomes) for save in taken) <= OUTCOMES_MOST
        saves.add(version := version + 1, write("a", version, outcome=True))
        for save in taken:
            saves.failed(save)
    outcomes = [outcome for save in saves.take() for outcome in save.outcomes]
    assert sorted(outcomes) == sorted({b"o%d" % number for number in range(1, version + 1)})
