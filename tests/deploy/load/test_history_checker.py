"""The history checker must find each kind of damage in a history, and none in a clean one."""

import math
from dataclasses import replace

import pytest

from understudy.deploy.load.history_checker import MemberKill, Op, check_history, percentile

KILLING = MemberKill("cart-1", killed_at=5.0, rejoined_at=10.0)


def read(session, at, by, seen=None, took=0.01):
    return Op(session, "read", at, at + took, 200, by, seen=seen)


def write(session, at, by, sku, status=200, took=0.01):
    return Op(session, "write", at, at + took, status, by, wrote=sku)


CLEAN = [
    write("a", 4.0, "cart-1", "a1"),
    write("a", 5.0, "cart-2", "a2", took=0.03),
    read("a", 6.0, "cart-2", {"a1": 1, "a2": 1}),
    read("a", 12.0, "cart-1", {"a1": 1, "a2": 1}),
    write("b", 4.5, "cart-3", "b1"),
    read("b", 5.5, "cart-3", {"b1": 1}),
    read("b", 14.0, "cart-3", {"b1": 1}),
]
CLEAN_END = {"a": {"a1": 1, "a2": 1}, "b": {"b1": 1}}


def test_a_clean_failover_with_a_return_is_flawless():
    result = check_history(CLEAN, CLEAN_END, KILLING, pacing=1.0)
    assert result.flawless
    assert (result.sessions, result.requests, result.acknowledged_writes) == (2, 7, 3)
    assert (result.sessions_touched, result.rejoin_sessions_moved) == (1, 1)
    assert result.client_gap_ms.max == pytest.approx(20.0)


def test_the_sessions_of_every_member_that_was_killed_count():
    both = replace(KILLING, others=frozenset({"cart-3"}))
    history = [*CLEAN[:5], read("b", 5.6, "cart-4", {"b1": 1}), read("b", 14.0, "cart-3", {"b1": 1})]
    result = check_history(history, CLEAN_END, both, pacing=1.0)
    assert (result.sessions_touched, result.moved_needlessly) == (2, 0)
    assert check_history(history, CLEAN_END, KILLING, pacing=1.0).sessions_touched == 1


def test_an_acknowledged_write_that_is_missing_at_the_end_is_lost():
    result = check_history(CLEAN, {**CLEAN_END, "a": {"a1": 1}}, KILLING)
    assert (result.lost_writes, result.flawless) == (1, False)


def test_a_session_that_cannot_be_read_at_the_end_has_lost_all_its_writes():
    assert check_history(CLEAN, {**CLEAN_END, "a": None}, KILLING).lost_writes == 2
    assert check_history(CLEAN, {"b": {"b1": 1}}, KILLING).lost_writes == 2


def test_a_write_found_twice_is_duplicated_whether_or_not_it_was_acknowledged():
    assert check_history(CLEAN, {**CLEAN_END, "b": {"b1": 2}}, KILLING).duplicated_writes == 1
    refused = [*CLEAN, write("b", 5.1, "", "b2", status=503)]
    result = check_history(refused, {**CLEAN_END, "b": {"b1": 1, "b2": 2}}, KILLING)
    assert (result.duplicated_writes, result.failed_requests, result.unknown_writes) == (1, 1, 1)


@pytest.mark.parametrize("content", [{"b1": 1}, {"b1": 1, "b2": 1}])
def test_a_write_without_an_answer_may_have_had_its_effect_or_not(content):
    history = [*CLEAN, replace(write("b", 5.1, "", "b2", status=0), error="reset")]
    result = check_history(history, {**CLEAN_END, "b": content}, KILLING)
    assert (result.lost_writes, result.duplicated_writes, result.unexplained_items) == (0, 0, 0)
    assert result.failed_requests == 1
    assert result.failures == ("write b: reset after 0.0 s, attempts 1",)


def test_content_of_another_session_is_found():
    result = check_history(CLEAN, {**CLEAN_END, "b": {"b1": 1, "a1": 1}}, KILLING)
    assert (result.unexplained_items, result.flawless) == (1, False)


def test_a_read_that_misses_an_acknowledged_write_is_stale():
    result = check_history([*CLEAN, read("a", 6.5, "cart-2", {"a1": 1})], CLEAN_END, KILLING)
    assert (result.stale_reads, result.flawless) == (1, False)


def test_a_read_that_ran_beside_the_write_may_miss_it():
    assert check_history([*CLEAN, read("a", 5.02, "cart-2", {"a1": 1}, took=0.1)], CLEAN_END, KILLING).stale_reads == 0


