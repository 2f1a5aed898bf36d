"""What a test is told when something that it waits for does not come."""

import asyncio

import pytest

from tests.harness.waiting import until


async def test_the_failure_names_the_last_answer_though_the_deadline_cut_off_a_later_call():
    calls = 0

    async def three_of_four() -> bool:
        nonlocal calls
        calls += 1
        if calls > 1:
            await asyncio.Event().wait()
        raise LookupError("3 of 4")

    with pytest.raises(AssertionError, match=r"^all: not within 0\.1 s; last seen: LookupError\('3 of 4'\); .*cut off"):
        await until(three_of_four, 0.1, "all")


async def test_a_timeout_of_the_condition_itself_is_an_answer():
    async def asks() -> bool:
        raise TimeoutError("the member did not answer")

    with pytest.raises(AssertionError, match=r"last seen: TimeoutError\('the member did not answer'\)$"):
        await until(asks, 0.1)


async def test_a_first_call_that_hangs_is_told():
    with pytest.raises(AssertionError, match=r"last seen: 'nothing'; the last call was cut off after 0\.\d s$"):
        await until(lambda: asyncio.Event().wait(), 0.1)
