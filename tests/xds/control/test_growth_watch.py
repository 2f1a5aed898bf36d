"""What a pool uses of what is limited."""

from dataclasses import replace

from tests.xds.planning.test_capacity import a_pool, with_cpu
from understudy.statesync.heartbeat.load_report import LoadReport, SlotLoad
from understudy.statesync.pool.spec_parts import Limits
from understudy.xds.control.growth_watch import usage_of
from understudy.xds.membership.load_book import LoadBook
from understudy.xds.planning.growth import Usage


def test_a_pool_uses_sessions_cpu_and_the_memory_of_its_fullest_member():
    pool = a_pool()
    pool = replace(pool, spec=pool.spec.model_copy(update={"limits": Limits(sessions=500)}))
    book = LoadBook()
    for name, memory in (("a", 25), ("b", 80), ("c", 10)):
        report = LoadReport(cpu=0.5, cpus=2.0, memory=memory, memory_limit=100, slots=[SlotLoad(ord(name), 1.0, 7, 9)])
        book.on_report((name, "one"), report, 0)
    assert usage_of(pool, book.current(1)) == {
        "sessions": Usage(21, 500),
        "cpu": Usage(1.5, 0.8 * 4.0),
        "memory": Usage(0.8, 1.0),
    }


def test_nothing_is_known_while_a_member_has_not_reported():
    assert usage_of(a_pool(), with_cpu(1.0, "ac")) == {}
