"""Load reports: what is smoothed how, and what of a stranger's report is refused."""

import pytest

from understudy.statesync.heartbeat.heartbeat import Beat
from understudy.statesync.heartbeat.load_report import KNOWN_AFTER, LoadReport, SlotLoad, SlotRates, Smoothed
from understudy.statesync.pool.records import MemberState

REPORT = LoadReport(cpu=0.5, cpus=2.0, memory=10, memory_limit=20, lag=0.001, slots=[SlotLoad(3, 1.5, 7, 700)])


def test_a_report_travels_in_a_beat() -> None:
    """A beat with a report is read back as it was, and one without has none."""
    beat = Beat("cart", "m1", "boot", MemberState.UP, 1, load=REPORT)
    assert Beat.decode(beat.encode()).load == REPORT
    assert Beat.decode(Beat("cart", "m1", "boot", MemberState.UP, 1).encode()).load is None


def test_a_later_release_may_tell_more_of_a_slot() -> None:
    """Parts after those that are known are left out."""
    told = LoadReport.of({"slots": [[3, 1.5, 7, 700, "new"]], "another": 1})
    assert told.slots == (SlotLoad(3, 1.5, 7, 700),)


@pytest.mark.parametrize(
    "slots", [[[1, 2.0, 3]], [[-1, 1.0, 1, 1]], [[99_999, 1.0, 1, 1]], [[1, -1.0, 1, 1]], [["1", 1.0, 1, 1]], "text"]
)
def test_a_report_that_is_none_is_refused(slots: object) -> None:
    """Numbers that no member can have make no load."""
    with pytest.raises(ValueError, match="LoadReport"):
        LoadReport.of({"slots": slots})


@pytest.mark.parametrize("versions", [["v1"], {"v1": -1}, {"v1": "2"}, {"v1": 1.5}, {str(n): 1 for n in range(1001)}])
def test_counts_of_versions_that_are_none_are_refused(versions: object) -> None:
    assert LoadReport.of({"versions": {"v1": 2, "": 1}}).versions == {"v1": 2, "": 1}
    with pytest.raises(ValueError, match="versions are"):
        LoadReport.of({"versions": versions})


def test_what_etcd_lacks_is_a_number_of_sessions_of_ms_and_of_writes() -> None:
    for unsaved in ([7, 1120], [7, 1120, 9], [7, 1120, 9, "new"]):
        assert LoadReport.of({"unsaved": unsaved}).unsaved == unsaved
    assert LoadReport.of({}).unsaved is None
    for bad in ([7], [-1, 2], ["7", 2], 7, [7, 2, "9"]):
        with pytest.raises(ValueError, match="unsaved has"):
            LoadReport.of({"unsaved": bad})


def test_the_lag_of_copies_is_ms_and_writes_by_site() -> None:
    assert LoadReport.of({"copy_lag": {"west": [12, 3, "new"]}}).copy_lag == {"west": [12, 3, "new"]}
    assert LoadReport.of({}).copy_lag is None
    for bad in ([12, 3], {"west": 12}, {"west": [12]}, {"west": [-1, 3]}, {str(n): [1, 1] for n in range(1001)}):
        with pytest.raises(ValueError, match="copy_lag has"):
            LoadReport.of({"copy_lag": bad})


def test_a_rate_begins_at_its_first_measure_and_follows_slowly() -> None:
    """A slot with 10 calls a second has that rate after one interval, and not a part of it."""
    rate = Smoothed()
    rate.add(50, 5.0)
    assert rate.rate == pytest.approx(10)
    rate.add(0, 5.0)
    assert 4 < rate.rate < 6
    for _ in range(100):
        rate.add(0, 5.0)
    assert rate.rate < 0.01


def test_slots_are_known_after_two_intervals_and_forgotten_when_they_leave() -> None:
    """A slot that comes back is measured anew: what was counted meanwhile is not its rate here."""
    rates, counts = SlotRates(), [0, 0]
    rates.look(counts, [0, 1], 100.0)
    counts[0] = 50
    rates.look(counts, [0, 1], 105.0)
    assert not rates.known()
    counts[0] = 100
    rates.look(counts, [0, 1], 110.0)
    assert rates.known() == {0: pytest.approx(10), 1: 0}
    rates.look(counts, [1], 115.0)
    rates.look(counts, [0, 1], 120.0)
    rates.look(counts, [0, 1], 120.0 + KNOWN_AFTER)
    assert rates.known()[0] == 0
