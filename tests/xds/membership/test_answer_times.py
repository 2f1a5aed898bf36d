"""How long the pool's answers take: 99 % of the last minute's, by the buckets that Envoys report."""

from understudy.xds.membership.answer_times import LEAST_ANSWERS, AnswerTimes

QUICK, SLOW = {5.0: 200}, {1000.0: 200}


def after(*reports: tuple[float, dict[float, int]]) -> int | None:
    """What is known after these reports, each with its time in seconds."""
    times = AnswerTimes()
    for now, durations in reports:
        times.add(durations, now)
    return times.within_ms


def test_the_bucket_of_the_hundredth_slowest_answer_counts() -> None:
    assert after((0, {5.0: 99, 500.0: 1})) == 5
    assert after((0, {5.0: 98, 500.0: 2})) == 500
    assert after((0, {1000.0: 60}), (5, {2500.0: 1, 1000.0: 59})) == 1000
    assert after((0, {0.5: 500})) == 0


def test_too_few_answers_tell_nothing() -> None:
    assert after((0, {500.0: LEAST_ANSWERS - 1})) is None
    assert after((0, {500.0: LEAST_ANSWERS - 1}), (599, {500.0: 1})) == 500, "in ten minutes there were enough"
    assert after((0, {500.0: LEAST_ANSWERS - 1}), (601, {500.0: 1})) is None


def test_only_the_last_minute_counts_if_it_has_enough_answers() -> None:
    assert after((0, SLOW), (61, QUICK)) == 5
    assert after((0, SLOW), (59, QUICK)) == 1000
    assert after((0, SLOW), (61, {5.0: 90})) == 1000, "too few in a minute: the ten minutes say 1000 still"


def test_it_rises_at_once_and_falls_when_clearly_more_are_quick() -> None:
    assert after((0, QUICK), (5, {1000.0: 3})) == 1000
    slow_before = (0, {1000.0: 200})
    assert after(slow_before, (61, {5.0: 992, 1000.0: 8})) == 1000
    assert after(slow_before, (61, {5.0: 996, 1000.0: 4})) == 5
    assert after((0, QUICK), (61, {5.0: 992, 1000.0: 8})) == 5


def test_what_is_reported_while_a_dead_members_requests_may_end_is_left_out() -> None:
    times = AnswerTimes()
    times.add(QUICK, 0)
    times.ignore_until(20)
    times.ignore_until(10)
    times.add({5000.0: 1000}, 19)
    assert times.within_ms == 5
    times.add({500.0: 1000}, 20)
    assert times.within_ms == 500


def test_it_stays_as_it_was_while_there_is_nothing_new() -> None:
    assert after((0, SLOW), (3000, {5.0: 3})) == 1000


def test_buckets_that_a_stranger_invents_take_no_memory() -> None:
    times = AnswerTimes()
    for bound in range(1, 1000):
        times.add({float(bound): 2}, 0)
    assert times.within_ms == 64
