"""The copies of a process as their owner sees them: whole ones, taken over, given back, dropped, and their outcomes."""

import asyncio
import math

import pytest

from tests.proxy.replication.members import POOL, B, request_log
from understudy.proxy.replication.copy_keeper import CopyKeeper
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.replication.history import version_of
from understudy.statesync.replication.messages import (
    At,
    Behind,
    Have,
    Lead,
    LoggedWrite,
    Part,
    Refused,
    Stored,
    Writes,
)
from understudy.statesync.replication.slot_copy import SlotCopy
from understudy.statesync.sessions.replica import Replica
from understudy.statesync.sessions.request_log import LogEntry, Settled, encode_entry
from understudy.statesync.sessions.session import Session

SLOT = 7
BASE = version_of(1, 0)


class Keeper(CopyKeeper):
    """Keeps copies in a real replica."""

    def __init__(self, **options) -> None:
        keys = PoolKeys(POOL)
        self.replica, self.requests = Replica(None, keys), request_log()
        super().__init__(B, POOL, self.replica, self.requests, **options)


def lead(epoch: int = 1, *history: int) -> Lead:
    return Lead(SLOT, epoch, history or (version_of(epoch, 0),))


def whole_copy(*sessions: Stored, epoch: int = 1, outcomes: tuple[bytes, ...] = ()) -> Part:
    base = version_of(epoch, 0)
    return Part(SLOT, epoch, base, (base,), sessions, first=True, last=True, outcomes=outcomes)


def session(index: int, epoch: int = 1) -> bytes:
    return Session("text/plain", b"%d" % index, 2**53, epoch, version=version_of(epoch, index)).encode()


def write(index: int, outcome: LogEntry | None = None, *, shown: int = 0) -> Writes:
    logged = LoggedWrite("key", session(index), encode_entry(outcome) if outcome is not None else b"")
    return Writes(SLOT, 1, version_of(1, index - 1), version_of(1, index), (logged,), version_of(1, shown))


def keeper_with_copy(**options) -> Keeper:
    """A keeper whose replica has a whole copy with one write that readers see."""
    keeper = Keeper(**options)
    keeper.take("active", [lead(), whole_copy(), write(1, shown=1)], 0.0)
    assert keeper.is_whole(SLOT)
    return keeper


def body(keeper: Keeper) -> bytes | None:
    found = keeper.replica.session(SLOT, "key")
    return found.body if found is not None else None


def test_a_copy_is_whole_and_its_slot_synced_when_its_last_part_is_there() -> None:
    keeper = Keeper()
    assert not keeper.is_whole(SLOT)
    first = Part(SLOT, 1, BASE, (BASE,), (Stored("key", BASE, session(0)),), first=True, last=False)
    keeper.take("active", [lead(), first], 0.0)
    assert (keeper.is_whole(SLOT), keeper.replica.is_synced(SLOT), body(keeper)) == (False, False, b"0")
    last = Part(SLOT, 1, BASE, (), (), first=False, last=True)
    assert keeper.take("active", [last], 0.0) == [Have(SLOT, 1, BASE)]
    assert (keeper.is_whole(SLOT), keeper.replica.is_synced(SLOT)) == (True, True)
    assert body(keeper) == b"0"


def test_who_becomes_active_takes_the_copy_and_leaves_the_sessions() -> None:
    keeper = keeper_with_copy()
    keeper.take("active", [write(2, shown=1)], 0.0)
    keeper.heard_of(SLOT, 2)
    copy = keeper.take_over(SLOT)
    assert [entry.version for entry in copy.become_active()] == [version_of(1, 2)]
    assert (keeper.is_whole(SLOT), keeper.take_over(SLOT), keeper.copies) == (False, None, {})
    assert (body(keeper), keeper.replica.is_synced(SLOT)) == (b"1", True)
    assert keeper.take("active", [write(3)], 0.0) == [Behind(SLOT, 1)]
    assert keeper.take("active", [lead()], 0.0) == [Refused(SLOT, 1, 2)]
    assert keeper.copies == {}


def test_who_loses_a_slot_has_a_copy_that_the_next_active_can_lead() -> None:
    keeper = keeper_with_copy()
    copy = keeper.take_over(SLOT)
    copy.heard_of(2)
    keeper.give(SLOT, copy)
    assert keeper.take("next", [lead(3, version_of(1, 1), version_of(3, 1))], 0.0) == [
        At(SLOT, 3, version_of(1, 1), whole=True)
    ]
    assert body(keeper) == b"1"


