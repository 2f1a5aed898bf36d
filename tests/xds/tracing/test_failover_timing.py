"""How long a change of active took: its phases, one after the other, are the whole, whatever members tell."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.statesync.heartbeat.heartbeat import Beat, ClaimReport
from understudy.statesync.pool.records import MemberState, Owner
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.ids import takeover_seed
from understudy.xds.membership.claim_reports import WINDOW_NS, ClaimReports, ReportedClaim
from understudy.xds.tracing.failover_timing import OwnershipChange, critical_path

MS = 1_000_000
SECOND = 1_000 * MS
IDS = takeover_seed("cart", "a", "one")
TAKEOVER = OwnershipChange(
    kind=names.KIND_TAKEOVER,
    pool="cart",
    traceparent=IDS.traceparent,
    subject="a",
    cause="refused",
    moving={0: "one", 1: "one", 2: "one"},
    began=10 * SECOND,
    found=10 * SECOND + 30 * MS,
    written=10 * SECOND + 50 * MS,
    generation=2,
)
HANDOVER = replace(TAKEOVER, kind=names.KIND_HANDOVER, found=TAKEOVER.began, written=TAKEOVER.began)


def at(ms: float) -> int:
    """A time after the beginning."""
    return TAKEOVER.began + round(ms * MS)


def claimed(member: str = "b", slots: int = 3, **fields) -> ReportedClaim:
    times = {"began": at(55), "claimed": at(60), "opened": at(65), **fields}
    return ReportedClaim(member, ClaimReport(IDS.hex, slots, **times))


def lengths(path) -> dict[str, float]:
    return {phase.name: (phase.end - phase.start) / MS for phase in path}


def test_a_takeover_on_the_tables_word_waits_for_the_table():
    path = critical_path(TAKEOVER, [claimed()], 0, 0)
    assert lengths(path) == {"detect": 30, "decide": 20, "claim": 10, "catch_up": 5}


def test_a_takeover_on_a_callers_word_does_not_wait_for_the_table():
    waited = claimed(by_request=True, began=at(4), claimed=at(9), opened=at(10), answered=at(12), awaited=True)
    path = critical_path(TAKEOVER, [waited], 0, 0)
    assert lengths(path) == {"detect": 4, "claim": 5, "catch_up": 1, "first_ok": 2}


def test_an_answer_that_nobody_waited_for_is_no_part_of_it():
    path = critical_path(TAKEOVER, [claimed(answered=at(900))], 0, 0)
    assert path[-1].end == at(65)


def test_the_whole_ends_with_the_last_claim():
    quick = claimed("b", by_request=True, began=at(1), claimed=at(2), opened=at(3))
    path = critical_path(TAKEOVER, [quick, claimed("c", slots=1)], 0, 0)
    assert path[-1].end == at(65)
    assert {phase.attributes[names.MEMBER] for phase in path} == {"c"}


def test_planned_moves_are_the_moves_and_then_the_acknowledgements():
    assert lengths(critical_path(HANDOVER, (), at(40), at(70))) == {"move": 40, "ack": 30}
    assert lengths(critical_path(HANDOVER, (), at(40), at(20))) == {"move": 40}


def test_planned_moves_name_every_target_although_only_one_of_them_has_told_of_its_slot():
    moves = replace(HANDOVER, moving={0: "b", 1: "c", 2: "c"})
    assert moves.attributes_at_end([claimed("b", slots=1)])[names.TO] == "b, c"
    assert TAKEOVER.attributes_at_end([claimed("c"), claimed("b")])[names.TO] == "b, c"


TIMES = st.integers(-(10**19), 10**19)
CLAIMS = st.builds(
    ReportedClaim,
    st.sampled_from("bcd"),
    st.builds(
        ClaimReport,
        st.just(IDS.hex),
        st.integers(0, 300),
        TIMES,
        TIMES,
        by_request=st.booleans(),
        opened=TIMES,
        answered=TIMES,
        awaited=st.booleans(),
    ),
)


@given(st.sampled_from([TAKEOVER, HANDOVER]), st.lists(CLAIMS, min_size=1, max_size=5), TIMES, TIMES)
def test_whatever_is_told_the_phases_follow_each_other_without_gap_and_add_up(change, claims, settled, acked):
    path = critical_path(change, claims, settled, acked)
    at = change.began
    for phase in path:
        assert phase.start == at
        assert phase.end > phase.start
        assert phase.attributes[names.CRITICAL] is True
        at = phase.end
    assert sum(phase.end - phase.start for phase in path) == at - change.began
    assert len({phase.name for phase in path}) == len(path)


def world(owners):
    """As much of a world as is asked."""
    return type("Pool", (), {"owners": owners})()


def owner(active: str, traceparent: str = IDS.traceparent) -> Owner:
    return Owner(active, "one", 2, traceparent=traceparent)


def test_it_is_served_when_everybody_who_won_slots_says_so():
    pool = world({0: owner("b"), 1: owner("b"), 2: owner("c")})
    assert TAKEOVER.served(pool, [claimed("b", 2), claimed("c", 1)])
    assert not TAKEOVER.served(pool, [claimed("b", 2)])
    assert not TAKEOVER.served(pool, [claimed("b", 1), claimed("c", 1)])
    assert not TAKEOVER.served(pool, [claimed("b", 2), claimed("c", 1, opened=0)])
    assert not TAKEOVER.served(pool, [claimed("b", 2), claimed("c", 1, waiting=True)])
    assert not TAKEOVER.served(world({}), [])


def test_slots_that_moved_on_since_are_others_business():
    pool = world({0: owner("b"), 1: owner("b"), 2: owner("d", "")})
    assert TAKEOVER.served(pool, [claimed("b", 2), claimed("c", 1)])


def test_it_was_served_though_all_of_its_slots_have_moved_on_since():
    pool = world({slot: owner("d", "") for slot in range(3)})
    assert TAKEOVER.served(pool, [claimed("b", 2), claimed("c", 1)])
    assert not TAKEOVER.served(pool, [claimed("b", 2, opened=0), claimed("c", 1)])
    assert not TAKEOVER.served(pool, [])


def test_a_caller_who_was_refused_knew_it_before_the_closed_socket_did():
    change = replace(TAKEOVER, closed=True, last_beat=at(-80))
    refused = claimed(by_request=True, began=at(-20))
    assert (change.corrected([refused]).began, change.corrected([refused]).doubt) == (at(-20), 60 * MS)
    assert change.corrected([claimed(by_request=True, began=at(-90))]).began == at(-80)
    assert change.corrected([claimed(by_request=True, began=at(3))]) == change
    assert replace(change, closed=False).corrected([refused]).began == TAKEOVER.began


def beat(sent: int, *claims: ClaimReport, boot: str = "one") -> Beat:
    return Beat("cart", "b", boot, MemberState.UP, 1, sent=sent, claims=claims)


@given(
    st.integers(-(10**18), 10**18),
    st.lists(st.integers(0, 300), min_size=1, max_size=20),
    st.integers(0, 50),
)
def test_a_members_times_are_ours_but_for_the_quickest_way_of_its_beats(ahead, ways_ms, happened_ms):
    told = ClaimReports()
    claim = ClaimReport(
        IDS.hex, 1, at(happened_ms) + ahead, at(happened_ms + 7) + ahead, opened=at(happened_ms + 9) + ahead
    )
    now = 0
    for number, way in enumerate(ways_ms):
        now = max(now, at(100 + 100 * number + way))
        told.on_beat(beat(at(100 + 100 * number) + ahead, claim), now)
    (found,) = told.claims_of(IDS.hex, now)
    late = found.report.began - at(happened_ms)
    assert 0 <= late <= min(ways_ms) * MS + 300 * MS * (len(ways_ms) > 1)
    assert found.report.claimed - found.report.began == 7 * MS
    assert found.report.opened - found.report.claimed == 2 * MS


def test_beats_that_were_late_are_no_worse_than_the_best_of_late():
    told = ClaimReports()
    told.on_beat(beat(SECOND), SECOND + MS)
    for later in (WINDOW_NS, WINDOW_NS + SECOND):
        told.on_beat(beat(SECOND + later), SECOND + later + 40 * MS)
    assert told.last_beat(("b", "one")) == 2 * SECOND + WINDOW_NS + MS


def test_a_drifting_clock_is_followed():
    told = ClaimReports()
    told.on_beat(beat(SECOND), SECOND)
    for later in (WINDOW_NS, 2 * WINDOW_NS, 3 * WINDOW_NS):
        told.on_beat(beat(SECOND + later - 5 * MS), SECOND + later)
    assert told.last_beat(("b", "one")) == SECOND + 3 * WINDOW_NS


def test_no_time_that_is_told_lies_in_the_future():
    told = ClaimReports()
    told.on_beat(beat(SECOND, ClaimReport(IDS.hex, 1, 10**30, 10**30, opened=10**30)), at(0))
    (found,) = told.claims_of(IDS.hex, at(1))
    assert found.served_at == at(1)


def stood(sent: int, *times: tuple[float, float]) -> Beat:
    return replace(beat(sent), stood=times)


def test_a_standstill_counts_if_it_was_when_the_member_was_taken_for_dead():
    told, who = ClaimReports(), ("b", "one")
    told.on_beat(stood(SECOND, (5.0, 1.0), (0.3, 0.2)), 100 * SECOND)
    assert told.standstill(who, 95 * SECOND, 95 * SECOND + SECOND // 2) == 5 * SECOND
    assert told.standstill(who, 92 * SECOND, 95 * SECOND) == 0, "it was silent long before it stood still"
    assert told.standstill(who, 99 * SECOND + SECOND // 10, 99 * SECOND + SECOND // 2) == 0, "that was after it woke"
    assert told.standstill(("b", "another"), 95 * SECOND, 96 * SECOND) == 0
    told.forget_all_but([])
    assert told.standstill(who, 95 * SECOND, 96 * SECOND) == 0


@pytest.mark.parametrize(
    ("after", "found_ms"),
    [
        ([(500, 4_505), (600, 4_601), (700, 4_702)], 4_001),
        ([(500, 4_500), (4_600, 4_601), (4_700, 4_701)], 0),
        ([(4_500, 4_501), (4_600, 4_601)], 0),
    ],
    ids=["machine stood still", "network was cut", "process stood still"],
)
def test_a_clock_that_has_fallen_behind_stood_still_with_its_machine(after, found_ms):
    told = ClaimReports()
    for sent, arrived in (*((100 * number, 100 * number) for number in range(5)), *after):
        told.on_beat(beat(at(sent)), at(arrived))
    assert told.standstill(("b", "one"), at(500), at(900)) == found_ms * MS


def test_a_beat_tells_news_once_and_forgets_who_is_gone():
    told = ClaimReports()
    claim = ClaimReport(IDS.hex, 1, SECOND, SECOND)
    assert told.on_beat(beat(SECOND, claim), at(0))
    assert not told.on_beat(beat(SECOND, claim), at(1))
    assert told.on_beat(beat(SECOND, replace(claim, opened=SECOND)), at(2))
    told.forget_all_but([])
    assert len(told.claims_of(IDS.hex, at(3))) == 1
    assert told.claims_of("f" * 32, at(3)) == []


def test_a_claim_counts_though_later_beats_tell_of_newer_ones_only():
    """A beat tells of 32 claims. Callers can make a member claim more than that from one other, a slot at a time."""
    told = ClaimReports()
    claims = [ClaimReport(IDS.hex, 1, SECOND, SECOND + number, opened=2 * SECOND) for number in range(40)]
    for end in range(1, 41):
        told.on_beat(beat(SECOND, *claims[max(0, end - 32) : end]), at(end))
    found = told.claims_of(IDS.hex, at(50))
    assert TAKEOVER.served(world({slot: owner("b") for slot in range(3)}), found)
    assert sum(claim.report.slots for claim in found) == 40


@pytest.mark.parametrize(
    "wrong",
    [
        *({"sent": "now"}, {"sent": True}, {"request": 5}, {"claims": 1}, {"claims": {"a": 1}}, {"claims": ["x"]}),
        *({"stood": 1}, {"stood": [1.0]}, {"stood": [[1.0]]}, {"stood": [[1.0, -1.0]]}, {"stood": [["1", 1.0]]}),
        *({"stood": [[1e300, 0.0]]}, {"stood": [[True, 0.0]]}),
        *({"claims": [{}]}, {"claims": [{"trace": "t", "slots": 1, "began": "x", "claimed": 1}]}),
    ],
)
def test_a_beat_with_nonsense_in_it_is_refused(wrong):
    raw = {"pool": "cart", "member": "b", "boot": "one", "state": "UP", "applied": 1}
    assert Beat.of(raw).claims == ()
    with pytest.raises((TypeError, ValueError)):
        Beat.of(raw | wrong)
