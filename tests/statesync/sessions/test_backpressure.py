"""Who is refused when commits lag behind, and who never is."""

import pytest

from understudy.statesync.sessions.backpressure import NEW_SESSION_DELAY, Backpressure

BOUND = 100


@pytest.mark.parametrize(
    ("writes", "delay", "refused"),
    [
        pytest.param(0, 0.0, "", id="nothing waits"),
        pytest.param(49, NEW_SESSION_DELAY, "", id="much waits, but not for long"),
        pytest.param(1, NEW_SESSION_DELAY + 0.1, "new", id="one write waits for too long"),
        pytest.param(50, 0.01, "new", id="half of what may wait"),
        pytest.param(99, 4.0, "new", id="one less than may wait"),
        pytest.param(100, 0.01, "new established", id="as much as may wait"),
    ],
)
def test_new_sessions_are_refused_before_established_ones(writes: int, delay: float, refused: str) -> None:
    pressure = Backpressure(writes, delay)

    assert bool(pressure.refusal(new=True, bound=BOUND)) == ("new" in refused)
    assert bool(pressure.refusal(new=False, bound=BOUND)) == ("established" in refused)


def test_a_bound_of_one_still_lets_a_single_session_begin() -> None:
    assert not Backpressure(0, 0.0).refusal(new=True, bound=1)
