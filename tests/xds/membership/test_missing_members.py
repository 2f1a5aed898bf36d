"""Members that were lost stay known until they, or others in their place, are back."""

from understudy.statesync.pool.records import Lost
from understudy.xds.membership.missing_members import FORGET_SECONDS, MissingMembers

ALL = {"a": "a1", "b": "b1", "c": "c1"}
REST = {"a": "a1", "b": "b1"}
LOST = {"c": Lost("c1", "connection refused", "", 0.0)}


def lost() -> MissingMembers:
    """One of three members was lost, its lease has ended, and the table has forgotten it."""
    missing = MissingMembers()
    missing.update({}, ALL, 0.0)
    missing.update(LOST, ALL, 1.0)
    missing.update(LOST, REST, 10.0)
    missing.update({}, REST, 20.0)
    return missing


def test_a_lost_member_is_missing_after_its_record_and_the_tables_entry_are_gone():
    assert lost().members(61.0) == {"c": ("connection refused", 60.0)}


def test_who_is_back_is_not_missing_as_the_same_process_or_as_a_new_one_or_under_another_name():
    for back in (ALL, {**REST, "c": "c2"}, {**REST, "d": "d1"}):
        missing = lost()
        missing.update({}, back, 30.0)
        assert missing.members(30.0) == {}


def test_a_member_that_is_taken_away_for_good_is_forgotten():
    missing = lost()
    assert missing.members(FORGET_SECONDS + 2.0) == {}
    missing.update({}, REST, FORGET_SECONDS + 2.0)
    missing.update({}, REST, 30.0)
    assert missing.members(30.0) == {}


def test_two_that_are_lost_at_once_are_both_missing_until_both_are_back():
    missing = MissingMembers()
    missing.update({**LOST, "b": Lost("b1", "silent", "", 0.0)}, ALL, 1.0)
    missing.update({}, {"a": "a1"}, 20.0)
    assert set(missing.members(20.0)) == {"b", "c"}
    missing.update({}, {"a": "a1", "b": "b2"}, 30.0)
    assert set(missing.members(30.0)) == {"c"}
