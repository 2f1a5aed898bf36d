"""The review: failovers read from spans, held against objectives, with budget, burn and evidence."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.telemetry.support import EPOCH_NS, MS, root, stored
from understudy.telemetry.slo.failovers import BETWEEN, costs_of, failovers_of
from understudy.telemetry.slo.judgement import burns_of, needed, review
from understudy.telemetry.slo.model import DAY_NS, Failover, Figure, Review, State, Targets, Traffic
from understudy.telemetry.slo.page import page
from understudy.telemetry.slo.view import Drawing, as_json, buckets, budget_told, burn_told, share_told, verdict
from understudy.telemetry.store.store import SpanStore

END = EPOCH_NS + DAY_NS
CRASH = Failover(
    trace="1" * 32,
    pool="cart",
    planned=False,
    began_ns=EPOCH_NS,
    total_ms=40.0,
    slots=64,
    costs={"detect": 10.0, "ack": 30.0},
    exposed_ms=900.0,
    returned=False,
    propagation_ms=20.0,
)


def judged(*failovers: Failover, targets: Targets | None = None) -> Review:
    return review(failovers, targets or Targets(), pool="cart", start_ns=EPOCH_NS, end_ns=END, slots=256)


def figure(found: Review, key: str) -> Figure:
    return next(one for one in found.figures if one.key == key)


def test_a_trace_is_read_as_a_failover_whose_phases_add_up():
    facts = {"understudy.pool": "cart", "understudy.slots": 64, "understudy.from": "cart-2"}
    spans = [
        root(100, attributes=facts),
        stored("detect", 0, 10, "control-1"),
        stored("claim", 15, 30),
        stored("claim", 20, 40, "cart-3"),
        stored("push", 10, 60, "control-1"),
        stored("ack", 30, 70, "control-1"),
        stored("re_protect", 0, 2_000, "control-1"),
        stored("returned", 5, 100, "control-1", attributes={"understudy.returned": True}),
        stored("SELECT", 0, 5_000, "somebody else's"),
    ]
    (found,) = failovers_of(spans, "cart")
    assert (found.total_ms, found.slots, found.source, found.to) == (100, 64, "cart-2", "cart-1, cart-3")
    assert found.costs == {"detect": 10, "claim": 45, "push": 15, "ack": 30}
    assert (found.propagation_ms, found.exposed_ms, found.returned) == (90, 2_000, True)
    assert failovers_of(spans, "other") == []


def test_a_trace_without_its_end_is_unmeasured_and_a_wrong_attribute_is_no_fact():
    lost = {"understudy.pool": "cart", "understudy.slots": "many", "understudy.drill.requests": True}
    (open_end,) = failovers_of([stored("claim", 0, 5, attributes=lost)])
    assert (open_end.total_ms, open_end.slots, open_end.requests, open_end.costs) == (None, 0, None, {})
    (given_up,) = failovers_of([root(10_000, attributes={"understudy.unmeasured": True})])
    assert given_up.total_ms is None


def test_a_planned_stall_is_told_by_the_old_owner_per_slot():
    spans = [replace(root(300), name="handover")]
    for slot, start, end in ((1, 0, 12), (2, 50, 90)):
        facts = {"understudy.slot": slot}
        spans.append(stored("fence", start, 5, "cart-1", attributes=facts))
        spans.append(stored("confirm", start + 5, end - start - 5, "cart-1", attributes=facts))
    (found,) = failovers_of(spans)
    assert (found.planned, found.stalls_ms) == (True, (12, 40))


def test_propagation_is_the_envoys_time_and_not_that_of_the_moves_before():
    moves = [
        replace(root(500), name="handover"),
        stored("move", 0, 470, "control-1"),
        stored("push", 0, 490, "control-1"),
        stored("ack", 470, 30, "control-1"),
    ]
    assert [one.propagation_ms for one in failovers_of(moves)] == [30]
    assert [one.propagation_ms for one in failovers_of(moves[:3])] == [None]
    crash = [root(100), stored("push", 10, 60, "control-1"), stored("ack", 30, 70, "control-1")]
    assert [one.propagation_ms for one in failovers_of(crash)] == [90]


@given(
    st.integers(1, 1_000),
    st.lists(
        st.tuples(st.sampled_from(["detect", "claim", "push", "ack"]), st.integers(-50, 1_100), st.integers(0, 900))
    ),
)
def test_whatever_the_phases_are_the_costs_add_up_to_the_total(total, parts):
    whole = root(total)
    costs = costs_of(whole, [whole, *(stored(name, start, length) for name, start, length in parts)])
    assert sum(costs.values()) == pytest.approx(total)
    assert min(costs.values()) > 0
    assert parts or set(costs) == {BETWEEN}


def test_how_many_failovers_show_a_percentile():
    assert needed() == math.ceil(math.log(0.05) / math.log(0.99)) == 299
    assert (needed(1), needed(2)) == (473, 628)
    assert needed(percentile=0.5) == 5


def test_few_failovers_show_nothing_yet_and_many_show_it():
    few = figure(judged(*[CRASH] * 10), "rto")
    assert (few.state, few.drills, few.value) == (State.NOT_SHOWN, 289, 0.04)
    many = figure(judged(*[CRASH] * 299), "rto")
    assert (many.state, many.drills, many.budget_left) == (State.MET, 0, 1)


def test_a_hundred_slots_that_move_together_are_one_piece_of_evidence():
    moves = [replace(CRASH, planned=True, stalls_ms=(9.0,) * 100, began_ns=EPOCH_NS + n) for n in range(4)]
    four = figure(judged(*moves), "planned_stall")
    assert (four.state, four.total, four.drills) == (State.NOT_SHOWN, 400, 295)
    assert figure(judged(*moves * 75), "planned_stall").state is State.MET
    late = replace(moves[0], stalls_ms=(9.0,) * 99 + (600.0,))
    one_late = figure(judged(late, *moves * 75), "planned_stall")
    assert (one_late.state, one_late.drills) == (State.NOT_SHOWN, needed(1) - 301)


@pytest.mark.parametrize(
    ("share", "digits", "told"),
    [
        (1, 3, "100 %"),
        (0.99999999, 3, "> 99.999 %"),
        (0.5, 3, "50 %"),
        (2 / 3, 3, "66.667 %"),
        (0, 3, "0 %"),
        (0.0000001, 3, "< 0.001 %"),
        (0.004, 0, "< 1 %"),
        (-49, 0, "-4900 %"),
        (-0.001, 0, "< 0 %"),
        (1, 0, "100 %"),
    ],
)
def test_a_share_has_the_digits_that_it_needs(share, digits, told):
    assert share_told(share, digits) == told


def test_80_columns_hold_every_figure_whole():
    late = replace(CRASH, total_ms=63_000.0, exposed_ms=99_000.0, propagation_ms=5_000.0, requests=9_999, failed=9)
    found, console = judged(*[late] * 7), Console(width=80, record=True, file=io.StringIO())
    console.print(Drawing(found, found))
    shown = console.export_text(clear=False)
    assert "…" not in shown
    for one in found.figures:
        assert any(one.title.split()[0] in line and one.shown in line for line in shown.splitlines()), one.title


def test_one_late_failover_of_ten_misses_the_objective_and_names_the_phase():
    late = replace(CRASH, trace="f" * 32, total_ms=3_000.0, costs={"claim": 2_900.0, "ack": 100.0}, began_ns=END - 1)
    found = judged(*[CRASH] * 9, late)
    rto = figure(found, "rto")
    assert (rto.state, rto.good, rto.total) == (State.MISSED, 9, 10)
    assert rto.budget_left == pytest.approx(-9)
    assert "claim" in rto.advice
    assert "ffff" in rto.advice
    assert [burn.severity for burn in rto.burns if burn.firing] == ["page", "page", "ticket"]
    assert (budget_told(rto), burn_told(rto)) == ("-900 %", "100.0x"), "the last hour had this failover only"
    assert found.state is State.MISSED
    assert found.worst[0] == late
    assert verdict(found).startswith("Missed: crash RTO")


def test_without_any_record_nothing_is_claimed():
    found = judged()
    states = {one.key: one.state for one in found.figures}
    assert states.pop("rpo_async_writes") is State.NOT_JUDGED
    assert set(states.values()) == {State.NO_DATA}
    assert {(one.value, one.budget_left) for one in found.figures if one.state is State.NO_DATA} == {(None, None)}
    assert found.state is State.NOT_SHOWN


def test_a_quiet_window_in_which_an_envoy_counted_cost_nothing():
    traffic = Traffic(requests=1_000, nodes=1, since_ns=EPOCH_NS, covered=1.0)
    found = review([], Targets(), pool="cart", start_ns=EPOCH_NS, end_ns=END, slots=256, traffic=traffic)
    met = {one.key for one in found.figures if one.state is State.MET}
    assert met == {"rpo_replica_writes", "unavailability", "false_failovers", "exposure"}


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("rpo_sync_writes", {"lost_writes": 1}),
        ("rpo_replica_writes", {"losses": 1}),
        ("rpo_replica_writes", {"losses": 0, "lost_replicas": 1}),
        ("needless_moves", {"needless_moves": 2}),
        ("false_failovers", {"returned": True}),
        ("failed_requests", {"requests": 1_000, "failed": 2}),
        ("unavailability", {"total_ms": 60_000.0}),
        ("exposure", {"exposed_ms": 3_600_000.0}),
        ("unmeasured", {"total_ms": None}),
        ("re_protection", {"exposed_ms": 31_000.0}),
        ("propagation", {"propagation_ms": 1_001.0}),
    ],
)
def test_each_objective_can_be_missed_and_says_what_to_do(key, change):
    missed = figure(judged(replace(CRASH, **change)), key)
    assert missed.state is State.MISSED
    assert missed.advice
    assert missed.state is not figure(judged(CRASH), key).state


def test_what_the_members_tell_of_correctness_is_read_from_the_trace():
    facts = {"understudy.pool": "cart", "understudy.slots": 85, "understudy.from": "cart-2"}
    spans = [
        root(100, attributes=facts),
        stored("fenced", 5, 10, "cart-2", attributes={"understudy.writes.fenced": 3, "understudy.writes.lost": 2}),
        stored("audit", 20, 900, "cart-1", attributes={"understudy.slots": 42, "understudy.writes.breached": 0}),
        stored("audit", 30, 900, "cart-3", attributes={"understudy.slots": 43, "understudy.writes.breached": 1}),
    ]
    (found,) = failovers_of(spans)
    assert (found.slots, found.audited, found.second_writes, found.fenced, found.lost_async) == (85, 85, 1, 3, 2)
    (dead,) = failovers_of(spans[:1])
    assert (dead.second_writes, dead.lost_async) == (None, None)
    (back,) = failovers_of([spans[0], stored("returned", 5, 9, attributes={"understudy.returned": True})])
    assert back.lost_async == 0, "the process lived, and lost nothing that it could tell of"


@pytest.mark.parametrize(
    ("changes", "state", "value"),
    [
        ([{}], State.NO_DATA, None),
        ([{"second_writes": 0, "audited": 64}], State.MET, 0),
        ([{"second_writes": 0, "audited": 64}, {}], State.NOT_SHOWN, 0),
        ([{"second_writes": 2, "audited": 64}, {}], State.MISSED, 2),
    ],
    ids=["nobody looked", "all were audited", "one was not", "a breach"],
)
def test_second_writers_are_judged_only_by_who_looked(changes, state, value):
    found = figure(judged(*[replace(CRASH, **one) for one in changes]), "two_writers")
    assert (found.state, found.value, found.budget_left) == (state, value, None)
    assert ("no budget" in found.advice) == (state is State.MISSED)


@pytest.mark.parametrize(
    ("wanted", "changes", "state", "value"),
    [
        (None, [{"lost_async": 3}], State.NOT_JUDGED, 3),
        (2, [{}], State.NO_DATA, None),
        (2, [{"lost_async": 2}], State.MET, 2),
        (2, [{"lost_async": 2}, {}], State.NOT_SHOWN, 2),
        (2, [{"lost_async": 2}, {"lost_async": 1}, {}], State.MISSED, 3),
    ],
)
def test_lost_async_writes_of_dead_members_are_never_taken_for_none(wanted, changes, state, value):
    failovers = [replace(CRASH, **one) for one in changes]
    found = figure(judged(*failovers, targets=Targets(rpo_async_writes=wanted)), "rpo_async_writes")
    assert (found.state, found.value) == (state, value)


@pytest.mark.parametrize(
    ("wanted", "changes", "state", "value"),
    [
        (0, [{}], State.NO_DATA, None),
        (0, [{"losses": 0}], State.MET, 0),
        (0, [{"losses": 0}, {}], State.NOT_SHOWN, 0),
        (0, [{"losses": 3}, {}], State.MISSED, 3),
        (3, [{"losses": 3}], State.MET, 3),
        (3, [{"losses": 3, "lost_replicas": 4}], State.MISSED, 4),
        (0, [{"lost_replicas": 1}], State.MISSED, 1),
        (0, [{"losses": 2, "stop_or_start": True, "total_ms": None}], State.MISSED, 2),
        (0, [{"losses": 0}, {"stop_or_start": True, "total_ms": None}], State.MET, 0),
        (0, [{"losses": 0}, {"planned": True}], State.MET, 0),
    ],
    ids=[
        "nobody told",
        "no loss",
        "one did not tell",
        "a loss",
        "as many losses as may be",
        "clients missed more",
        "clients alone",
        "the whole pool died",
        "the pool was stopped",
        "a planned move",
    ],
)
def test_a_slot_whose_whole_sync_set_died_counts_as_a_lost_write_at_least(wanted, changes, state, value):
    failovers = [replace(CRASH, trace=f"{number:032x}", **one) for number, one in enumerate(changes, start=1)]
    found = figure(judged(*failovers, targets=Targets(rpo_replica_writes=wanted)), "rpo_replica_writes")
    assert (found.state, found.value) == (state, value)


def test_a_loss_is_told_with_its_bound_and_without_a_number_of_writes():
    lost = replace(CRASH, losses=16, loss_seconds=1.5, stop_or_start=True)
    basis = figure(judged(lost), "rpo_replica_writes").basis
    assert "16 slots were restored" in basis
    assert "how many writes were lost is not known" in basis
    assert "none was older than 1.5 s" in basis


def test_who_gets_copies_afterwards_says_nothing_of_the_change():
    rejoin = stored("rejoin", 500, 90, attributes={"understudy.slots": 3, "understudy.member": "cart-2"})
    (found,) = failovers_of([root(100, attributes={"understudy.slots": 64}), rejoin])
    assert (found.slots, found.total_ms, found.costs) == (64, 100, {BETWEEN: 100})
    assert failovers_of([rejoin]) == [], "it is no change of active"
    (unended,) = failovers_of([stored("claim", 0, 5, attributes={"understudy.slots": 64}), rejoin])
    assert unended.slots == 64


@pytest.mark.parametrize(
    ("claims", "losses", "bound"),
    [
        ([(64, {})], None, 0),
        ([(64, {"understudy.losses": 0})], 0, 0),
        ([(30, {"understudy.losses": 0})], None, 0),
        ([(30, {"understudy.losses": 0}), (34, {"understudy.losses": 0})], 0, 0),
        ([(30, {"understudy.losses": 2, "understudy.loss_seconds": 1.0})], 2, 1),
        ([(64, {"understudy.losses": "two"})], None, 0),
    ],
    ids=["an earlier release", "no loss", "a part", "two parts", "a loss in a part", "nonsense"],
)
def test_losses_are_known_when_the_new_actives_of_all_slots_have_told(claims, losses, bound):
    spans = [root(100, attributes={"understudy.slots": 64, "understudy.from": "cart-2"})]
    for number, (slots, told) in enumerate(claims):
        more = {"understudy.slots": slots, **told}
        spans.append(stored("claim", 15, 30 + number, f"cart-{number}", attributes=more))
    (found,) = failovers_of(spans)
    assert (found.losses, found.loss_seconds) == (losses, bound)


def test_where_one_takeover_was_not_watched_the_rest_can_miss_an_objective_but_not_meet_it():
    blind = replace(CRASH, total_ms=None, exposed_ms=None)
    for key, worse in (("exposure", {"exposed_ms": 3_600_000.0}), ("unavailability", {"total_ms": 60_000.0})):
        assert figure(judged(CRASH, blind), key).state is State.NOT_SHOWN
        assert figure(judged(replace(CRASH, **worse), blind), key).state is State.MISSED


def test_planned_moves_expose_too_and_a_planned_one_that_nobody_watched_hides_nothing():
    moved = replace(CRASH, planned=True, began_ns=EPOCH_NS + 2_000 * MS, exposed_ms=100.0)
    assert figure(judged(CRASH, moved), "exposure").value == pytest.approx(1_000 * MS / DAY_NS)
    assert figure(judged(CRASH, replace(moved, exposed_ms=None)), "exposure").state is State.MET


def test_a_lost_sync_write_has_no_budget():
    assert figure(judged(replace(CRASH, lost_writes=1)), "rpo_sync_writes").budget_left is None


def test_what_was_not_seen_is_not_counted_as_nothing():
    blind = judged(replace(CRASH, total_ms=None, exposed_ms=None, returned=None))
    assert {figure(blind, key).state for key in ("unavailability", "exposure", "false_failovers")} == {State.NO_DATA}


def test_a_member_that_a_drill_froze_is_no_false_failover():
    frozen = replace(CRASH, returned=True, drill="freeze")
    assert figure(judged(CRASH, frozen), "false_failovers").state is State.MET


def test_a_member_that_stood_still_is_no_false_failover_and_one_that_was_slow_is():
    frozen = replace(CRASH, returned=True, source="cart-2", could_not_serve="it stood still for 5.0 s")
    found = figure(judged(CRASH, frozen), "false_failovers")
    assert (found.state, found.value, found.total) == (State.MET, 0, 2)
    assert "1 of 1 members that lived on could not serve" in found.basis
    assert "cart-2: it stood still for 5.0 s" in found.basis
    slow = figure(judged(frozen, replace(CRASH, returned=True)), "false_failovers")
    assert (slow.state, slow.value) == (State.MISSED, 1)
    assert "give it CPU" in slow.advice
    several = [replace(frozen, source=f"cart-{number}") for number in range(5)]
    assert "and 2 more" in figure(judged(*several), "false_failovers").basis


def test_why_a_member_could_not_serve_is_read_from_its_trace():
    attributes = {"understudy.returned": True, "understudy.could_not_serve": "it stood still for 5.0 s"}
    (found,) = failovers_of([root(100), stored("returned", 5, 100, "control-1", attributes=attributes)])
    assert (found.returned, found.could_not_serve) == (True, "it stood still for 5.0 s")


def test_overlapping_exposure_counts_once():
    twice = [replace(CRASH, exposed_ms=1_000.0), replace(CRASH, began_ns=EPOCH_NS + 500 * MS, exposed_ms=1_000.0)]
    assert figure(judged(*twice), "exposure").value == pytest.approx(1_500 * MS / DAY_NS)


def test_only_what_began_in_the_window_is_judged():
    assert judged(replace(CRASH, began_ns=EPOCH_NS - 1), replace(CRASH, began_ns=END)).failovers == ()


@given(st.lists(st.floats(0.1, 1e5), max_size=30), st.booleans())
def test_any_review_can_be_shown(lengths, planned):
    found = judged(
        *[replace(CRASH, total_ms=ms, planned=planned, began_ns=EPOCH_NS + n) for n, ms in enumerate(lengths)]
    )
    json.dumps(as_json(found, found), allow_nan=False)
    shown = page(found, found)
    assert shown.count("<svg") == shown.count("</svg>")
    assert sum(count for _, count in buckets(lengths)) == len(lengths)


async def test_the_store_gives_the_traces_of_a_window_whole(tmp_path: Path):
    store = SpanStore(tmp_path / "traces.db")
    early, late = "a" * 32, "b" * 32
    store.add([root(10, trace_id=early), stored("re_protect", 0, 5_000, trace_id=early)])
    store.add([replace(root(10, trace_id=late), start_ns=END, end_ns=END + MS)])
    await store.flush()
    assert [span.trace_id for span in await store.window(EPOCH_NS, END)] == [early, early]
    assert [span.trace_id for span in await store.window(EPOCH_NS, END + 1)] == [early, early, late]
    assert {span.trace_id for span in await store.window(EPOCH_NS, END + 1, limit=1)} == {early}
    await store.aclose()


# Budget and burn, by hand

MINUTE = 60_000 * MS


def events(*parts: tuple[float, int, int]) -> list[tuple[int, float, float]]:
    """So many minutes before the end: bad of total."""
    return [(END - round(minutes * MINUTE), float(bad), float(total)) for minutes, bad, total in parts]


@pytest.mark.parametrize(
    ("seen", "rates", "calls"),
    [
        ([], [(0, 0), (0, 0), (0, 0)], []),
        # 15 of 100 in the last 5 min: 15 % bad of 1 % allowed burns 15 times too fast, in every window.
        ([(1, 15, 100)], [(15, 15), (15, 15), (15, 15)], ["page", "page", "ticket"]),
        # The same 10 min ago: over within 5 min, so the first pair is quiet and the second still calls.
        ([(10, 15, 100)], [(15, 0), (15, 15), (15, 15)], ["page", "ticket"]),
        # 2 h ago, among 1,000 since: 15 of 1,100 is 1.36 times.
        ([(120, 15, 100), (2, 0, 1000)], [(0, 0), (15 / 11, 0), (15 / 11, 15 / 11)], ["ticket"]),
        # Yesterday: a slow burn that has ended.
        ([(20 * 60, 15, 100)], [(0, 0), (0, 0), (15, 0)], []),
        # 4 days ago: no longer anybody's business.
        ([(4 * 1440, 15, 100)], [(0, 0), (0, 0), (0, 0)], []),
    ],
)
def test_burn_is_judged_in_two_windows_each(seen, rates, calls):
    found = burns_of(events(*seen), 0.01, END)
    assert [(burn.long_rate, burn.short_rate) for burn in found] == [pytest.approx(pair) for pair in rates]
    assert [burn.severity for burn in found if burn.firing] == calls
    assert [(burn.long, burn.short, burn.limit) for burn in found] == [
        ("1 h", "5 min", 14.4),
        ("6 h", "30 min", 6.0),
        ("3 d", "6 h", 1.0),
    ]


@pytest.mark.parametrize(
    ("key", "changes", "value", "left"),
    [
        # 25 % of the slots for 40 ms of a day, of 0.01 % allowed.
        ("unavailability", [{}], 0.04 * 0.25 / 86_400, 1 - 0.04 * 0.25 / 86_400 / 1e-4),
        # All slots for 8.64 s: 0.01 %, so the budget is used up to the last bit.
        ("unavailability", [{"total_ms": 8_640.0, "slots": 256}], 1e-4, 0.0),
        ("exposure", [{"exposed_ms": 86_400.0}], 0.001, 0.9),
        ("unmeasured", [{}] * 19 + [{"total_ms": None}], 0.05, 0.0),
        ("failed_requests", [{"requests": 10_000, "failed": 4}], 0.0004, 0.6),
        ("rto", [{}] * 297 + [{"total_ms": 1_001.0}] * 3, 0.04, 0.0),
        ("rto", [{}] * 297 + [{"total_ms": 1_001.0}] * 4, 1.001, 1 - 4 / 3.01),
        ("re_protection", [{}] * 99 + [{"exposed_ms": 30_000.0}], 0.9, 1.0),
        ("false_failovers", [{}] * 9, 0, None),
    ],
)
def test_figures_and_budgets_are_what_a_pencil_says(key, changes, value, left):
    failovers = [replace(CRASH, trace=f"{n:032x}", began_ns=EPOCH_NS + n, **one) for n, one in enumerate(changes)]
    found = figure(judged(*failovers), key)
    assert found.value == pytest.approx(value)
    assert found.budget_left == (None if left is None else pytest.approx(left))


LENGTHS = st.lists(st.floats(0.1, 5_000), min_size=1, max_size=60)


@given(LENGTHS, st.floats(0.05, 4))
def test_a_percentiles_budget_is_what_is_left_of_one_in_a_hundred(lengths, target):
    failovers = [replace(CRASH, total_ms=ms, began_ns=EPOCH_NS + n) for n, ms in enumerate(lengths)]
    found = figure(judged(*failovers, targets=Targets(rto=target)), "rto")
    late = sum(ms > target * 1000 for ms in lengths)
    assert (found.good, found.total) == (len(lengths) - late, len(lengths))
    assert found.attainment == pytest.approx(found.good / found.total)
    assert found.budget_left == pytest.approx(1 - late / (0.01 * len(lengths)))
    assert (found.state is State.MISSED) == (found.budget_left < -1e-9)
    assert (found.state is State.MET) == (len(lengths) >= needed(late) and found.budget_left >= -1e-9)


@given(
    st.lists(st.tuples(st.floats(0, 5 * 1440), st.integers(0, 50), st.integers(50, 100)), max_size=20),
    st.floats(0.001, 0.5),
    st.integers(1, 1440),
)
def test_burn_knows_only_shares_and_distances(parts, allowed, minutes):
    seen = events(*parts)
    found = burns_of(seen, allowed, END)
    moved = burns_of([(at + minutes * MINUTE, bad, all_) for at, bad, all_ in seen], allowed, END + minutes * MINUTE)
    doubled = burns_of([(at, 2 * bad, 2 * all_) for at, bad, all_ in seen], allowed, END)
    for one, two, three in zip(found, moved, doubled, strict=True):
        assert one == two
        assert three.long_rate == pytest.approx(one.long_rate)
        assert 0 <= one.long_rate <= 1 / allowed + 1e-9


@given(st.lists(st.tuples(st.integers(0, 86_000), st.floats(0, 1e8)), min_size=1, max_size=15))
def test_exposure_is_a_share_and_no_more_than_the_sum_of_its_parts(parts):
    crashes = [replace(CRASH, began_ns=EPOCH_NS + at * 1000 * MS, exposed_ms=ms) for at, ms in parts]
    found = figure(judged(*crashes), "exposure")
    assert 0 <= found.value <= 1
    assert found.value <= sum(ms for _, ms in parts) / 86_400_000 + 1e-9
    longest = max((min(ms, 86_400_000 - at * 1000) for at, ms in parts))
    assert found.value >= longest / 86_400_000 - 1e-9
