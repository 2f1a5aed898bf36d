"""The gates of owned slots, and who waits at them."""

import asyncio
from dataclasses import replace

import pytest

from understudy.proxy.ownership.owned_slots import NotMine, OwnedSlots, still_busy
from understudy.statesync.pool.records import Owner, Phase

MINE = Owner("a", "one", 1)


def holding(*slots):
    holdings = OwnedSlots()
    for slot in slots:
        holdings.reopen(holdings.gain(slot, MINE, 7))
    return holdings


async def test_a_slot_whose_calls_do_not_end_is_told_apart_from_those_that_are_idle():
    holdings = holding(1, 2, 3)
    quick, endless = await holdings.enter(1), await holdings.enter(2)
    closed = holdings.close([1, 2, 3])
    asyncio.get_running_loop().call_soon(quick.leave)
    assert await still_busy(closed, 0.05) == [endless]
    endless.leave()
    assert await still_busy(closed, 0.0) == []


async def test_who_waits_at_a_gate_enters_when_it_opens_again_and_is_told_when_the_slot_is_lost():
    holdings = holding(1, 2)
    kept, lost = holdings.close([1, 2])
    callers = [asyncio.create_task(holdings.enter(slot)) for slot in (1, 2)]
    await asyncio.sleep(0)
    assert not any(caller.done() for caller in callers)
    holdings.reopen(kept)
    holdings.lose(lost.slot)
    assert await callers[0] is kept
    with pytest.raises(NotMine):
        await callers[1]


async def test_a_gate_that_is_closed_to_writes_lets_reads_pass_until_it_is_closed_to_them_too():
    holdings = holding(1)
    assert holdings.enter_to_read(1) is None, "through an open gate everybody enters alike"
    (owned,) = holdings.close([1], readable=True)
    writer = asyncio.create_task(holdings.enter(1))
    reader = holdings.enter_to_read(1)
    assert reader is owned
    assert await still_busy([owned], 0.0) == [owned]
    reader.leave()
    assert await still_busy([owned], 0.0) == []
    assert not writer.done()
    holdings.close([1])
    assert holdings.enter_to_read(1) is None
    holdings.reopen(owned)
    assert await writer is owned
    holdings.close([1], readable=True)
    holdings.lose(1)
    assert holdings.enter_to_read(1) is None


async def test_a_slot_that_is_given_up_is_remembered_with_the_record_under_which_it_must_not_be_served_again():
    holdings = holding(1, 2)
    (waiting,) = holdings.close([1])
    caller = asyncio.create_task(holdings.enter(1))
    await asyncio.sleep(0)
    holdings.give_up([1, 3])
    assert holdings.given_up == {1: 7}
    assert holdings.slots == (2,)
    assert waiting.slot == 1
    with pytest.raises(NotMine):
        await caller


def test_what_was_lost_is_told_once_and_while_it_still_counts_as_ours():
    owned, told = OwnedSlots(), []
    owned.on_lose = lambda slot: told.append((slot, slot in owned))
    for slot in (1, 2, 3):
        owned.gain(slot, MINE, 7)
    owned.lose(1)
    owned.lose(1)
    owned.give_up([2, 9])
    owned.gain(3, replace(MINE, epoch=2), 8)
    assert told == [(1, True), (2, True), (3, True)]


def test_a_slot_is_lost_to_an_active_of_a_later_epoch_only_even_while_it_is_prepared():
    holdings, me = holding(1, 2), replace(MINE, epoch=5)
    holdings.gain(3, me, 9).preparing = True
    assert [holdings.refuses(3, epoch) for epoch in (4, 5)] == [5, 5]
    assert holdings.refuses(7, 1) == 0
    assert sorted(holdings.slots) == [1, 2, 3]
    assert holdings.refuses(3, 6) == 0
    assert sorted(holdings.slots) == [1, 2]


async def test_a_slot_is_being_prepared_until_its_gate_is_opened():
    holdings = holding(1)
    claimed = holdings.gain(2, MINE, 8)
    claimed.preparing = True
    assert holdings.preparing == {2}
    holdings.reopen(claimed)
    assert holdings.preparing == frozenset()


def test_a_slot_that_is_ours_again_knows_the_last_version_that_was_given_in_it():
    holdings = holding(1, 2)
    holdings.get(1).version = 17
    holdings.lose(1)
    assert (holdings.gain(1, MINE, 7).version, holdings.gain(2, MINE, 7).version) == (17, 0)
    holdings.give_up([1])
    assert holdings.gain(1, replace(MINE, phase=Phase.HANDOVER, to="b"), 8).version == 17
