"""Who is refused when commits lag behind, and who never is."""

import pytest

from understudy.statesync.pool.priority import Priority
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


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(("writes", "delay"), [(0, 0.3), (13, 0.0), (50, 0.0), (60, 2.0), (100, 0.0), (110, 5.0)])
def test_low_calls_are_refused_before_normal_ones_and_these_before_critical_ones(
    new: bool, writes: int, delay: float
) -> None:
    now = Backpressure(writes, delay)
    refused = [bool(now.refusal(new=new, bound=100, priority=one)) for one in ("low", "normal", "critical")]
    assert refused == sorted(refused, reverse=True)


@pytest.mark.parametrize(
    ("priority", "most_new", "most"), [("low", 12, 49), ("normal", 49, 99), ("critical", 124, 124)]
)
def test_how_many_writes_may_wait_by_priority(priority: Priority, most_new: int, most: int) -> None:
    for new, allowed in ((True, most_new), (False, most)):
        taken = [n for n in range(150) if not Backpressure(n, 0.0).refusal(new=new, bound=100, priority=priority)]
        assert max(taken) == allowed
