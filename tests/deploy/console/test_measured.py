"""What the list of failovers says of each: its length, where the time went, whether it was needless."""

import pytest

from tests.telemetry.support import root, stored
from understudy.deploy.console.measured import FALSE, NOT_MEASURED, measured
from understudy.telemetry.tracing import names

FACTS = {names.POOL: "cart", names.FROM: "cart-1", names.ERROR_MS: 2}
PHASES = (
    stored("detect", 0, 40),
    stored("decide", 40, 5),
    stored("claim", 45, 15, "cart-2"),
    stored("push", 60, 5),
    stored("ack", 65, 15),
)


def test_the_length_and_the_longest_phases_are_told_and_drawn():
    told = measured([root(80, attributes=FACTS), *PHASES], "cart").view()
    assert (told["took"], told["error"], told["verdict"]) == ("80 ms", "± 2.0 ms", "")
    assert told["went"] == "detect 40 ms, claim 15 ms, ack 15 ms"
    assert [(one["group"], one["x"], one["width"]) for one in told["parts"]] == [
        ("detect", 0.0, 50.0),
        ("detect", 50.0, 6.2),
        ("claim", 56.2, 18.8),
        ("route", 75.0, 6.2),
        ("route", 81.2, 18.8),
    ]


@pytest.mark.parametrize(
    ("facts", "returned", "verdict"),
    [
        ({}, {names.RETURNED_ALIVE: True}, FALSE),
        ({}, {names.RETURNED_ALIVE: False}, ""),
        ({}, {names.RETURNED_ALIVE: True, names.COULD_NOT_SERVE: "it stood still"}, ""),
        ({names.DRILL: "freeze"}, {names.RETURNED_ALIVE: True}, ""),
        ({names.PLANNED: True}, {names.RETURNED_ALIVE: True}, ""),
    ],
)
def test_only_a_takeover_from_a_member_that_could_serve_is_false(facts, returned, verdict):
    spans = [root(80, attributes=FACTS | facts), *PHASES, stored("returned", 90, 1, attributes=returned)]
    assert measured(spans, "cart").view()["verdict"] == verdict


def test_without_an_end_nothing_is_measured_and_other_pools_are_not_this_one():
    assert measured([], "cart") == NOT_MEASURED
    assert measured([root(80, attributes=FACTS), *PHASES], "shop") == NOT_MEASURED
    assert measured(PHASES, "").view()["took"] == "not known"