def test_a_single_answer_of_a_standby_is_no_move_and_is_told():
    home, away = (lambda at: read("s", at, "cart-1")), (lambda at: read("s", at, "cart-2"))
    returned = check_history(
        [read("s", at, member) for at, member in ((9.0, "cart-2"), (12.0, "cart-1"), (13.0, "cart-2"))],
        {"s": {}},
        KILLING,
    )
    assert (returned.moved_needlessly, returned.answered_elsewhere) == (0, 1)
    once = check_history([home(1.0), away(2.0), home(3.0)], {"s": {}})
    assert (once.moved_needlessly, once.answered_elsewhere) == (0, 1)
    assert check_history([home(1.0), away(2.0), away(3.0), home(4.0)], {"s": {}}).moved_needlessly == 1
    assert check_history([home(1.0), away(2.0), home(3.0), away(4.0), away(5.0)], {"s": {}}).moved_needlessly == 1


def test_while_envoy_does_not_trust_the_returned_member_yet_its_standby_answers():
    def seen(*members):
        return check_history([read("s", 9.0 + number, by) for number, by in enumerate(members)], {"s": {}}, KILLING)

    on_the_way = seen("cart-2", "cart-3", "cart-1", "cart-1")
    assert (on_the_way.moved_needlessly, on_the_way.answered_elsewhere) == (0, 1)
    assert seen("cart-2", "cart-3", "cart-3", "cart-1").moved_needlessly == 1
    assert seen("cart-2", "cart-3", "cart-1", "cart-2", "cart-2").moved_needlessly == 1


def test_an_answer_to_a_repeated_request_is_no_move_unless_the_next_one_comes_from_there_too():
    repeated = replace(read("s", 2.0, "cart-2"), attempts=2)
    at_home, away = read("s", 3.0, "cart-1"), read("s", 3.0, "cart-2")
    assert check_history([read("s", 1.0, "cart-1"), repeated, at_home], {"s": {}}).moved_needlessly == 0
    assert check_history([read("s", 1.0, "cart-1"), repeated, away], {"s": {}}).moved_needlessly == 1


@pytest.mark.parametrize(
    "history",
    [
        pytest.param([read("s", 4.0, "cart-2"), read("s", 6.0, "cart-3")], id="a survivor's session moves"),
        pytest.param([read("s", 3.0, "cart-1"), read("s", 4.0, "cart-2")], id="moved before the kill"),
        pytest.param(
            [read("s", 4.0, "cart-1"), read("s", 5.5, "cart-2"), read("s", 6.5, "cart-3")],
            id="moved twice by one kill",
        ),
        pytest.param([read("s", 9.0, "cart-2"), read("s", 12.0, "cart-3")], id="moved between survivors"),
        pytest.param(
            [
                *(read("s", at, member) for at, member in ((9.0, "cart-2"), (12.0, "cart-1"), (12.5, "cart-1"))),
                read("s", 13.0, "cart-2"),
            ],
            id="left the returned member again",
        ),
    ],
)
def test_a_session_that_leaves_a_living_member_moved_needlessly(history):
    result = check_history(history, {"s": {}}, KILLING)
    assert (result.moved_needlessly, result.flawless) == (1, False)


def test_who_made_a_session_need_not_be_who_serves_it():
    made = Op("s", "create", 0.0, 0.01, 201, "cart-2")
    assert check_history([made, read("s", 1.0, "cart-3"), read("s", 6.0, "cart-3")], {"s": {}}, KILLING).flawless


def test_without_a_kill_every_move_is_needless():
    assert check_history([read("s", 1.0, "cart-1"), read("s", 2.0, "cart-2")], {"s": {}}).moved_needlessly == 1


def test_a_touched_session_that_never_got_an_answer_again_spoils_the_run():
    result = check_history([read("s", 4.0, "cart-1")], {"s": {}}, KILLING)
    assert (result.sessions_touched, result.never_answered, result.flawless) == (1, 1, False)


def test_the_gap_ends_at_the_first_good_answer_not_at_a_refusal():
    history = [read("s", 4.0, "cart-1"), write("s", 5.0, "", "s1", status=503), read("s", 6.0, "cart-2")]
    result = check_history(history, {"s": {}}, KILLING, pacing=1.0)
    assert result.client_gap_ms.max == pytest.approx(1000.0)


def test_an_answer_the_dying_member_still_gave_counts_as_before():
    history = [read("s", 4.995, "cart-1"), read("s", 6.0, "cart-2", took=0.015)]
    result = check_history(history, {"s": {}}, KILLING, pacing=1.0)
    assert result.client_gap_ms.max == pytest.approx(10.0)


def test_sessions_of_survivors_have_no_gap():
    result = check_history([read("s", 4.0, "cart-2"), read("s", 8.0, "cart-2")], {"s": {}}, KILLING)
    assert result.sessions_touched == 0
    assert math.isnan(result.client_gap_ms.p99)


def test_failures_after_the_return_are_counted_for_the_rejoin():
    history = [read("s", 4.0, "cart-2"), replace(read("s", 11.0, ""), status=503)]
    assert check_history(history, {"s": {}}, KILLING).rejoin_failed_requests == 1


def test_percentiles_are_values_that_occurred():
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile([7.0], 0.99) == 7.0
