"""How changes of a home become transactions of its mirror: whole revisions, in order, none left out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.deploy.mirror.changes import (
    OPERATIONS_MOST,
    Change,
    TooManyChanges,
    differences,
    is_copied,
    parts_of,
    steps_of,
)
from understudy.deploy.mirror.peak import Peak
from understudy.statesync.etcd.client import Event, Kv, Put
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Owner

KEYS = PoolKeys("cart")
COPIED = [KEYS.session(slot, f"k{n}") for slot in (0, 1) for n in range(3)] + [KEYS.spec, KEYS.secret, KEYS.encryption]
OTHERS = [KEYS.owner(0), KEYS.commit("a"), KEYS.home_beat, KEYS.mirrored, KEYS.front_spec, KEYS.member("a"), KEYS.table]
CONTENTS = st.dictionaries(st.sampled_from(COPIED), st.binary(max_size=3))
CHANGES = st.dictionaries(st.sampled_from(COPIED + OTHERS), st.none() | st.binary(max_size=3), min_size=1, max_size=5)


def events_of(revisions: list[dict[str, bytes | None]]) -> list[Event]:
    """What a watch brings of these changes, of the revisions 1, 2 and so on."""
    return [
        Event("put" if value is not None else "delete", Kv(key, value or b"", number, number, 0))
        for number, changes in enumerate(revisions, 1)
        for key, value in changes.items()
    ]


def carry_out(changes: tuple[Change, ...], content: dict[str, bytes]) -> None:
    for change in changes:
        if isinstance(change, Put):
            content[change.key] = change.value
        else:
            content.pop(str(change.key), None)


@given(st.lists(CHANGES, max_size=80))
def test_after_each_step_the_mirror_has_what_the_home_had_at_that_revision(
    revisions: list[dict[str, bytes | None]],
) -> None:
    mirror: dict[str, bytes] = {}
    steps = list(steps_of(KEYS, events_of(revisions), epoch=0))
    for step in steps:
        assert len(step.changes) <= OPERATIONS_MOST
        carry_out(step.changes, mirror)
        home: dict[str, bytes] = {}
        for changes in revisions[: step.revision]:
            for key, value in changes.items():
                if key in COPIED and value is not None:
                    home[key] = value
                elif key in COPIED:
                    home.pop(key, None)
        assert mirror == home
    assert [step.revision for step in steps] == sorted({step.revision for step in steps})
    assert (steps[-1].revision if steps else 0) == len(revisions)
    written = sum(key.startswith(KEYS.sessions) for changes in revisions for key in changes)
    assert sum(step.writes for step in steps) == written


@given(
    st.dictionaries(st.sampled_from(COPIED), st.binary(max_size=3)),
    st.dictionaries(st.sampled_from(COPIED), st.binary(max_size=3)),
)
def test_a_full_copy_changes_what_differs_and_nothing_else(theirs: dict[str, bytes], ours: dict[str, bytes]) -> None:
    changes = differences(theirs, ours)
    content = dict(ours)
    carry_out(tuple(changes), content)
    assert content == theirs
    assert {str(one.key) for one in changes} == {k for k in {*theirs, *ours} if theirs.get(k) != ours.get(k)}
    assert [one for part in parts_of(changes) for one in part] == changes


def test_a_step_stays_below_the_limits_of_etcd() -> None:
    large = [{KEYS.session(0, f"k{n}"): b"x" * 300_000} for n in range(8)]
    assert [step.revision for step in steps_of(KEYS, events_of(large), 0)] == [3, 6, 8]
    many = [{KEYS.session(0, f"k{n}"): b""} for n in range(250)]
    assert [len(step.changes) for step in steps_of(KEYS, events_of(many), 0)] == [100, 100, 50]


def test_a_revision_is_never_split() -> None:
    deleted = {KEYS.session(0, f"k{n}"): None for n in range(OPERATIONS_MOST + 1)}
    with pytest.raises(TooManyChanges, match="revision 2 changed 101 keys"):
        list(steps_of(KEYS, events_of([{KEYS.spec: b""}, deleted]), 0))


def test_the_highest_epoch_of_owner_records_is_known() -> None:
    records = [{KEYS.owner(n): Owner("a", "b", epoch).encode()} for n, epoch in enumerate((4, 9, 7))]
    (step,) = steps_of(KEYS, events_of([*records, {KEYS.owner(3): b"broken"}]), 5)
    assert (step.epoch, step.changes, step.writes) == (9, (), 0)


def test_the_worst_second_counts_for_a_minute() -> None:
    peak = Peak()
    for tenth in range(100):
        peak.add(1000 + tenth / 10, 3)
    assert peak.highest(1010) == 33
    peak.add(1020.05, 50)
    peak.add(1020.85, 50)
    peak.add(1021.15, 50)
    assert [peak.highest(now) for now in (1021.2, 1080, 1082)] == [100, 100, 0]


def test_what_is_of_one_site_alone_is_not_copied() -> None:
    assert [key for key in COPIED + OTHERS if is_copied(KEYS, key)] == COPIED
    assert is_copied(KEYS, f"{KEYS.requests}a/b/1")
