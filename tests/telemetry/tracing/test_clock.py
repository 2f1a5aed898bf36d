"""The clock of a process."""

from understudy.telemetry.tracing.clock import Clock


class Hands:
    """Two clocks that a test sets by hand, in ns."""

    wall = 1_000_000
    monotonic = 500


def test_a_changed_wall_clock_changes_no_length():
    hands = Hands()
    clock = Clock(lambda: hands.wall, lambda: hands.monotonic)
    assert clock.now_ns() == 1_000_000
    hands.wall -= 900_000
    hands.monotonic += 250
    assert clock.now_ns() == 1_000_250


def test_an_earlier_monotonic_reading_finds_its_place():
    hands = Hands()
    hands.monotonic = 3_000_000_000
    clock = Clock(lambda: hands.wall, lambda: hands.monotonic)
    assert clock.at_ns(2.5) == clock.now_ns() - 500_000_000
