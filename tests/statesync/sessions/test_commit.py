"""Group commit against a real etcd: fencing per slot, exactly-once over unknown outcomes, batches."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from tests.harness.cable import Way, cable_to
from tests.harness.etcd import EtcdServer
from tests.harness.waiting import until
from understudy.statesync.etcd.client import EtcdClient, Kv
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Owner
from understudy.statesync.pool.slots import MAX_SLOTS
from understudy.statesync.sessions.command_batch import SHORT_REPLY
from understudy.statesync.sessions.commit import (
    ENTRIES_MOST,
    Committer,
    CommitUnknown,
    NotCommitted,
    NotOwner,
    Submission,
)
from understudy.statesync.sessions.request_log import LogEntry, RequestLog, decode_entries, request_hash


@contextlib.asynccontextmanager
async def committing(
    client: EtcdClient, keys: PoolKeys, boot: str = "boot", requests: RequestLog | None = None
) -> AsyncIterator[Committer]:
    committer = Committer(client, keys, "a", boot, requests)
    task = asyncio.create_task(committer.run())
    try:
        yield committer
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def own(client: EtcdClient, keys: PoolKeys, slot: int, active: str = "a", epoch: int = 1) -> int:
    return await client.put(keys.owner(slot), Owner(active, "boot", epoch).encode())


async def test_writes_that_wait_together_are_committed_together(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    fences = [await own(client, keys, slot) for slot in range(4)]
    async with committing(client, keys) as committer:
        writes = [committer.submit(n % 4, fences[n % 4], keys.session(n % 4, f"k{n}"), b"v") for n in range(250)]
        revisions = [await committer.outcome(write, 30) for write in writes]

    assert committer.stats.transactions == 3
    assert len(set(revisions)) == 3
    assert (await client.range(prefix_range(keys.sessions))).count == 250


async def test_losing_one_slot_fails_only_its_writes(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    kept, lost = await own(client, keys, 0), await own(client, keys, 1)
    await own(client, keys, 1, active="b", epoch=2)
    async with committing(client, keys) as committer:
        good = committer.submit(0, kept, keys.session(0, "good"), b"v")
        bad = committer.submit(1, lost, keys.session(1, "bad"), b"v")

        with pytest.raises(NotOwner, match="names b at epoch 2") as refusal:
            await committer.outcome(bad, 30)
        await committer.outcome(good, 30)

    assert refusal.value.found is not None
    assert await client.get(keys.session(1, "bad")) is None
    assert await client.get(keys.session(0, "good")) is not None


async def test_a_slot_lost_and_won_again_does_not_let_an_old_write_through(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    old = await own(client, keys, 0)
    new = await own(client, keys, 0, epoch=2)
    async with committing(client, keys) as committer:
        late = committer.submit(0, old, keys.session(0, "k"), b"old")
        fresh = committer.submit(0, new, keys.session(0, "l"), b"new")

        with pytest.raises(NotOwner):
            await committer.outcome(late, 30)
        await committer.outcome(fresh, 30)

    assert await client.get(keys.session(0, "k")) is None


async def test_an_unknown_outcome_is_resolved_and_the_write_is_applied_once(
    etcd_server: EtcdServer, pool_name: str
) -> None:
    keys = PoolKeys(pool_name)
    async with (
        etcd_server.client() as patient,
        etcd_server.client(timeout=0.3) as client,
        committing(client, keys) as committer,
    ):
        fence = await own(patient, keys, 0)
        first = committer.submit(0, fence, keys.session(0, "k"), b"v")
        await committer.outcome(first, 30)

        etcd_server.pause()
        frozen = committer.submit(0, fence, keys.session(0, "l"), b"v")
        await until(lambda: frozen.sent, what="the write is under way")
        with pytest.raises(CommitUnknown):
            await committer.outcome(frozen, 0.7)
        waiting = committer.submit(0, fence, keys.session(0, "m"), b"v")
        with pytest.raises(NotCommitted):
            await committer.outcome(waiting, 0.1)
        etcd_server.resume()

        revision = await asyncio.wait_for(frozen.done, 30)
        written = await patient.get(keys.session(0, "l"))
        assert written is not None
        assert written.create_revision == written.mod_revision == revision
        assert await patient.get(keys.session(0, "m")) is None
        assert committer.stats.resent >= 1


async def test_a_former_life_of_the_member_does_not_block_its_commits(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    fence = await own(client, keys, 0)
    async with committing(client, keys, "old") as old, committing(client, keys, "new") as new:
        for committer, key in ((old, "k"), (new, "l"), (old, "m"), (new, "n")):
            await committer.outcome(committer.submit(0, fence, keys.session(0, key), b"v"), 30)

    assert (await client.range(prefix_range(keys.sessions))).count == 4


async def test_large_writes_are_spread_over_transactions_that_etcd_takes(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    fence = await own(client, keys, 0)
    async with committing(client, keys) as committer:
        writes = [committer.submit(0, fence, keys.session(0, f"k{n}"), bytes(65_536)) for n in range(60)]
        for write in writes:
            await committer.outcome(write, 30)

    assert committer.stats.transactions >= 4


async def test_a_write_that_etcd_refuses_does_not_hold_up_the_others(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    fence = await own(client, keys, 0)
    async with committing(client, keys) as committer:
        before = committer.submit(0, fence, keys.session(0, "before"), b"v")
        huge = committer.submit(0, fence, keys.session(0, "huge"), bytes(3_000_000))
        after = committer.submit(0, fence, keys.session(0, "after"), b"v")

        with pytest.raises(NotCommitted, match="etcd refuses it"):
            await committer.outcome(huge, 30)
        await committer.outcome(before, 30)
        await committer.outcome(after, 30)

    assert await client.get(keys.session(0, "huge")) is None


async def test_writes_of_one_session_that_wait_together_are_committed_in_their_order(
    client: EtcdClient, pool_name: str
) -> None:
    keys = PoolKeys(pool_name)
    fence = await own(client, keys, 0)
    async with committing(client, keys) as committer:
        given = [("k", b"1"), ("l", b"1"), ("k", b"2"), ("k", None), ("k", b"3"), ("l", None)]
        writes = [committer.submit(0, fence, keys.session(0, key), value) for key, value in given]
        revisions = [await committer.outcome(write, 30) for write in writes]

    assert revisions == sorted(revisions)
    assert revisions[0] == revisions[1], "different sessions go into one transaction"
    assert len({revisions[0], revisions[2], revisions[3], revisions[4]}) == 4
    kept = await client.get(keys.session(0, "k"))
    assert kept is not None
    assert (kept.value, await client.get(keys.session(0, "l"))) == (b"3", None)


async def test_outcomes_without_sessions_go_into_one_transaction(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    fence = await own(client, keys, 0)
    async with committing(client, keys) as committer:
        writes = [committer.submit(0, fence, "", None, (LogEntry(f"r{n}", "f", 404, "absent"),)) for n in range(3)]
        assert len({await committer.outcome(write, 30) for write in writes}) == 1


async def test_a_write_brings_the_outcomes_of_all_that_it_saves(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    fence = await own(client, keys, 0)
    requests = RequestLog(keys, "a", "boot")
    async with committing(client, keys, requests=requests) as committer:
        entries = tuple(LogEntry(f"r{n}", "f", 200, version=n) for n in (1, 2, 3))
        await committer.outcome(committer.submit(0, fence, keys.session(0, "k"), b"v", entries), 30)
        await committer.outcome(committer.submit(0, fence, keys.session(0, "k"), b"w"), 30)

    page = await client.range(prefix_range(keys.requests))
    assert [decode_entries(kv.value) for kv in page.kvs] == [[*entries]]
    assert requests.forget(time.monotonic(), 0.0) == [kv.key for kv in page.kvs], "its record is to be deleted one day"


async def test_as_many_outcomes_as_one_write_may_bring_are_taken_by_etcd(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    fence = await own(client, keys, 0)
    entries = tuple(
        LogEntry(request_hash("k", str(n)), "f" * 16, 200, "", "r" * SHORT_REPLY, 2**63 - 1, MAX_SLOTS - 1)
        for n in range(ENTRIES_MOST)
    )
    async with committing(client, keys) as committer:
        writes = [committer.submit(0, fence, keys.session(0, f"k{n}"), b"v", entries) for n in range(8)]
        revisions = [await committer.outcome(write, 30) for write in writes]
    assert (committer.stats.transactions, len(set(revisions))) == (4, 4), "what etcd would refuse is not sent"


async def test_a_firm_write_is_not_withdrawn_at_its_deadline(etcd_server: EtcdServer, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    async with (
        etcd_server.client() as patient,
        etcd_server.client(timeout=0.3) as client,
        committing(client, keys) as committer,
    ):
        fence = await own(patient, keys, 0)
        await committer.outcome(committer.submit(0, fence, keys.session(0, "k"), b"v"), 30)
        etcd_server.pause()
        under_way = committer.submit(0, fence, keys.session(0, "k"), b"w")
        await until(lambda: under_way.sent, what="the write is under way")
        firm = committer.submit(0, fence, keys.session(0, "l"), b"v", firm=True)
        with pytest.raises(CommitUnknown):
            await committer.outcome(firm, 0.1)
        assert not firm.sent
        etcd_server.resume()

        revision = await asyncio.wait_for(firm.done, 30)
        written = await patient.get(keys.session(0, "l"))
        assert written is not None
        assert written.mod_revision == revision


@contextlib.asynccontextmanager
async def cut_off_with_a_batch(
    etcd: EtcdServer, client: EtcdClient, keys: PoolKeys, way: Way
) -> AsyncIterator[tuple[Committer, list[Submission], list[int]]]:
    """A committer whose batch of two writes, in slots 0 and 1, is under way through a cable that is cut that way."""
    fences = [await own(client, keys, slot) for slot in (0, 1)]
    async with (
        cable_to(etcd.endpoint) as cable,
        EtcdClient([cable.address], timeout=0.3) as far,
        committing(far, keys) as committer,
    ):
        await committer.outcome(committer.submit(0, fences[0], keys.session(0, "first"), b"v"), 30)
        cable.cut(way)
        writes = [committer.submit(slot, fences[slot], keys.session(slot, "k"), b"v") for slot in (0, 1)]
        await until(lambda: all(write.sent for write in writes), what="the batch is under way")
        if way is Way.ANSWERS:
            await until(lambda: client.get(keys.session(0, "k")), what="etcd has carried it out")
        yield committer, writes, fences


async def claimed(client: EtcdClient, keys: PoolKeys, slot: int) -> tuple[Kv | None, dict[int, Kv]]:
    """What somebody finds who claims a slot: the commit marker, and the owner record that is there then."""
    await own(client, keys, slot, active="b", epoch=2)
    record = await client.get(keys.owner(slot))
    assert record is not None
    return await client.get(keys.commit("a")), {slot: record}


async def test_what_is_under_way_is_settled_by_a_claim_of_others_that_came_before_it(
    etcd: EtcdServer, client: EtcdClient, pool_name: str
) -> None:
    keys = PoolKeys(pool_name)
    async with cut_off_with_a_batch(etcd, client, keys, Way.BOTH) as (committer, writes, fences):
        behind = committer.submit(1, fences[1], keys.session(1, "l"), b"v")
        committer.replaced(*await claimed(client, keys, 1))

        for write in (writes[1], behind):
            with pytest.raises(NotOwner, match="names b at epoch 2"):
                await committer.outcome(write, 30)
        assert not writes[0].done.done(), "the other slot is ours still, and its write goes into another batch"
        assert await client.get(keys.session(1, "k")) is None


async def test_what_is_under_way_is_settled_by_a_claim_of_others_that_came_after_it(
    etcd: EtcdServer, client: EtcdClient, pool_name: str
) -> None:
    keys = PoolKeys(pool_name)
    async with cut_off_with_a_batch(etcd, client, keys, Way.ANSWERS) as (committer, writes, _):
        marker, owners = await claimed(client, keys, 1)
        committer.replaced(marker, owners)

        assert marker is not None
        assert [await committer.outcome(write, 30) for write in writes] == [marker.mod_revision] * 2


async def test_a_claim_of_slots_that_a_batch_does_not_touch_says_nothing_of_it(
    etcd: EtcdServer, client: EtcdClient, pool_name: str
) -> None:
    keys = PoolKeys(pool_name)
    async with cut_off_with_a_batch(etcd, client, keys, Way.BOTH) as (committer, writes, _):
        committer.replaced(*await claimed(client, keys, 7))
        with pytest.raises(CommitUnknown):
            await committer.outcome(writes[0], 0.5)
