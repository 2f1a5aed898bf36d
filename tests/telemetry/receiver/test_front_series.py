"""The counts of front Envoys in the last hour, step by step."""

from tests.telemetry.receiver.test_front_tally import HOST, front, report
from understudy.telemetry.receiver.front_series import FIELDS, STEP_SECONDS, STEPS
from understudy.telemetry.receiver.front_tally import FrontTally


def test_steps_without_a_report_are_left_out_and_the_one_that_has_not_ended_too():
    now = [1_800_000_000.0]
    tally = FrontTally(lambda: now[0], wall=lambda: now[0])
    begun = int(now[0]) // STEP_SECONDS
    tally.counted([front(30), front(0, node="front-2")])
    tally.reported([report(200, attempts=2), report(504, "UT"), report(503, "UF", host=HOST)])
    assert tally.series.view()["steps"] == []
    now[0] += 3 * STEP_SECONDS
    tally.counted([front(7)])
    view = tally.series.view()
    assert (view["now"], view["fields"]) == (begun + 3, FIELDS)
    assert view["steps"] == [[begun, 2, 30, 0, 1, 2]]
    now[0] += STEP_SECONDS
    assert tally.series.view()["steps"][1:] == [[begun + 3, 1, 7, 0, 0, 0]]


def test_an_hour_is_kept_and_no_more():
    now = [1_800_000_000.0]
    tally = FrontTally(lambda: now[0], wall=lambda: now[0])
    for _ in range(STEPS + 50):
        tally.counted([front(1)])
        now[0] += STEP_SECONDS
    assert len(tally.series.view()["steps"]) == STEPS
    now[0] += STEPS * STEP_SECONDS
    assert tally.series.view()["steps"] == []


def test_a_clock_that_is_set_back_loses_no_count():
    now = [1_800_000_000.0]
    tally = FrontTally(lambda: 0.0, wall=lambda: now[0])
    tally.counted([front(5)])
    now[0] -= 60
    tally.counted([front(6)])
    now[0] += 60 + STEP_SECONDS
    assert [step[2] for step in tally.series.view()["steps"]] == [11]
