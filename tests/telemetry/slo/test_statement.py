"""The statement of recovery says what drills measured, and no more."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from understudy.telemetry.slo.judgement import review
from understudy.telemetry.slo.model import Failover, Targets
from understudy.telemetry.slo.page import page
from understudy.telemetry.slo.statement import NOT_SHOWN, StatementDrawing, as_json, statement

SITE = Failover("aa", "cart", False, 1, 900.0, drill="site", requests=500, gap_ms=700.0, lost_replicas=0)


def row_of(name, *failovers):
    return next(row for row in statement(failovers) if row.failure.name == name)


def test_without_drills_nothing_is_claimed():
    assert {(row.loss, row.recovery) for row in statement([replace(SITE, drill="")])} == {(NOT_SHOWN, NOT_SHOWN)}


def test_a_few_drills_show_the_worst_and_no_percentile():
    row = row_of("site", SITE, replace(SITE, gap_ms=1200.0), replace(SITE, drill="kill", gap_ms=9000.0))

    assert row.recovery == "worst 1.2 s (2 drills); p99 not yet shown"
    assert row.loss == "0 lost (2 drills)"


def test_a_percentile_is_claimed_when_enough_drills_prove_it():
    many = [replace(SITE, gap_ms=float(ms)) for ms in range(1, 300)]

    assert row_of("site", *many).p99_ms == 297.0
    assert row_of("site", *many[1:]).p99_ms is None


@pytest.mark.parametrize("lost", ["lost_writes", "lost_replicas", "lost_async"])
def test_lost_writes_of_every_class_are_told(lost):
    assert row_of("site", replace(SITE, **{"lost_replicas": None, lost: 3})).loss == "3 lost (1 drill)"


def test_a_drill_that_counted_at_envoys_alone_has_the_time_of_its_trace_and_no_word_on_losses():
    row = row_of("site", replace(SITE, gap_ms=None, lost_replicas=None))

    assert (row.worst_ms, row.loss) == (900.0, NOT_SHOWN)


def test_the_page_and_the_json_have_every_failure():
    found = review([SITE], Targets(), pool="cart", start_ns=0, end_ns=10, slots=4)

    html = page(found)
    for failure in as_json(found)["failures"]:
        assert f"<td>{failure['name']}</td>" in html
    assert "worst 700 ms (1 drill)" in html


@pytest.mark.parametrize(
    ("degraded", "told"),
    [
        (None, "'understudy status' and 'understudy site status' show what is degraded now."),
        ([], "Nothing is degraded now."),
        (["site <east> lacks members: start them"], "Something is degraded now, so more may be lost"),
    ],
)
def test_the_statement_stands_beside_the_present_state(degraded, told):
    found = review([SITE], Targets(), pool="cart", start_ns=0, end_ns=10, slots=4)

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(StatementDrawing(found, degraded))
    text, html = console.export_text(), page(found, degraded=degraded)
    assert told in text
    assert told.replace("'", "&#39;") in html
    assert as_json(found, degraded)["degraded_now"] == degraded
    assert text.count("! site <east> lacks members: start them") == len(degraded or ())
    assert html.count("<li>site &lt;east&gt; lacks members: start them</li>") == len(degraded or ())
