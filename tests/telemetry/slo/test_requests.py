"""Which requests met a change of active: Envoys' reports and counts, put to the failovers they belong to."""

import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.telemetry.support import EPOCH_NS, MS
from understudy.telemetry.otlp.counts import Period
from understudy.telemetry.otlp.logs import StoredLog
from understudy.telemetry.slo.judgement import review
from understudy.telemetry.slo.model import DAY_NS, Failover, Figure, State, Targets, Through
from understudy.telemetry.slo.page import page
from understudy.telemetry.slo.requests import AffectedRequest, requests_of, with_requests
from understudy.telemetry.slo.view import Drawing, as_json
from understudy.telemetry.tracing.names import DRILLS_THAT_STOP_SERVICE

SECOND = 1000 * MS
START, END = EPOCH_NS - DAY_NS, EPOCH_NS + DAY_NS
DIED = Failover(
    *("a" * 32, "cart", False, EPOCH_NS, 400.0),
    slots=64,
    losers=frozenset({"cart-1"}),
    winners=frozenset({"cart-2"}),
)


def report(began: float, took: float = 0, *, order: str = "cart-1+cart-2", status: int = 503, **facts) -> StoredLog:
    """An Envoy's report of a request that began so many seconds after the takeover and took so many."""
    attributes = {
        "http.response.status_code": str(status),
        "understudy.cluster": f"cart/order/{order}" if order else "cart/any",
        "understudy.attempts": "1",
        "understudy.flags": "-",
        "understudy.duration_ms": str(round(took * 1000)),
        **{f"understudy.{name}": value for name, value in facts.items()},
    }
    return StoredLog(EPOCH_NS + round(began * SECOND), "request", attributes, {"node_name": "front-1"})


def counted(
    *starts: float, node: str = "front-1", requests: int = 100, failed: int = 0, late: float = 0
) -> list[Period]:
    """Periods of 5 s, each with so many requests; what the Envoy counted arrived ``late`` seconds after its end."""
    return [
        Period(
            *(node, EPOCH_NS + round(at * SECOND), EPOCH_NS + round((at + 5) * SECOND), requests, failed),
            arrived_ns=EPOCH_NS + round((at + 5 + late) * SECOND),
        )
        for at in starts
    ]


def told(*reports: StoredLog, periods: list[Period] | None = None, changes: tuple[Failover, ...] = (DIED,)):
    found, traffic = with_requests(changes, requests_of(reports), periods or [], start_ns=START, end_ns=END)
    return [one.through for one in found], traffic


def figure(key: str, *reports: StoredLog, periods: list[Period], changes: tuple[Failover, ...] = (DIED,)) -> Figure:
    found, traffic = with_requests(changes, requests_of(reports), periods, start_ns=START, end_ns=END)
    judged = review(found, Targets(), pool="cart", start_ns=START, end_ns=END, slots=256, traffic=traffic)
    return next(one for one in judged.figures if one.key == key)


@pytest.mark.parametrize(
    ("case", "failed", "retried"),
    [
        (report(-3, 3.1), 1, 0),
        (report(0.1), 1, 0),
        (report(-0.1, 20), 1, 0),
        (report(1.3), 1, 0),
        (report(1.5), 0, 0),
        (report(-2), 0, 0),
        (report(0.1, order="cart-2+cart-3"), 1, 0),
        (report(0.1, order="cart-3+cart-2"), 0, 0),
        (report(0.1, order=""), 1, 0),
        (report(0.1, status=200, attempts="2"), 0, 1),
        (report(0.1, status=200, attempts="2", flags="UPE"), 1, 0),
        (report(0.1, status=200, flags="URX,UC"), 1, 0),
        (report(0.1, status=404), 0, 0),
    ],
    ids=[
        "in flight when it died",
        "begun while nobody served",
        "held by a frozen member for 20 s",
        "within a second of the end",
        "later",
        "over before",
        "a slot that has its new active already",
        "another member's slot",
        "without a session key",
        "repeated with success",
        "repeated and then cut short",
        "cut short",
        "no failure at all",
    ],
)
def test_a_request_belongs_to_a_change_if_it_was_under_way_and_of_its_slots(case, failed, retried):
    (through,), _ = told(case, periods=counted(-5, 0))
    assert (through.failed, through.retried) == (failed, retried)


