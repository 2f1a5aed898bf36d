"""Group commit against a real etcd: fencing per slot, exactly-once over unknown outcomes, batches."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from statesync.commit import Committer, CommitUnknown, NotCommitted, NotOwner
from statesync.etcd import EtcdClient
from statesync.keys import PoolKeys, prefix_range
from statesync.pool import Owner
from tests.harness.etcd import EtcdServer


@contextlib.asynccontextmanager
async def committing(client: EtcdClient, keys: PoolKeys, boot: str = "boot") -> AsyncIterator[Committer]:
    committer = Committer(client, keys, "a", boot)
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
        revisions = [await committer.outcome(write, 5) for write in writes]

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
            await committer.outcome(bad, 5)
        await committer.outcome(good, 5)

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
            await committer.outcome(late, 5)
        await committer.outcome(fresh, 5)

    assert await client.get(keys.session(0, "k")) is None


async def test_an_unknown_outcome_is_resolved_and_the_write_is_applied_once(
    etcd_server: EtcdServer, pool_name: str
) -> None:
    keys = PoolKeys(pool_name)
    async with etcd_server.client(timeout=0.3) as client, committing(client, keys) as committer:
        fence = await own(client, keys, 0)
        first = committer.submit(0, fence, keys.session(0, "k"), b"v")
        await committer.outcome(first, 5)

        etcd_server.pause()
        frozen = committer.submit(0, fence, keys.session(0, "l"), b"v")
        with pytest.raises(CommitUnknown):
            await committer.outcome(frozen, 0.7)
        waiting = committer.submit(0, fence, keys.session(0, "m"), b"v")
        with pytest.raises(NotCommitted):
            await committer.outcome(waiting, 0.1)
        etcd_server.resume()

        revision = await asyncio.wait_for(frozen.done, 10)
        written = await client.get(keys.session(0, "l"))
        assert written is not None
        assert written.create_revision == written.mod_revision == revision
        assert await client.get(keys.session(0, "m")) is None
        assert committer.stats.resent >= 1


async def test_a_former_life_of_the_member_does_not_block_its_commits(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    fence = await own(client, keys, 0)
    async with committing(client, keys, "old") as old, committing(client, keys, "new") as new:
        for committer, key in ((old, "k"), (new, "l"), (old, "m"), (new, "n")):
            await committer.outcome(committer.submit(0, fence, keys.session(0, key), b"v"), 5)

    assert (await client.range(prefix_range(keys.sessions))).count == 4


async def test_large_writes_are_spread_over_transactions_that_etcd_takes(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    fence = await own(client, keys, 0)
    async with committing(client, keys) as committer:
        writes = [committer.submit(0, fence, keys.session(0, f"k{n}"), bytes(65_536)) for n in range(60)]
        for write in writes:
            await committer.outcome(write, 10)

    assert committer.stats.transactions >= 4


async def test_a_write_that_etcd_refuses_does_not_hold_up_the_others(client: EtcdClient, pool_name: str) -> None:
    keys = PoolKeys(pool_name)
    fence = await own(client, keys, 0)
    async with committing(client, keys) as committer:
        before = committer.submit(0, fence, keys.session(0, "before"), b"v")
        huge = committer.submit(0, fence, keys.session(0, "huge"), bytes(3_000_000))
        after = committer.submit(0, fence, keys.session(0, "after"), b"v")

        with pytest.raises(NotCommitted, match="etcd refuses it"):
            await committer.outcome(huge, 10)
        await committer.outcome(before, 10)
        await committer.outcome(after, 10)

    assert await client.get(keys.session(0, "huge")) is None
