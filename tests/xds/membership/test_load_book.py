"""The book of loads: what is known of members and slots, and for how long."""

from understudy.statesync.heartbeat.load_report import LoadReport, SlotLoad
from understudy.xds.membership.load_book import STALE_AFTER, LoadBook


def a_report(*slots: SlotLoad, cpu: float = 0.0) -> LoadReport:
    """A report of these slots."""
    return LoadReport(cpu=cpu, cpus=2.0, slots=slots)


def test_the_cpu_of_a_member_is_that_of_its_slots_by_their_calls() -> None:
    """A slot with three quarters of the calls has three quarters of the CPU."""
    book = LoadBook()
    book.on_report(("a", "1"), a_report(SlotLoad(0, 30.0, 1, 10), SlotLoad(1, 10.0, 2, 20), cpu=0.8), 0)
    load = book.current(1)
    assert [round(load.slots[slot].cpu, 6) for slot in (0, 1)] == [0.6, 0.2]
    assert (load.members["a"].calls, load.members["a"].sessions, load.members["a"].bytes) == (40, 3, 30)


def test_a_slot_keeps_its_load_when_it_moves() -> None:
    """Its former active no longer reports it, and the new one not yet."""
    book = LoadBook()
    book.on_report(("a", "1"), a_report(SlotLoad(0, 30.0, 1, 10)), 0)
    book.on_report(("a", "1"), a_report(), 5)
    book.on_report(("b", "1"), a_report(), 5)
    assert book.current(6).slots[0].calls == 30
    book.on_report(("b", "1"), a_report(SlotLoad(0, 20.0, 1, 10)), 10)
    assert book.current(11).slots[0].calls == 20


def test_a_member_that_no_longer_reports_has_no_load() -> None:
    """Neither one that is silent nor one whose process is gone."""
    book = LoadBook()
    book.on_report(("a", "1"), a_report(), 0)
    assert list(book.current(STALE_AFTER - 1).members) == ["a"]
    assert not book.current(STALE_AFTER).members
    book.on_report(("b", "1"), a_report(), 0)
    book.forget_all_but({("a", "1")})
    assert list(book.current(1).members) == ["a"]
