"""What checks say of a member, by what they reported and when."""

from understudy.proxy.health.check_registry import CheckRegistry, CheckState


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
