"""The failover benchmark judges rightly: what counts as failed, as a gap, as lost and as a needless move."""

from dataclasses import replace

from bench.failover import table
from bench.failover_load import Event, Op, effect_of
from bench.failover_proxies import haproxy_config

KILLED = Event("app-1", struck=10.0, back=12.0, end=15.0)


def op(client: int, due: float, server: str = "", *, took: float = 0.01, **more: bool) -> Op:
    return Op(client, due, due + took, ok=bool(server), repeatable=more.pop("repeatable", True), server=server, **more)


def test_a_gap_lasts_from_the_first_request_after_the_blow_to_the_first_good_answer():
    history = [
        op(1, 9.0, "app-1"),
        op(1, 10.5),
        op(1, 10.6, again=True),
        op(1, 10.7, "app-2", again=True, took=0.1),
        op(2, 9.0, "app-1"),
        op(2, 9.99, "app-2", took=0.21),
        op(3, 9.0, "app-2"),
        op(3, 10.5, "app-2", took=0.5),
    ]
    effect = effect_of(history, KILLED)
    assert sorted(round(gap) for gap in effect.gaps) == [210, 300]
    assert (effect.requests, effect.failed_repeatable, effect.failed_other) == (3, 1, 0)


def test_the_gap_of_a_planned_change_is_the_longest_wait_until_the_member_is_out_of_service():
    history = [
        op(1, 9.0, "app-1"),
        op(1, 10.5, "app-1"),
        op(1, 11.5, "app-2", took=0.3),
        op(1, 12.5, "app-2", took=0.9),
        op(2, 9.0, "app-1"),
        op(2, 10.5, "app-1", took=0.2, repeatable=False),
        op(2, 11.5, "app-2"),
        op(3, 9.0, "app-1"),
        op(3, 10.5, "app-1"),
        op(3, 11.5),
        op(3, 11.6, "app-2", again=True, took=0.4),
    ]
    effect = effect_of(history, replace(KILLED, planned=True))
    assert sorted(round(gap) for gap in effect.gaps) == [300, 500]
    assert [round(gap) for gap in effect.gaps_other] == [200]
    assert [round(gap) for gap in effect_of(history, KILLED).gaps] == [10, 10]


def test_failed_requests_that_could_not_be_repeated_are_told_apart_and_a_lost_session_counts_once():
    history = [
        op(1, 9.0, "app-1"),
        op(1, 10.5, repeatable=False),
        op(2, 9.0, "app-1"),
        op(2, 10.5, lost=True),
        op(2, 10.6, "app-2", again=True, lost=True),
    ]
    effect = effect_of(history, KILLED)
    assert (effect.failed_repeatable, effect.failed_other, effect.lost) == (1, 1, 1)


def test_a_client_that_starts_a_new_session_has_not_moved():
    history = [op(1, 9.0, "app-2"), op(1, 12.5, lost=True), op(1, 12.6, "app-3", again=True)]
    assert effect_of(history, KILLED).moved == 0


def test_leaving_the_dead_and_going_to_the_returned_is_needed_and_every_other_move_is_not():
    history = [
        op(1, 9.0, "app-1"),
        op(1, 10.5, "app-2"),
        op(1, 12.5, "app-1"),
        op(2, 9.0, "app-3"),
        op(2, 12.5, "app-1"),
        op(3, 9.0, "app-2"),
        op(3, 10.5, "app-3"),
        op(4, 9.0, "app-3"),
        op(4, 10.5, "app-3"),
    ]
    assert effect_of(history, KILLED).moved == 1


def test_an_answer_to_a_repeated_request_is_no_move_but_the_next_one_tells():
    """A frozen member's request was repeated at two others; it lives at one of them, or did not move at all."""
    history = [
        op(1, 9.0, "app-1"),
        op(1, 10.1, "app-3", repeated=True),
        op(1, 11.0, "app-2"),
        op(2, 9.0, "app-3"),
        op(2, 10.1, "app-2", repeated=True),
        op(2, 11.0, "app-3"),
        op(3, 9.0, "app-3"),
        op(3, 10.1, "app-2", repeated=True),
        op(3, 11.0, "app-2"),
        op(4, 8.0, "app-3"),
        op(4, 9.0, "app-2", repeated=True),
        op(4, 11.0, "app-3"),
    ]
    assert effect_of(history, KILLED).moved == 1


def test_a_session_that_was_never_served_again_waits_until_the_event_is_over():
    assert effect_of([op(1, 9.0, "app-1"), op(1, 11.0)], KILLED).gaps == (4000.0,)


def test_haproxy_repeats_only_what_may_be_repeated():
    text = haproxy_config({"app-1": "127.0.0.1:1"}, "127.0.0.1:2", {"one": "127.0.0.1:3"}, "socket")
    assert "http-request disable-l7-retry unless repeatable" in text
    assert "server app-1 127.0.0.1:1 check" in text


def test_the_table_says_why_a_row_is_missing_instead_of_leaving_it_to_the_reader():
    gap = {"p50": 4.0, "p99": 47.0, "max": 126.0}
    one = {"events": 20, "failed_repeatable": 0, "failed_other": 1, "gap_ms": gap, "lost": 0, "moved_needlessly": 0}
    shown = table({"cells": {"app/understudy": one}})
    assert "| (e) Understudy, `sync` | 20 | 0 | 1 | 4 | 47 | 126 | - | 0 | 0 |" in shown
    assert "(a) to (d): the application is all of their member: see kill -9 of a member." in shown
