"""When a write in a replicated slot is answered, seen and saved: real streams, a real etcd, and copies by hand."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import cast

import pytest
import pytest_asyncio

from tests.harness.waiting import until
from tests.proxy.ownership.replicated_slots import (
    ALONE,
    SLOT,
    TWO,
    A,
    B,
    Hand,
    committing,
    copy_with,
    hand_of,
    session_of,
)
from understudy.proxy.ownership import active_slots
from understudy.proxy.ownership.active_slot import SlotLost
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.records import Owner
from understudy.statesync.replication.history import as_text, version_of
from understudy.statesync.replication.messages import At as CopyAt
from understudy.statesync.replication.sync_set import SyncSet
from understudy.statesync.sessions.commit import NotCommitted
from understudy.statesync.sessions.request_log import LogEntry, decode_entries


@pytest_asyncio.fixture
async def hand(client: EtcdClient, pool_name: str) -> AsyncIterator[Hand]:
    async with hand_of(client, pool_name) as hand:
        yield hand


def later() -> LogEntry:
    return LogEntry("request", "fingerprint", 200, version=1)


# -- answers --


async def test_a_replicas_write_is_answered_and_seen_when_all_of_the_set_have_it_and_not_before(hand: Hand) -> None:
    await hand.begin(TWO)
    write = hand.write("k")
    assert (write.done.done(), hand.seen("k")) == (False, False)
    hand.confirm()
    assert (write.done.done(), hand.seen("k"), write.got) == (True, True, "replicas")
    assert await hand.stored("k") is None
    assert hand.active.durability_of(SLOT, write.version) == "replicas"


async def test_a_sync_write_is_answered_when_etcd_has_it_too_and_seen_before(hand: Hand) -> None:
    await hand.begin(TWO)
    write = hand.write("k", wants="sync")
    hand.confirm()
    assert (write.done.done(), hand.seen("k")) == (False, True)
    committing(hand)
    await write.done
    assert (await hand.stored("k"), write.got) == ("v", "sync")
    assert hand.active.durability_of(SLOT, write.version) == "sync"


async def test_etcd_gets_nothing_that_a_copy_lacks(hand: Hand) -> None:
    committing(hand)
    await hand.begin(TWO)
    hand.write("k", wants="sync")
    hand.active.save_now(SLOT)
    assert hand.committer.queued == 0


@pytest.mark.parametrize("agreed", [ALONE, ALONE._replace(memory=True), TWO._replace(memory=False)])
async def test_without_memory_or_a_second_copy_everything_waits_for_etcd(hand: Hand, agreed: SyncSet) -> None:
    await hand.begin(agreed)
    write = hand.write("k")
    if B in agreed.members:
        hand.confirm()
    assert (write.done.done(), hand.seen("k")) == (False, False)
    committing(hand)
    await write.done
    assert (hand.seen("k"), write.got, await hand.stored("k")) == (True, "sync", "v")


async def test_while_a_change_may_take_memory_back_nothing_is_answered_from_memory(hand: Hand) -> None:
    await hand.begin(TWO)
    hand.stream.change = ALONE
    write = hand.write("k")
    hand.confirm()
    assert (write.done.done(), hand.seen("k")) == (False, False)
    hand.stream.decided(TWO)
    hand.active.advance(SLOT)
    assert write.got == "replicas"


async def test_no_more_writes_are_under_way_in_a_slot_than_an_heir_could_save_at_once(hand: Hand) -> None:
    await hand.begin(TWO)
    for number in range(active_slots.WAITING_MOST):
        assert hand.active.has_room(SLOT)
        hand.write(f"k{number}")
    assert not hand.active.has_room(SLOT)
    waiting = asyncio.create_task(hand.active.room(SLOT))
    await asyncio.sleep(0)
    assert not waiting.done()
    hand.confirm()
    await waiting
    assert hand.active.has_room(SLOT)


async def test_a_refusal_is_kept_by_the_copies_and_found_again(hand: Hand) -> None:
    await hand.begin(TWO)
    write = hand.write("", entry=later())
    assert hand.requests.find(SLOT, "request", "fingerprint") is None
    hand.confirm()
    assert write.done.done()
    assert hand.requests.find(SLOT, "request", "fingerprint") is not None


# -- a slot that is lost --


async def test_a_lost_slot_becomes_a_copy_and_only_identified_writes_are_looked_up_again(hand: Hand) -> None:
    await hand.begin(TWO)
    kept, named, unnamed = hand.write("k"), hand.write("named", entry=later()), hand.write("unnamed")
    hand.confirm(kept.version)

    hand.owned.lose(SLOT)

    assert kept.done.result() == kept.version
    found = [cast("SlotLost", one.done.exception()).identified for one in (named, unnamed)]
    assert found == [True, False]
    assert SLOT not in hand.active
    copy = hand.keeper.copies[SLOT]
    assert (copy.whole, copy.shown, copy.have) == (True, kept.version, unnamed.version)
    assert [one.version for one in copy.unsaved] == [kept.version]
    assert hand.seen("k")
    assert not hand.seen("named")


async def test_a_slot_that_is_lost_has_not_settled(hand: Hand) -> None:
    await hand.begin(TWO, copy_with(hand, pending=[(1, "k", "new")]), epoch=2)
    waiting = asyncio.create_task(hand.active.settled(SLOT))
    await asyncio.sleep(0)
    hand.owned.lose(SLOT)
    assert await waiting is False


async def test_saves_go_on_under_the_new_fence_after_a_handover_was_undone(hand: Hand) -> None:
    owned = await hand.begin(TWO)
    write = hand.write("k")
    hand.confirm()
    hand.active.save_now(SLOT)  # under the old fence
    owned.owner = Owner(A.member, A.boot, 2)
    owned.fence = await hand.client.put(hand.keys.owner(SLOT), owned.owner.encode())
    hand.active.begin_anew(owned, TWO)

    committing(hand)
    hand.active.save_now(SLOT)
    await until(lambda: hand.stream.saved >= write.version, 20, "the write is saved")
    assert await hand.stored("k") == "v"
    more = hand.write("k", "more", "sync")
    assert more.version == version_of(2, 1)
    hand.confirm()
    await more.done
    assert await hand.stored("k") == "more"


async def test_the_fence_of_a_handover_that_begins_counts_for_later_saves(hand: Hand) -> None:
    committing(hand)
    owned = await hand.begin(TWO)
    owned.fence = await hand.client.put(hand.keys.owner(SLOT), owned.owner.encode())
    write = hand.write("k", wants="sync")
    hand.confirm()
    await write.done
    assert await hand.stored("k") == "v"


@pytest.mark.parametrize("from_memory", [True, False])
async def test_no_number_is_given_twice_when_a_slot_is_ours_again_under_the_same_record(
    hand: Hand, from_memory: bool
) -> None:
    committing(hand)
    given = []
    await hand.begin(ALONE)
    for epoch, writes in ((1, 2), (1, 1), (2, 2), (5, 1)):
        hand.owned.lose(SLOT)
        copy = hand.keeper.take_over(SLOT) if from_memory else None
        await hand.begin(ALONE, copy, epoch=epoch)
        written = [hand.write(f"k{number}") for number in range(writes)]
        given += [as_text(write.version) for write in written]
        await asyncio.gather(*(write.done for write in written))
    assert given == ["1.1", "1.2", "1.3", "2.1", "2.2", "5.1"]


# -- heirs --


async def test_readers_see_what_an_heir_inherited_when_the_whole_set_has_it(hand: Hand) -> None:
    await hand.begin(TWO, copy_with(hand, pending=[(1, "k", "new")]), epoch=2)
    settled = asyncio.create_task(hand.active.settled(SLOT))
    await asyncio.sleep(0)
    assert (settled.done(), hand.seen("k")) == (False, False)
    hand.confirm()
    assert await settled is True
    assert hand.seen("k")


async def test_readers_see_what_an_heir_alone_inherited_when_etcd_has_it(hand: Hand) -> None:
    await hand.begin(ALONE, copy_with(hand, pending=[(1, "k", "new")]), epoch=2)
    assert not hand.seen("k")
    committing(hand)
    assert await hand.active.settled(SLOT)
    assert (hand.seen("k"), await hand.stored("k")) == (True, "new")


async def test_an_heir_saves_what_readers_saw_and_etcd_lacks(hand: Hand) -> None:
    committing(hand)
    await hand.begin(TWO, copy_with(hand, unsaved=[(1, "k", "seen")]), epoch=2)
    hand.active.save_now(SLOT)
    await until(lambda: hand.stream.saved >= version_of(1, 1), 20, "it is saved")
    assert await hand.stored("k") == "seen"
    hand.owned.lose(SLOT)
    assert hand.keeper.copies[SLOT].unsaved == []


async def test_an_heir_never_replaces_the_later_version_that_it_inherited(hand: Hand) -> None:
    """The active before has saved the later one; not all of the set are known to have it."""
    inherited = copy_with(hand, unsaved=[(1, "k", "old"), (2, "l", "other")], pending=[(3, "k", "new")])
    (new,) = inherited.pending
    await hand.client.put(hand.keys.session(SLOT, "k"), new.write.value or b"")
    await hand.begin(TWO, inherited, epoch=2)
    committing(hand)

    hand.active.save_now(SLOT)
    await until(lambda: hand.committer.stats.writes, 20, "the other session is saved")
    assert (await hand.stored("k"), await hand.stored("l")) == ("new", "other")
    assert hand.stream.saved == version_of(1, 0)

    hand.confirm()
    hand.active.save_now(SLOT)
    await until(lambda: hand.stream.saved >= version_of(1, 3), 20, "all is saved")
    assert await hand.stored("k") == "new"
    assert hand.stream.kept_back == 0


# -- saves --


async def test_a_session_that_is_written_often_is_put_a_few_times(client: EtcdClient, pool_name: str) -> None:
    async with hand_of(client, pool_name, checkpoint_ms=20) as hand:
        committing(hand)
        await hand.begin(TWO)
        for number in range(100):
            hand.write("k", f"v{number}")
            hand.confirm()
        hand.run(hand.active.run)
        await until(lambda: hand.stream.saved == hand.stream.last, 20, "all is saved")
        assert hand.committer.stats.writes == 1
        assert await hand.stored("k") == "v99"


async def test_nothing_is_saved_before_the_checkpoint(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(active_slots, "TICK", 0.001)
    await hand.begin(TWO)
    hand.write("k")
    hand.confirm()
    hand.run(hand.active.run)
    await until(lambda: hand.active.exposure.bytes > 0, 20, "it has looked for what is to be saved")
    assert hand.committer.queued == 0


async def test_what_etcd_lacked_before_a_save_is_still_told_after_it(hand: Hand) -> None:
    committing(hand)
    await hand.begin(TWO)
    for key in ("k", "l", "k"):
        hand.write(key)
    hand.confirm()
    hand.active.exposure.look(hand.active.unfinished, 0.5, now := time.monotonic() + 3)
    hand.active.save_now(SLOT)
    await until(lambda: hand.stream.saved == hand.stream.last, 20, "all is saved")
    hand.active.exposure.look(hand.active.unfinished, 0.0, now)
    sessions, ms, writes = hand.active.exposure.most(now)
    assert (sessions, writes, hand.active.exposure.bytes) == (2, 3, 0)
    assert ms > 3500


async def test_copies_are_told_what_readers_may_see(hand: Hand) -> None:
    await hand.begin(TWO)
    hand.run(hand.active.tell)
    for _ in range(2):
        hand.write("k")
        sent = hand.streams.sent
        hand.streams.along.clear()
        hand.confirm()
        assert hand.streams.along == [SLOT]
        await until(lambda sent=sent: hand.streams.sent > sent, 20, "copies are told what is visible")


async def test_saves_that_are_not_due_yet_go_with_those_that_are(hand: Hand) -> None:
    committing(hand)
    await hand.begin(TWO)
    other = await hand.begin(TWO, slot=SLOT + 1)
    hand.write("k")
    hand.confirm()
    hand.active.submit(other, "l", session_of(hand.active.next_version(SLOT + 1), "v"), None, "replicas")
    hand.streams.streams[SLOT + 1].has(B, hand.streams.streams[SLOT + 1].last)
    hand.active.progress([SLOT + 1])
    hand.active.get(SLOT).due_since = 0.0
    hand.run(hand.active.run)

    await until(lambda: hand.committer.stats.writes == 2, 20, "both are saved")
    assert hand.committer.stats.transactions == 1


async def test_a_save_that_etcd_refuses_is_tried_again(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(active_slots, "SAVE_AGAIN_AFTER", 0.0)
    await hand.begin(ALONE)
    submitted, submit = [], hand.committer.submit

    def refusing(*args: object, **options: object) -> object:
        submission = submit(*args, **options)  # type: ignore[arg-type]
        submitted.append(submission)
        if len(submitted) == 1:
            hand.committer._queue.remove(submission)
            submission.done.set_exception(NotCommitted(SLOT, "refused"))
        return submission

    monkeypatch.setattr(hand.committer, "submit", refusing)
    write = hand.write("k")
    hand.run(hand.active.run)
    committing(hand)
    await write.done
    assert (len(submitted), await hand.stored("k")) == (2, "v")


async def test_while_a_removal_saves_nothing_else_does(hand: Hand) -> None:
    committing(hand)
    await hand.begin(TWO, copy_with(hand, unsaved=[(1, "k", "old")], pending=[(2, "k", "new")]), epoch=2)
    active = hand.active.get(SLOT)
    assert active is not None
    active.removing = True
    hand.stream.change = ALONE
    write = hand.write("k", "newer")
    hand.confirm()
    hand.active.save_now(SLOT)
    assert (hand.committer.queued, write.done.done()) == (0, False)

    active.removing = False
    hand.stream.decided(ALONE)
    hand.active.all_saved(SLOT, version_of(1, 2))
    assert hand.stream.saved == version_of(1, 2)
    hand.active.advance(SLOT)
    await write.done
    assert (await hand.stored("k"), write.got) == ("newer", "sync")


async def test_the_outcomes_of_the_writes_that_one_save_covers_go_with_it(hand: Hand) -> None:
    committing(hand)
    await hand.begin(TWO)
    for number in range(3):
        hand.write("k", entry=LogEntry(f"request{number}", "f", 200, version=number + 1))
    hand.confirm()
    hand.active.save_now(SLOT)
    await until(lambda: hand.stream.saved == hand.stream.last, 20, "all is saved")
    kv = await hand.client.get(hand.requests.record_key(1))
    assert kv is not None
    assert [entry.request for entry in decode_entries(kv.value)] == ["request0", "request1", "request2"]


async def test_a_copy_learns_that_all_is_saved(hand: Hand) -> None:
    committing(hand)
    await hand.begin(TWO)
    hand.stream.at(B, CopyAt(SLOT, 1, hand.stream.last, whole=True))
    write = hand.write("k", wants="sync")
    hand.confirm()
    await write.done
    message = hand.stream.outgoing(B)
    assert message is not None
    assert message.saved == write.version