def test_a_process_that_hears_of_its_successor_by_a_frame_keeps_what_it_had() -> None:
    def lose(slot: int, _: int) -> int:
        if given:
            keeper.give(slot, given.pop())
        return 0

    given: list[SlotCopy] = []
    keeper = keeper_with_copy(refuses=lose)
    given.append(keeper.take_over(SLOT))
    assert keeper.take("next", [lead(3, version_of(1, 1), version_of(3, 1))], 0.0) == [
        At(SLOT, 3, version_of(1, 1), whole=True)
    ]


def test_what_a_former_active_had_does_not_replace_the_copy_of_its_successor() -> None:
    keeper = keeper_with_copy()
    former = keeper.take_over(SLOT)
    keeper.take("next", [lead(3)], 0.0)
    keeper.give(SLOT, former)
    assert not keeper.is_whole(SLOT)
    assert keeper.copies[SLOT].follows == 3


def test_a_slot_in_which_this_process_is_active_takes_nothing_of_others() -> None:
    mine: dict[int, int] = {}
    keeper = keeper_with_copy(refuses=lambda slot, epoch: mine[slot] if epoch <= mine.get(slot, 0) else 0)
    keeper.take_over(SLOT)
    mine[SLOT] = 5
    for message in (lead(5), whole_copy(epoch=5), write(2)):
        assert keeper.take("other", [message], 0.0) == [Refused(SLOT, message.epoch, 5)]
    assert (keeper.copies, body(keeper)) == ({}, b"1")


def test_a_dropped_slot_is_forgotten_and_old_actives_stay_refused() -> None:
    keeper = keeper_with_copy()
    keeper.heard_of(SLOT, 4)
    keeper.drop(SLOT)
    assert (keeper.copies, keeper.replica.held) == ({}, frozenset())
    assert body(keeper) is None
    assert keeper.take("active", [lead(3)], 0.0) == [Refused(SLOT, 3, 4)]
    assert keeper.take("next", [lead(4)], 0.0) == [At(SLOT, 4, 0, whole=False)]


def test_an_old_active_that_is_refused_does_not_take_the_slot_from_its_successor() -> None:
    keeper = keeper_with_copy()
    keeper.take("next", [lead(2, version_of(1, 1))], 0.0)
    assert keeper.take("active", [lead()], 0.0) == [Refused(SLOT, 1, 2)]
    follow_up = Writes(SLOT, 2, version_of(1, 1), version_of(2, 1), (LoggedWrite("key", session(1, 2)),), 0)
    assert keeper.take("next", [follow_up], 0.0) == [Have(SLOT, 2, version_of(2, 1))]


def test_silence_counts_from_the_last_frame_of_the_connection_that_leads() -> None:
    keeper = Keeper()
    assert keeper.silence(SLOT, 5.0) == math.inf
    keeper.take("active", [lead()], 10.0)
    keeper.take("another", [], 11.0)
    assert keeper.silence(SLOT, 12.0) == 2.0
    keeper.take("active", [], 12.5)
    assert keeper.silence(SLOT, 13.0) == 0.5
    keeper.take("another", [lead(2)], 14.0)
    keeper.take("active", [], 15.0)
    assert keeper.silence(SLOT, 15.0) == 1.0
    keeper.drop(SLOT)
    assert keeper.silence(SLOT, 15.0) == math.inf


def test_outcomes_are_known_when_readers_may_see_their_writes() -> None:
    keeper = keeper_with_copy()
    keeper.take("active", [write(2, LogEntry("r", "f", 200, version=version_of(1, 2)), shown=1)], 0.0)
    assert keeper.requests.find(SLOT, "r", "f") is None
    keeper.take("active", [Writes(SLOT, 1, version_of(1, 2), 0, (), version_of(1, 2))], 5.0)
    assert keeper.requests.find(SLOT, "r", "f") == Settled("f", 200, version_of(1, 2))
    keeper.requests.forget(34.0, 30.0)
    assert keeper.requests.find(SLOT, "r", "f") is not None, "it is kept from when it was seen"


def test_every_part_of_a_copy_brings_outcomes_for_its_slot_or_for_any() -> None:
    keeper = Keeper()
    refusal = encode_entry(LogEntry("r1", "f", 404, "no-such-session", slot=SLOT))
    effect = encode_entry(LogEntry("r2", "f", 200, version=5))
    first = Part(SLOT, 1, BASE, (BASE,), (), first=True, last=False, outcomes=(refusal,))
    last = Part(SLOT, 1, BASE, (), (), first=False, last=True, outcomes=(effect,))
    keeper.take("active", [lead(), first, last], 0.0)
    assert keeper.requests.find(SLOT, "r1", "f") == Settled("f", 404, 0, "no-such-session")
    assert keeper.requests.find(SLOT + 1, "r1", "f") is None
    assert keeper.requests.find(SLOT, "r2", "f") == keeper.requests.find(SLOT + 1, "r2", "f") == Settled("f", 200, 5)


