"""Group commit against a real etcd: fencing per slot, exactly-once over unknown outcomes, batches."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator

import pytest

from tests.harness.cable import Cable, Way, cable_to
from tests.harness.etcd import EtcdServer
from tests.harness.waiting import stays, until
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Owner
from understudy.statesync.pool.slots import MAX_SLOTS
from understudy.statesync.sessions.command_batch import SHORT_REPLY
from understudy.statesync.sessions.commit import (
    ENTRIES_MOST,
    Committer,
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
        revisions = [await asyncio.wait_for(write.done, 30) for write in writes]

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
            await asyncio.wait_for(bad.done, 30)
        await asyncio.wait_for(good.done, 30)

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
            await asyncio.wait_for(late.done, 30)
        await asyncio.wait_for(fresh.done, 30)

    assert await client.get(keys.session(0, "k")) is None


@contextlib.asynccontextmanager
async def cut_off(
    etcd: EtcdServer, keys: PoolKeys, way: Way
) -> AsyncIterator[tuple[EtcdClient, Cable, Committer, Submission]]:
    """A committer with a write of slot 0 under way through a cable that is cut that way, and a client that is not."""
    async with (
        etcd.client() as near,
        cable_to(etcd.endpoint) as cable,
        EtcdClient([cable.address], timeout=0.3) as far,
        committing(far, keys) as committer,
    ):
        fence = await own(near, keys, 0)
        await asyncio.wait_for(committer.submit(0, fence, keys.session(0, "first"), b"v").done, 30)
        cable.cut(way)
        yield near, cable, committer, committer.submit(0, fence, keys.session(0, "k"), b"v")


async def test_a_write_whose_answer_was_lost_is_applied_once(
    etcd: EtcdServer, pool_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys = PoolKeys(pool_name)
    caplog.set_level(logging.INFO)
    async with cut_off(etcd, keys, Way.ANSWERS) as (near, cable, committer, write):
        await until(lambda: near.get(keys.session(0, "k")), what="etcd has carried it out")
        await until(lambda: "unknown, sending it again" in caplog.text, what="the answer counts as lost")
        assert not write.done.done()
        cable.mend()

        revision = await asyncio.wait_for(write.done, 30)
        written = await near.get(keys.session(0, "k"))
        assert written is not None
        assert written.create_revision == written.mod_revision == revision
        assert committer.stats.resent >= 1


async def test_a_write_under_way_while_the_slot_is_lost_has_no_effect(etcd: EtcdServer, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    async with cut_off(etcd, keys, Way.BOTH) as (near, cable, _, write):
        await own(near, keys, 0, active="b", epoch=2)
        cable.mend()
        with pytest.raises(NotOwner, match="names b at epoch 2"):
            await asyncio.wait_for(write.done, 30)
        assert await near.get(keys.session(0, "k")) is None


async def test_commits_are_stalled_while_etcd_answers_none_and_until_one_succeeds(
    etcd: EtcdServer, pool_name: str
) -> None:
    keys = PoolKeys(pool_name)
    async with cut_off(etcd, keys, Way.BOTH) as (_, cable, committer, write):
        await until(lambda: committer.stalled(time.monotonic()), what="commits are stalled")
        assert not await committer.flowing(0.05)
        flows = asyncio.create_task(committer.flowing(30))
        await stays(lambda: not flows.done(), 0.2, "it waits")
        cable.mend()

        assert await flows
        assert write.done.done(), "a commit has succeeded"
        assert not committer.stalled(time.monotonic() + 3600), "nothing is under way"
        assert await committer.flowing(0.0)


async def test_a_former_life_of_the_member_does_not_block_its_commits(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    fence = await own(client, keys, 0)
    async with committing(client, keys, "old") as old, committing(client, keys, "new") as new:
        for committer, key in ((old, "k"), (new, "l"), (old, "m"), (new, "n")):
            await asyncio.wait_for(committer.submit(0, fence, keys.session(0, key), b"v").done, 30)

    assert (await client.range(prefix_range(keys.sessions))).count == 4


async def test_large_writes_are_spread_over_transactions_that_etcd_takes(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    fence = await own(client, keys, 0)
    async with committing(client, keys) as committer:
        writes = [committer.submit(0, fence, keys.session(0, f"k{n}"), bytes(65_536)) for n in range(60)]
        for write in writes:
            await asyncio.wait_for(write.done, 30)

    assert committer.stats.transactions >= 4


async def test_a_write_that_etcd_refuses_does_not_hold_up_the_others(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    fence = await own(client, keys, 0)
    async with committing(client, keys) as committer:
        before = committer.submit(0, fence, keys.session(0, "before"), b"v")
        huge = committer.submit(0, fence, keys.session(0, "huge"), bytes(3_000_000))
        after = committer.submit(0, fence, keys.session(0, "after"), b"v")

        with pytest.raises(NotCommitted, match="etcd refuses it"):
            await asyncio.wait_for(huge.done, 30)
        await asyncio.wait_for(before.done, 30)
        await asyncio.wait_for(after.done, 30)

    assert await client.get(keys.session(0, "huge")) is None


async def test_writes_of_one_session_that_wait_together_are_committed_in_their_order(
    client: EtcdClient, pool_name: str
) -> None:
    keys = PoolKeys(pool_name)
    fence = await own(client, keys, 0)
    async with committing(client, keys) as committer:
        given = [("k", b"1"), ("l", b"1"), ("k", b"2"), ("k", None), ("k", b"3"), ("l", None)]
        writes = [committer.submit(0, fence, keys.session(0, key), value) for key, value in given]
        revisions = [await asyncio.wait_for(write.done, 30) for write in writes]

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
        assert len({await asyncio.wait_for(write.done, 30) for write in writes}) == 1


async def test_a_write_brings_the_outcomes_of_all_that_it_saves(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    fence = await own(client, keys, 0)
    requests = RequestLog(keys, "a", "boot")
    async with committing(client, keys, requests=requests) as committer:
        entries = tuple(LogEntry(f"r{n}", "f", 200, version=n) for n in (1, 2, 3))
        await asyncio.wait_for(committer.submit(0, fence, keys.session(0, "k"), b"v", entries).done, 30)
        await asyncio.wait_for(committer.submit(0, fence, keys.session(0, "k"), b"w").done, 30)

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
        revisions = [await asyncio.wait_for(write.done, 30) for write in writes]
    assert (committer.stats.transactions, len(set(revisions))) == (4, 4), "what etcd would refuse is not sent"
