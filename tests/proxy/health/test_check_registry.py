"""What checks say of a member, by what they reported and when."""

from understudy.proxy.health.check_registry import CheckRegistry, CheckState
from understudy.proxy.sidecar.registration import refusal_of, state_of
from understudy.statesync.pool.records import MemberState


def book_with(**states: CheckState) -> CheckRegistry:
    book = CheckRegistry()
    for name, state in states.items():
        book.register(name, 10.0, "registered", 100.0)
        book.report(name, state, f"{name} says so", 100.0)
    return book


def test_a_problem_speaks_against_the_member_and_says_why():
    assert book_with(db=CheckState.PROBLEM, disk=CheckState.OK).fault(101.0) == "check db: db says so"
    assert book_with(disk=CheckState.OK).fault(101.0) == ""


def test_a_missed_deadline_is_a_problem_until_the_next_report():
    book = book_with(db=CheckState.OK)
    assert book.fault(110.0) == ""
    assert book.fault(110.5) == "check db: no report for 10.5 s, its deadline is 10 s"
    book.report("db", CheckState.OK, "", 111.0)
    assert book.fault(112.0) == ""


def test_a_new_check_is_init_and_has_its_deadline_to_report():
    book = CheckRegistry()
    book.register("db", 10.0, "registered", 100.0)
    assert (book.fault(105.0), book.starting(105.0)) == ("", "check db: not reported yet")
    assert (book.fault(111.0)[:9], book.starting(111.0)) == ("check db:", "")


def test_registering_again_keeps_what_the_check_said():
    book = book_with(db=CheckState.PROBLEM)
    book.register("db", 30.0, "registered", 105.0)
    assert book.fault(106.0) == "check db: db says so"
    assert book.checks["db"].deadline == 30.0


def test_init_keeps_a_member_without_slots_waiting_and_one_with_slots_serving():
    asked = {"draining": "", "fault": "", "synced": True, "starting": "check db: loading"}
    assert state_of(**asked, has_roles=False) == (MemberState.INIT, "check db: loading")
    assert state_of(**asked, has_roles=True) == (MemberState.UP, "")


def test_the_last_member_that_could_serve_goes_on_and_says_why():
    asked = {"draining": "", "fault": "check db: gone", "synced": True, "has_roles": True}
    assert state_of(**asked, others=True) == (MemberState.DOWN, "check db: gone")
    assert state_of(**asked, others=False) == (MemberState.ATTENTION, "nobody else can serve: check db: gone")


def test_a_member_that_failed_stays_down_without_slots_and_one_that_never_was_well_is_starting():
    asked = {"draining": "", "fault": "check db: gone", "synced": True, "has_roles": False}
    assert state_of(**asked, failed=True) == (MemberState.DOWN, "check db: gone")
    assert state_of(**asked, failed=False) == (MemberState.INIT, "check db: gone")
    assert state_of(**{**asked, "fault": ""}, failed=False, starting="check db: loading")[0] is MemberState.INIT


def test_envoys_are_refused_for_faults_of_the_member_and_not_because_etcd_is_away():
    assert refusal_of(MemberState.DOWN, "etcd does not answer", fault="", owns=True) == ""
    assert refusal_of(MemberState.DOWN, "check db: gone", fault="check db: gone", owns=True) == "check db: gone"
    assert refusal_of(MemberState.ATTENTION, "nobody else", fault="check db: gone", owns=True) == ""
    assert refusal_of(MemberState.DRAINING, "drained by an operator", fault="", owns=True) == ""
    assert refusal_of(MemberState.DRAINING, "drained by an operator", fault="", owns=False) != ""