def test_all_requests_of_a_change_are_those_of_the_periods_that_touch_it():
    (through,), traffic = told(periods=counted(-10, -5, -1, 4) + counted(-2, node="front-2", requests=40))
    assert through == Through(0, 0, total=140, uncounted=140, rate=28.0)
    assert (traffic.requests, traffic.nodes) == (440, 2)
    (across,), _ = told(periods=counted(-4.8, 0.2))
    assert across.total == 200


@pytest.mark.parametrize(
    "periods",
    [[], counted(-30, -25), counted(-4.9), counted(0.2), counted(-20, -15, 10), counted(-5, 0) + counted(20, node="b")],
    ids=["nobody counts", "it fell silent", "not its end yet", "not its begin", "not in between", "one of two did not"],
)
def test_where_an_envoy_that_was_there_did_not_count_the_number_is_not_known(periods):
    assert told(periods=periods)[0] == [None]
    (through,), _ = told(report(0.1), periods=periods)
    assert (through.failed, through.total) == (1, None)


def test_an_envoy_that_was_gone_for_long_is_not_missed():
    (through,), _ = told(periods=counted(-1) + counted(-300, node="gone") + counted(300, node="not yet there"))
    assert through.total == 100


def test_periods_that_were_put_together_tell_of_the_window_but_not_of_a_moment():
    hour = Period("front-1", EPOCH_NS - 1800 * SECOND, EPOCH_NS + 1800 * SECOND, 90_000)
    (through,), traffic = told(periods=[hour])
    assert (through, traffic.requests) == (None, 90_000)


def test_a_wrong_clock_of_an_envoy_changes_nothing():
    ahead = 600
    periods = counted(ahead - 1, ahead + 4, late=-ahead)
    (through,), _ = told(report(ahead + 0.1), periods=periods)
    assert (through.failed, through.total) == (1, 100)


def test_overlapping_changes_share_their_requests_and_none_counts_twice():
    other = replace(DIED, trace="b" * 32, began_ns=EPOCH_NS + SECOND, losers=frozenset({"cart-3"}))
    found, _ = told(report(0.5), report(0.5, order="cart-3+cart-1"), periods=counted(-1), changes=(DIED, other))
    assert [(one.failed, one.total, one.uncounted) for one in found] == [(1, 100, 100), (1, 100, 0)]


def test_failed_requests_are_judged_against_all_of_the_changes_time():
    missed = figure("failed_requests", *[report(0.1)] * 3, periods=counted(-4.8, 0.2, requests=1000))
    assert (missed.state, missed.value, missed.good, missed.total) == (State.MISSED, 0.0015, 1997, 2000)
    assert missed.budget_left == pytest.approx(-0.5)
    met = figure("failed_requests", report(0.1), periods=counted(-4.8, 0.2, requests=1000))
    assert (met.state, met.value, met.basis) == (State.MET, 0.0005, "1 by front Envoys")
    assert met.budget_left == pytest.approx(0.5)


def test_clients_of_a_drill_stand_in_where_no_envoy_counts_and_are_not_added_where_one_does():
    drilled = replace(DIED, requests=500, failed=5)
    assert figure("failed_requests", periods=[], changes=(drilled,)).value == 0.01
    assert figure("failed_requests", periods=counted(-1), changes=(drilled,)).value == 0
    assert figure("failed_requests", periods=[]).state is State.NO_DATA


@pytest.mark.parametrize("kind", sorted(DRILLS_THAT_STOP_SERVICE))
def test_a_drill_that_stops_the_whole_pool_does_not_count(kind: str):
    stopped = replace(DIED, drill=kind, requests=500, failed=400)
    assert figure("failed_requests", periods=[], changes=(stopped,)).state is State.NO_DATA
    alone = replace(DIED, trace="b" * 32, began_ns=EPOCH_NS + 100 * SECOND, requests=1000, failed=0)
    found = figure("failed_requests", periods=[], changes=(stopped, alone))
    assert (found.state, found.value) == (State.MET, 0)
    assert found.basis == "1 by clients of drills, 1 left out: drills that stop the whole pool"


