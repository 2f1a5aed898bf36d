"""A pool that is stopped as a whole and started again has no failovers to answer for; what crashes has."""

import io
from typing import Any

import pytest
from rich.console import Console

from tests.telemetry.support import EPOCH_NS, root, stored
from understudy.telemetry.otlp.spans import StoredSpan
from understudy.telemetry.slo.failovers import failovers_of
from understudy.telemetry.slo.judgement import review
from understudy.telemetry.slo.model import DAY_NS, Review, State, Targets
from understudy.telemetry.slo.page import page
from understudy.telemetry.slo.view import Drawing, as_json
from understudy.telemetry.tracing import names

FACTS = {names.POOL: "cart", names.SLOTS: 43, names.FROM: "cart-2"}
BESIDE = FACTS | {names.STOP_OR_START: True}


def judged(*spans: StoredSpan) -> Review:
    found = failovers_of(spans, "cart")
    return review(found, Targets(), pool="cart", start_ns=EPOCH_NS, end_ns=EPOCH_NS + DAY_NS, slots=256)


def unmeasured(found: Review) -> Any:
    return next(one for one in found.figures if one.key == "unmeasured")


def claims(*of: dict[str, Any]) -> list[StoredSpan]:
    return [stored("claim", number, number + 5, f"cart-{number}", attributes=facts) for number, facts in enumerate(of)]


def test_claims_at_a_stop_or_a_start_are_told_and_in_no_figure() -> None:
    found = judged(*claims(BESIDE, BESIDE), stored("catch_up", 5, 9), stored("audit", 9, 20))
    assert (found.left_out, found.failovers) == (1, ())
    assert unmeasured(found).state is State.NO_DATA
    screen = Console(file=io.StringIO(), width=200)
    screen.print(Drawing(found))
    assert isinstance(screen.file, io.StringIO)
    told = "1 changes of active belong to stops and starts of the pool: of those only lost replicas writes count"
    assert told in screen.file.getvalue()
    assert told in page(found)
    assert as_json(found)["left_out"] == 1


@pytest.mark.parametrize(
    "spans",
    [
        claims(FACTS),
        claims(BESIDE, FACTS),
        [stored("detect", 0, 5, attributes=FACTS)],
        [stored("fence", 0, 5, attributes=FACTS)],
    ],
)
def test_a_change_that_one_witness_saw_happen_is_unmeasured_as_before(spans: list[StoredSpan]) -> None:
    found = judged(*spans)
    assert (found.left_out, len(found.failovers)) == (0, 1)
    assert unmeasured(found).value == 1


def test_a_root_that_was_given_up_does_not_make_a_start_a_failover() -> None:
    given_up = root(100, attributes=FACTS | {names.UNMEASURED: True})
    assert judged(given_up, *claims(BESIDE)).left_out == 1
    assert judged(given_up, *claims(FACTS)).left_out == 0


def test_a_measured_change_counts_whoever_claimed() -> None:
    found = judged(root(100, attributes=FACTS), *claims(BESIDE))
    assert (found.left_out, len(found.failovers), unmeasured(found).value) == (0, 1, 0)


def test_members_that_asked_each_other_in_vain_changed_nothing() -> None:
    assert failovers_of([stored("held_up", 0, 0, attributes={names.POOL: "cart", names.CALLS: 0})], "cart") == []
