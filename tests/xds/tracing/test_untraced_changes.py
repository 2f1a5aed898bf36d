"""Changes of active that no table ordered are counted, once, and only if nobody measured them."""

from dataclasses import replace

from tests.xds.membership.test_cluster_state import ABC, world
from understudy.statesync.pool.ownership import DRAIN
from understudy.statesync.pool.records import Owner
from understudy.xds.tracing.untraced_changes import WAIT_NS, UntracedChanges

TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


def moved(before, **owners: Owner):
    return replace(before, owners={**before.owners, **{int(slot[1:]): owner for slot, owner in owners.items()}})


def start():
    pool, untraced = world(*ABC, orders=("abc", "bca", "cab"), owners="abc"), UntracedChanges()
    untraced.observe(pool, 0)
    return pool, untraced


def test_slots_that_moved_in_one_trace_are_one_change():
    pool, untraced = start()
    untraced.observe(moved(pool, s0=Owner("b", "one", 2, cause="a lost: silent", traceparent=TRACE)), 1)
    lost = Owner("c", "one", 2, cause="a lost: silent", traceparent=TRACE)
    untraced.observe(moved(pool, s0=lost, s1=lost), 2)
    assert untraced.due(WAIT_NS, lambda _: False) == []
    (one,) = untraced.due(1 + WAIT_NS, lambda _: False)
    assert (one.source, one.boot, sorted(one.to), one.planned, one.at) == ("a", "one", ["b", "c"], False, 1)
    assert untraced.due(9 * WAIT_NS, lambda _: False) == []


def test_what_has_a_table_is_left_to_it():
    pool, untraced = start()
    untraced.observe(moved(pool, s0=Owner("b", "one", 2, traceparent=TRACE)), 1)
    assert untraced.due(9 * WAIT_NS, {TRACE}.__contains__) == []


def test_a_drain_without_a_leader_counts_as_planned_and_every_change_without_a_trace_gets_one():
    pool, untraced = start()
    untraced.observe(moved(pool, s0=Owner("b", "one", 2, cause=DRAIN), s1=Owner("c", "one", 2, cause=DRAIN)), 1)
    first, second = untraced.due(2 * WAIT_NS, lambda _: False)
    assert first.planned
    assert first.traceparent != second.traceparent


def test_first_owners_restarts_and_undone_handovers_change_no_active():
    pool, untraced = start()
    untraced.observe(moved(pool, s0=Owner("a", "two", 2), s1=Owner("b", "one", 3, cause="handover undone")), 1)
    untraced.observe(moved(pool, s3=Owner("b", "one", 1, cause="first owner")), 2)
    assert untraced.due(9 * WAIT_NS, lambda _: False) == []
