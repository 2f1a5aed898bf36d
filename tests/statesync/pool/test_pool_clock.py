"""The pool's time: whose clock counts, and whose does not."""

import pytest

from understudy.statesync.pool.pool_clock import (
    ALONE_FROM,
    APART_MS,
    KEPT,
    SAID_FROM,
    PoolClock,
    PoolTime,
    fault_of,
    judge,
)

HOURS = 7_200_000
RIGHT = PoolTime(0, True)


@pytest.mark.parametrize(
    ("own", "others", "before", "ahead", "agreed"),
    [
        pytest.param(HOURS, [0, 5], None, 5, True, id="the majority counts, whatever the own clock says"),
        pytest.param(0, [3, HOURS], None, 3, True, id="another's clock is outvoted"),
        pytest.param(HOURS, [HOURS, HOURS], RIGHT, HOURS, True, id="a time that all agree on is taken over"),
        pytest.param(HOURS, [0], RIGHT, 0, True, id="without a majority the time that was agreed goes on"),
        pytest.param(HOURS, [], RIGHT, 0, True, id="a jump of the own clock counts for nothing while nobody is heard"),
        pytest.param(40, [], RIGHT, 40, True, id="but its drift is followed"),
        pytest.param(0, [HOURS], None, HOURS, False, id="two that differ: the latest for stamps, and nothing ends"),
        pytest.param(0, [], None, 0, False, id="nobody was heard yet"),
        pytest.param(0, [HOURS, -HOURS, 0, 2 * HOURS], None, 2 * HOURS, False, id="two of five are no majority"),
        pytest.param(0, [APART_MS, APART_MS // 2], None, APART_MS // 2, True, id="so far apart they still agree"),
    ],
)
def test_the_pools_time(own, others, before, ahead, agreed):
    found = judge(own, others, before, alone=False)

    assert (found.ahead, found.agreed) == (ahead, agreed)
    assert found.deviation == (own - ahead if agreed else 0)


def test_who_is_alone_goes_by_its_own_clock():
    assert judge(7, [], None, alone=True) == PoolTime(7, True, 0, 1, 1)


@pytest.mark.parametrize(
    ("now", "told", "text"),
    [
        (PoolTime(0, True, 9_000), "", ""),
        (PoolTime(0, True, 26_000), "", "its clock is about 30 s ahead of the pool's, which counts here"),
        (PoolTime(0, True, -300_000), "", "its clock is about 5 min behind the pool's, which counts here"),
        (PoolTime(0, True, HOURS), "", "its clock is about 2 h ahead of the pool's, which counts here"),
        (PoolTime(0, True, 9_000), "said", "its clock is about 10 s ahead of the pool's, which counts here"),
        (PoolTime(0, True, 4_000), "said", ""),
        (PoolTime(0, False, 0), "", "no other clock of the pool is known yet, so no session expires here"),
        (PoolTime(0, False, 0, 2, 1), "", "only 1 of 2 clocks agree, so no session expires here"),
    ],
)
def test_a_wrong_clock_is_told_in_words(now, told, text):
    assert fault_of(now, told) == text


class Machine:
    """A wall clock and a monotonic one, to be moved by hand; both in seconds."""

    def __init__(self) -> None:
        self.wall, self.passed = 1_000_000.0, 500.0
        self.clock = PoolClock(lambda: round(self.wall * 1000), lambda: self.passed)

    def pass_time(self, seconds: float, *, alone: bool = False) -> None:
        self.wall += seconds
        self.passed += seconds
        self.clock.look(alone=alone)

    def hear(self, who: str, wall: float, *, after: float = 0.0) -> None:
        self.clock.heard(who, round(wall * 1000), self.passed, self.passed + after)
        self.clock.look(alone=False)

    @property
    def now(self) -> float:
        return self.clock.now_ms() / 1000


def test_a_jump_of_the_own_clock_changes_no_time_not_even_before_the_next_look():
    machine = Machine()
    for who in ("b", "c"):
        machine.hear(who, machine.wall)
    right = machine.wall

    machine.wall += 7200
    assert machine.clock.now_and_expiry_ms() == (round(right * 1000), round(right * 1000))
    assert machine.clock.expiry_ms() == machine.clock.now_ms() == round(right * 1000)
    machine.pass_time(5)
    assert machine.now == right + 5
    assert machine.clock.time.deviates
    assert "2 h ahead" in machine.clock.fault

    machine.wall -= 7200
    machine.pass_time(1)
    assert machine.clock.fault == ""


def test_clocks_that_are_not_heard_any_more_are_forgotten_and_the_time_goes_on():
    machine = Machine()
    machine.hear("b", machine.wall)
    machine.wall += 7200
    machine.pass_time(KEPT + 1)

    assert machine.clock.time.clocks == 1
    assert machine.now == machine.wall - 7200


def test_an_answer_that_took_too_long_says_nothing_and_of_any_other_half_its_way_is_counted():
    machine = Machine()
    machine.hear("b", machine.wall, after=5.0)
    assert machine.clock.time.clocks == 1

    machine.hear("b", machine.wall + 1.0, after=1.0)
    assert machine.clock.distances() == {"b": 0.5}


def test_nothing_ends_until_a_time_is_agreed_and_that_is_said_when_the_others_had_time_to_answer():
    machine = Machine()
    assert machine.clock.expiry_ms() == 0
    assert machine.clock.now_and_expiry_ms() == (machine.clock.now_ms(), 0)
    machine.pass_time(1)
    assert machine.clock.fault == ""
    machine.pass_time(SAID_FROM)
    assert machine.clock.fault
    machine.hear("b", machine.wall)
    assert machine.clock.expiry_ms() > 0
    assert machine.clock.fault == ""


def test_a_member_alone_in_the_pool_waits_a_minute_for_others():
    machine = Machine()
    machine.pass_time(ALONE_FROM - 1, alone=True)
    assert machine.clock.expiry_ms() == 0
    machine.pass_time(1, alone=True)
    assert machine.clock.expiry_ms() == round(machine.wall * 1000)
