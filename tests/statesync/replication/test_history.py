"""Versions and histories: where two of them part."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.statesync.replication.history import (
    EPOCHS_KEPT,
    History,
    as_text,
    begun,
    common,
    cut,
    epoch_of,
    extended,
    last_of,
    version_of,
)


def v(text: str) -> int:
    epoch, index = text.split(".")
    return version_of(int(epoch), int(index))


def history(*ends: str) -> History:
    return tuple(v(end) for end in ends)


def test_a_later_epoch_is_newer_than_any_number_of_writes_before() -> None:
    assert v("2.0") > v("1.999999999")
    assert epoch_of(v("7.3")) == 7


def test_a_revision_of_etcd_from_an_earlier_release_is_a_version_of_epoch_0() -> None:
    assert as_text(123_456) == "0.123456"
    assert v("1.1") > 123_456


def test_versions_fit_into_64_bits_for_millions_of_epochs() -> None:
    assert version_of(2**24 - 1, 2**40 - 1) < 2**64


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (history("1.5"), history("1.9"), "1.5"),
        (history("1.9"), history("1.5"), "1.5"),
        # The other one was active with less: what goes beyond it is no history. The lengths would say 1.9 (KIP-101).
        (history("1.9"), history("1.5", "2.4"), "1.5"),
        (history("1.5", "2.4"), history("1.9"), "1.5"),
        (history("1.5", "2.4"), history("1.5", "2.7", "4.1"), "2.4"),
        # Neither followed the other's last epoch.
        (history("1.5", "2.4"), history("1.9", "3.1"), "1.5"),
        # An active that took the sessions from etcd has nothing in common with anybody.
        (history("1.5", "2.4"), begun(3), "0.0"),
        (begun(3), history("3.4"), "3.0"),
        ((), history("1.4"), "0.0"),
    ],
)
def test_histories_are_the_same_up_to_the_last_epoch_that_both_have(one: History, other: History, same: str) -> None:
    assert common(one, other) == v(same)
    assert common(other, one) == v(same)


def test_writes_extend_a_history() -> None:
    found = extended(extended(extended((), v("1.1")), v("1.2")), v("3.1"))
    assert found == history("1.2", "3.1")
    assert last_of(found) == v("3.1")


def test_a_history_keeps_the_last_epochs() -> None:
    found: History = ()
    for epoch in range(1, 100):
        found = extended(found, version_of(epoch, 1))
    assert len(found) == EPOCHS_KEPT
    assert last_of(found) == v("99.1")


@pytest.mark.parametrize(("upto", "left"), [("2.1", ("1.5", "2.1")), ("1.5", ("1.5",)), ("1.2", ("1.2",)), ("0.0", ())])
def test_a_history_is_cut(upto: str, left: tuple[str, ...]) -> None:
    assert cut(history("1.5", "2.4", "4.1"), v(upto)) == history(*left)


LOGS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), max_size=5)


@given(LOGS, LOGS, st.integers(0, 12))
def test_the_common_point_is_that_of_the_writes_themselves(first: list, second: list, shared: int) -> None:
    """Two logs that begin alike and then go on in epochs of their own part where their writes do."""
    start = written(first)[:shared]
    epochs = len({epoch_of(version) for version in start})
    last = epoch_of(start[-1]) if start else 0
    one = start + [version_of(last + 1 + 2 * epoch, index) for epoch, index in second]
    other = start + [version_of(last + 2 + 2 * epoch, index) for epoch, index in second]
    assert epochs <= EPOCHS_KEPT
    assert common(ends(one), ends(other)) == (start[-1] if start else 0)


def written(spans: list[tuple[int, int]]) -> list[int]:
    """The versions of a log: so many writes in each epoch."""
    epoch, versions = 0, []
    for step, writes in spans:
        epoch += step
        versions += [version_of(epoch, index) for index in range(1, writes + 1)]
    return versions


def ends(versions: list[int]) -> History:
    found: History = ()
    for version in sorted(set(versions)):
        found = extended(found, version)
    return found
