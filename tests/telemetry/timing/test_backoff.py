"""Pauses double up to a maximum, and start anew after a success."""

from understudy.telemetry.timing.backoff import Backoff


def test_pauses_double_up_to_the_longest():
    backoff = Backoff(0.1, 0.5)
    assert [backoff.next() for _ in range(5)] == [0.1, 0.2, 0.4, 0.5, 0.5]


def test_a_reset_starts_with_the_shortest_pause():
    backoff = Backoff(0.1, 5.0)
    for _ in range(1000):
        backoff.next()
    backoff.reset()
    assert [backoff.next(), backoff.next()] == [0.1, 0.2]