def test_a_copy_that_is_made_anew_knows_only_the_outcomes_of_the_new_active() -> None:
    """The writes of the others were lost with everybody who had them: their requests may be carried out again."""
    lost, kept = LogEntry("r1", "f", 200, version=version_of(1, 1)), LogEntry("r2", "f", 200, version=1, slot=SLOT)
    keeper = keeper_with_copy()
    keeper.take("active", [write(2, lost, shown=2)], 0.0)
    assert keeper.requests.find(SLOT, "r1", "f") is not None
    keeper.take("next", [lead(2), whole_copy(epoch=2, outcomes=(encode_entry(kept),))], 0.0)
    assert keeper.requests.find(SLOT, "r1", "f") is None
    assert keeper.requests.find(SLOT, "r2", "f") is not None


def test_a_dropped_slot_has_no_outcomes_any_more() -> None:
    """Who claims it reads them from etcd, and etcd may lack some writes that are lost with this copy."""
    keeper = keeper_with_copy()
    keeper.take("active", [write(2, LogEntry("r", "f", 200, version=version_of(1, 2)), shown=2)], 0.0)
    keeper.drop(SLOT)
    assert keeper.requests.find(SLOT, "r", "f") is None


def test_an_active_without_slots_in_its_outcomes_is_understood() -> None:
    keeper = keeper_with_copy()
    keeper.take("active", [write(2, LogEntry("r", "f", 200, version=9), shown=2)], 0.0)
    assert keeper.requests.find(SLOT, "r", "f") is not None
    assert keeper.requests.find(SLOT + 1, "r", "f") is None


@pytest.mark.parametrize("junk", [b"junk", b"[]", b"\xff"])
def test_a_copy_is_whole_although_an_outcome_cannot_be_read(junk: bytes) -> None:
    keeper = Keeper()
    keeper.take("active", [lead(), whole_copy(outcomes=(junk, encode_entry(LogEntry("r", "f", 200, slot=SLOT))))], 0.0)
    assert keeper.is_whole(SLOT)
    assert len(keeper.requests) == 1


@pytest.mark.parametrize("junk", [b"junk", b"[]", b"\xff"])
def test_an_outcome_that_cannot_be_read_does_not_stop_the_stream(junk: bytes) -> None:
    keeper = keeper_with_copy()
    message = Writes(
        SLOT, 1, version_of(1, 1), version_of(1, 2), (LoggedWrite("key", session(2), junk),), version_of(1, 2)
    )
    assert keeper.take("active", [message], 0.0) == [Have(SLOT, 1, version_of(1, 2))]
    assert body(keeper) == b"2"


async def wished(keeper: Keeper) -> asyncio.Task[bool]:
    """A copy is to be made anew."""
    waiting = asyncio.create_task(keeper.made_anew(SLOT))
    await asyncio.sleep(0)
    return waiting


async def test_a_copy_that_is_to_be_made_anew_is_asked_for_once_and_stays_until_then() -> None:
    keeper = keeper_with_copy()
    waiting = await wished(keeper)
    assert keeper.take("active", [], 0.0) == [At(SLOT, 1, 0, whole=False)]
    assert keeper.take("active", [], 0.0) == []  # a second one would break off what is on its way
    assert (keeper.is_whole(SLOT), body(keeper)) == (True, b"1")

    first = Part(SLOT, 1, BASE, (BASE,), (Stored("key", BASE, session(0)),), first=True, last=False)
    keeper.take("active", [first], 0.0)
    assert not waiting.done()
    assert keeper.take("active", [Part(SLOT, 1, BASE, (), (), first=False, last=True)], 0.0) == [Have(SLOT, 1, BASE)]
    assert (await waiting, body(keeper)) == (True, b"0")
    assert keeper.take("active", [lead()], 0.0) == [At(SLOT, 1, BASE, whole=True)]


async def test_a_copy_is_asked_for_again_on_every_new_connection_and_by_every_new_active() -> None:
    keeper = keeper_with_copy()
    await wished(keeper)
    assert keeper.take("other", [], 0.0) == []
    assert keeper.take("active", [], 0.0) == [At(SLOT, 1, 0, whole=False)]
    later = lead(2, version_of(1, 1), version_of(2, 0))
    assert keeper.take("next", [later], 0.0) == [At(SLOT, 2, version_of(1, 1), whole=False)]
    assert keeper.take("next", [], 0.0) == []


async def test_a_copy_that_is_taken_over_is_not_made_anew() -> None:
    keeper = keeper_with_copy()
    waiting = await wished(keeper)
    keeper.take_over(SLOT)
    assert (await waiting, await keeper.made_anew(SLOT)) == (False, False)
