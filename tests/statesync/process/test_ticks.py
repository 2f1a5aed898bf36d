"""Services with the same interval wake together."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.statesync.process import ticks
from understudy.statesync.process.ticks import Alarm, tick, until_tick


@given(now=st.floats(0, 1e7), other=st.floats(0, 1), interval=st.sampled_from([0.05, 0.1, 0.4]))
def test_who_sleeps_until_a_tick_wakes_at_a_multiple_of_the_interval(now, other, interval):
    with pytest.MonkeyPatch.context() as patched:
        ends = []
        for at in (now, now + other):
            patched.setattr(ticks.time, "monotonic", lambda at=at: at)
            rest = until_tick(interval)
            assert interval / 4 <= rest <= interval * 5 / 4 + 1e-6
            ends.append((at + rest) / interval)
        assert abs(ends[1] - ends[0] - round(ends[1] - ends[0])) < 1e-3


async def test_all_who_wait_for_a_tick_are_woken_by_one_timer(monkeypatch: pytest.MonkeyPatch):
    loop = asyncio.get_running_loop()
    timers: list[float] = []
    later = loop.call_later

    def counted(delay: float, *rest: object) -> asyncio.TimerHandle:
        timers.append(delay)
        return later(delay, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_later", counted)
    waiting = [tick(0.05) for _ in range(3)]
    given_up = asyncio.create_task(_wait(waiting[0]))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.gather(*waiting[1:])
    assert given_up.cancelled() or waiting[0].cancelled()
    assert len(timers) == 1
    await tick(0.05)  # and the next one comes too
    assert len(timers) == 2


async def _wait(future: "asyncio.Future[None]") -> None:
    await future


async def test_an_alarm_ends_the_wait_under_way_or_the_next_one_and_no_other():
    alarm, hour = Alarm(), 3600.0
    alarm.set()
    assert alarm.is_set()
    await alarm.wait(hour)
    assert not alarm.is_set()
    waiting = asyncio.create_task(alarm.wait(hour))
    await asyncio.sleep(0)
    assert not waiting.done()
    alarm.set()
    alarm.set()
    async with asyncio.timeout(20):
        await waiting
        await alarm.wait(0.05)  # the tick
    assert not alarm.is_set()
    third = asyncio.create_task(alarm.wait(hour))
    await asyncio.sleep(0)
    assert not third.done()
    third.cancel()
    await asyncio.gather(third, return_exceptions=True)