def test_a_change_whose_requests_not_every_envoy_counted_leaves_the_objective_open():
    later = replace(DIED, trace="b" * 32, began_ns=EPOCH_NS + 100 * SECOND)
    found = figure("failed_requests", periods=counted(-1, 70), changes=(DIED, later))
    assert found.state is State.NOT_SHOWN
    assert "1 changes were not counted" in found.advice
    before_any_envoy = replace(DIED, trace="c" * 32, began_ns=EPOCH_NS - 1000 * SECOND)
    assert figure("failed_requests", periods=counted(-1), changes=(before_any_envoy, DIED)).state is State.MET


def test_failures_that_were_counted_and_not_reported_are_told():
    found = figure("failed_requests", report(0.1), periods=counted(-1, requests=10_000, failed=4))
    assert (found.state, "3 failed requests were counted but not reported" in found.advice) == (State.MET, True)


def test_changes_that_cost_requests_are_listed_planned_ones_as_well():
    moved = replace(DIED, trace="b" * 32, planned=True, began_ns=EPOCH_NS + 100 * SECOND)
    reports = [report(0.1), report(100.1), report(100.2), report(100.2, status=200, attempts="2")]
    found, traffic = with_requests((DIED, moved), requests_of(reports), counted(-1, 99), start_ns=START, end_ns=END)
    judged = review(found, Targets(), pool="cart", start_ns=START, end_ns=END, slots=256, traffic=traffic)
    assert [one.trace[0] for one in judged.costliest] == ["b", "a"]
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(Drawing(judged))
    shown = console.export_text()
    assert "planned moves: 2 of 100 requests failed, 1 were repeated and went well" in shown
    assert "takeover: 1 of 100 requests failed, 0 were repeated" in shown
    assert page(judged).index('id="costliest"') < page(judged).index('id="worst"')
    assert [one["requests"]["failed"] for one in as_json(judged)["costliest"]] == [2, 1]


def test_unavailability_is_weighted_by_the_traffic_that_a_takeover_met():
    quiet_night = [*counted(-1, requests=10), *counted(100, requests=990)]
    found = figure("unavailability", periods=quiet_night)
    # 0.4 s of a quarter of the slots at 2 requests a second, of which there were 1,000 in 10 s.
    assert found.value == pytest.approx(0.4 * 0.25 * 2 / (1000 / 10 * 2 * 86_400))
    assert found.basis == "weighted by requests"
    assert figure("unavailability", periods=[]).value == pytest.approx(0.4 * 0.25 / (2 * 86_400))


@given(
    st.lists(st.tuples(st.integers(-60, 60), st.integers(0, 30), st.integers(1, 4)), max_size=20),
    st.lists(st.tuples(st.integers(-60, 60), st.integers(0, 40)), max_size=5),
    st.sets(st.integers(-12, 12)),
)
def test_no_request_counts_twice_and_no_denominator_is_made_up(reported, changes, fives):
    requests = [
        AffectedRequest(
            "front-1", EPOCH_NS + at * SECOND, EPOCH_NS + (at + took) * SECOND, f"cart-{who}", 503, True, False
        )
        for at, took, who in reported
    ]
    failovers = [
        replace(DIED, trace=f"{number:032x}", began_ns=EPOCH_NS + at * SECOND, total_ms=long * 1000.0)
        for number, (at, long) in enumerate(changes)
    ]
    periods = counted(*(5 * five for five in fives), requests=7)
    found, traffic = with_requests(failovers, requests, periods, start_ns=START, end_ns=END)
    throughs = [one.through for one in found if one.through is not None]
    assert sum(one.failed for one in throughs) <= len(requests)
    assert sum(one.uncounted or 0 for one in throughs) <= (traffic.requests or 0) == 7 * len(fives)
    assert all(one.total is None or one.total >= one.failed for one in throughs)
