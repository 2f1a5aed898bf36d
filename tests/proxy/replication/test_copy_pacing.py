"""How much work on copies is done at a time: pure, with a clock of its own."""

import pytest

from understudy.proxy.replication.copy_pacing import GROUP, MOSTLY_WITHIN, PER_SECOND, CopyPacing


def slots_done(pacing: CopyPacing, left: int, *, start: float, seconds: float, every: float = 0.05) -> int:
    """How many of ``left`` slots are done by looks at regular times."""
    done, now = 0, start
    while now <= start + seconds:
        allowed = min(pacing.allowed(now, left - done), left - done)
        pacing.took(allowed)
        done += allowed
        now += every
    return done


def test_a_few_slots_are_done_at_once() -> None:
    assert CopyPacing().allowed(1000.0, GROUP) == GROUP


def test_the_rest_comes_in_groups_at_the_usual_rate() -> None:
    pacing = CopyPacing()
    assert pacing.allowed(1000.0, 200) == GROUP
    pacing.took(GROUP)
    assert pacing.allowed(1000.0 + 0.5 * GROUP / PER_SECOND, 200 - GROUP) == 0
    assert pacing.allowed(1000.0 + 1.01 * GROUP / PER_SECOND, 200 - GROUP) == GROUP


def test_the_last_few_do_not_wait_for_a_whole_group() -> None:
    pacing = CopyPacing()
    pacing.took(pacing.allowed(1000.0, GROUP))
    assert pacing.allowed(1000.0 + 3.01 / PER_SECOND, 3) == 3


@pytest.mark.parametrize("left", [100, 1000, 16_384])
def test_most_is_done_within_a_few_seconds_however_much_it_is(left: int) -> None:
    seconds = max(2 * MOSTLY_WITHIN, 1.5 * left / PER_SECOND) if left <= 1000 else 2 * MOSTLY_WITHIN
    assert slots_done(CopyPacing(), left, start=1000.0, seconds=seconds) > 0.8 * left


def test_a_pause_does_not_save_up_work() -> None:
    pacing = CopyPacing()
    pacing.took(pacing.allowed(1000.0, 200))
    assert pacing.allowed(2000.0, 100) == GROUP
