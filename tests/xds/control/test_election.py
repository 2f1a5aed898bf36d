import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.harness.etcd import EtcdServer, running_etcd
from tests.harness.waiting import until
from understudy.statesync.etcd.client import EtcdClient, Put
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import ControlServer
from understudy.xds.control.election import Leadership
from understudy.xds.control.process_lease import LEASE_SECONDS, ProcessLease

KEYS = PoolKeys("cart")
NEVER = 600
"""Seconds of a lease that does not expire in a test, however slow the machine is."""
FOUND_AGAIN = 2 * LEASE_SECONDS
"""Seconds in which a slow machine finds an etcd that is back."""


class Candidate:
    """A control server that stands for election, with a client of its own."""

    def __init__(self, etcd: EtcdServer, name: str, ttl: int) -> None:
        self.client = EtcdClient(etcd.endpoints)
        self.lease = ProcessLease(self.client, ttl)
        self.leadership = Leadership(self.client, KEYS, ControlServer(name, f"{name}:1", f"{name}:2"), self.lease)
        self.changes: list[bool] = []
        self.leadership.on_change = lambda: self.changes.append(self.leadership.is_leader)
        self.task = asyncio.create_task(self.run())

    async def run(self) -> None:
        """What a process does: it ends its lease when its leadership has ended."""
        holding = asyncio.create_task(self.lease.run())
        try:
            await self.leadership.run()
            self.lease.end()
            await holding
        finally:
            holding.cancel()

    async def resign(self) -> None:
        self.leadership.resign()
        await asyncio.wait_for(self.task, 30)

    async def crash(self) -> None:
        """End without a farewell: the lease stays until it expires."""
        await self.client.close()
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def close(self) -> None:
        self.leadership.resign()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.task, 3)
        await self.client.close()


@pytest.fixture
async def etcd() -> AsyncIterator[EtcdServer]:
    async with running_etcd() as server:
        yield server


@pytest.fixture
async def stand(etcd: EtcdServer):
    standing: list[Candidate] = []

    def start(name: str, ttl: int = NEVER) -> Candidate:
        standing.append(Candidate(etcd, name, ttl))
        return standing[-1]

    yield start
    await asyncio.gather(*(candidate.close() for candidate in standing), return_exceptions=True)


def leads(candidate: Candidate):
    return lambda: candidate.leadership.is_leader


async def test_one_of_several_leads_and_all_are_registered(stand, etcd):
    candidates = [stand(name) for name in ("a", "b", "c")]
    await asyncio.gather(*(candidate.leadership.registered.wait() for candidate in candidates))
    await until(lambda: sum(c.leadership.is_leader for c in candidates) == 1, what="one leader")

    async with etcd.client() as client:
        leader = await client.get(KEYS.leader)
        controls = [await client.get(KEYS.control(name)) for name in ("a", "b", "c")]
    (winner,) = [name for name, c in zip("abc", candidates, strict=True) if c.leadership.is_leader]
    assert leader.value.decode() == winner
    assert [ControlServer.decode(kv.value).grpc for kv in controls] == ["a:1", "b:1", "c:1"]


async def test_a_leader_that_resigns_is_followed_at_once_and_leaves_nothing_behind(stand, etcd):
    first = stand("a")
    await until(leads(first))
    second = stand("b")
    await second.leadership.registered.wait()
    await first.resign()
    await until(leads(second))

    assert not first.leadership.is_leader
    assert first.changes == [True, False]
    async with etcd.client() as client:
        assert await client.get(KEYS.control("a")) is None


async def test_a_leader_that_crashes_is_followed_when_its_lease_goes(stand):
    first = stand("a", LEASE_SECONDS)
    await until(leads(first))
    second = stand("b")
    await second.leadership.registered.wait()
    await first.crash()

    await until(leads(second), 40)


async def test_a_deposed_leader_cannot_write_and_notices(stand, etcd):
    first = stand("a")
    await until(leads(first))
    fence = first.leadership.fence
    async with etcd.client() as client:
        await client.delete(KEYS.leader)
        await until(lambda: first.leadership.is_leader and first.leadership.fence != fence, what="a new term")
        old = await client.txn([fence], [Put(KEYS.table, b"old")])
        new = await client.txn([first.leadership.fence], [Put(KEYS.table, b"new")])

        assert not old.succeeded
        assert new.succeeded
        assert first.leadership.term > fence.revision


async def test_a_leader_stays_leader_over_a_restart_of_etcd(stand, etcd):
    first = stand("a", FOUND_AGAIN)
    await until(leads(first))
    fence = first.leadership.fence
    await etcd.settle(first.client)
    etcd.kill()
    await etcd.start()
    second = stand("b")
    await second.leadership.registered.wait()

    async with etcd.client() as client:

        async def writes() -> bool:
            result = await client.txn([first.leadership.fence], [Put(KEYS.table, b"still here")])
            return result.succeeded

        await until(writes)
    assert first.leadership.fence == fence
    assert not second.leadership.is_leader


async def test_a_server_that_lost_its_lease_stands_again(stand, etcd):
    first = stand("a")
    await until(leads(first))
    async with etcd.client() as client:
        leader = await client.get(KEYS.leader)
        etcd.ctl("lease", "revoke", f"{leader.lease:x}")
        await until(lambda: first.leadership.is_leader and first.leadership.term > leader.create_revision, 40)

        assert (await client.get(KEYS.leader)).lease != leader.lease
        assert await client.get(KEYS.control("a")) is not None


async def test_nobody_leads_while_etcd_is_away_and_somebody_does_afterwards(stand, etcd):
    first = stand("a", LEASE_SECONDS)
    await until(leads(first))
    await etcd.settle(first.client)
    etcd.kill()
    await until(lambda: not first.leadership.is_leader, 40, "the leader gives up when its lease may be gone")
    await etcd.start()

    await until(leads(first), 40)
    async with etcd.client() as client:
        assert (await client.get(KEYS.leader)).value == b"a"


async def test_a_leader_whose_key_is_still_there_on_its_former_lease_goes_on_with_its_term(stand, etcd):
    first = stand("a", FOUND_AGAIN)
    await until(leads(first))
    fence = first.leadership.fence
    await etcd.settle(first.client)
    etcd.kill()
    await until(lambda: first.leadership.trouble, 40, "it asks for a new lease in vain")
    await etcd.start()

    await until(leads(first), 40)
    assert first.leadership.fence == fence
    async with etcd.client() as client:
        await until(lambda: kept(client, first), what="the key has moved to the new lease")


async def kept(client: EtcdClient, leader: Candidate) -> bool:
    """Whether the leader's key and its address hang on one lease."""
    key, record = await client.get(KEYS.leader), await client.get(KEYS.control("a"))
    return key.lease == record.lease and leader.leadership.is_leader


async def test_fencing_without_leading_is_a_programming_error(stand, etcd):
    first = stand("a")
    await until(leads(first))
    second = stand("b")
    await second.leadership.registered.wait()

    with pytest.raises(RuntimeError, match="does not lead"):
        _ = second.leadership.fence
