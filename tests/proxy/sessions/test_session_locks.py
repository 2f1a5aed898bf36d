"""The lock of each session that is being written."""

import asyncio

import pytest

from understudy.proxy.sessions.session_locks import SessionLocks


async def test_those_who_wait_for_a_lock_get_it_one_after_the_other_in_the_order_of_asking() -> None:
    locks, order = SessionLocks(), list[int]()
    locks.take(1, "k")

    async def write(number: int) -> None:
        await locks.acquire(1, "k")
        order.append(number)
        await asyncio.sleep(0)
        locks.release(1, "k")

    writers = [asyncio.create_task(write(number)) for number in range(3)]
    await asyncio.sleep(0)
    assert (order, locks.waiting) == ([], 3)
    locks.release(1, "k")
    assert locks.locked(1, "k"), "it is passed on, and nobody else may take it meanwhile"
    await asyncio.gather(*writers)
    assert (order, locks.waiting, locks.locked(1, "k")) == ([0, 1, 2], 0, False)


async def test_a_lock_is_of_one_session_and_free_after_its_release() -> None:
    locks = SessionLocks()
    locks.take(1, "k")
    assert [locks.locked(1, "k"), locks.locked(2, "k"), locks.locked(1, "other")] == [True, False, False]
    locks.release(1, "k")
    assert not locks.locked(1, "k")


@pytest.mark.parametrize("passed_on", [False, True])
async def test_who_gives_up_waiting_leaves_the_lock_to_the_next(*, passed_on: bool) -> None:
    locks = SessionLocks()
    locks.take(1, "k")
    first, second = (asyncio.create_task(locks.acquire(1, "k")) for _ in range(2))
    await asyncio.sleep(0)
    if passed_on:
        locks.release(1, "k")
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    if not passed_on:
        locks.release(1, "k")
    await asyncio.wait_for(second, 5)
    assert locks.locked(1, "k")
