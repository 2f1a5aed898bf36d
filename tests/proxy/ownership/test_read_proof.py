"""Reads while etcd is silent: the other processes of the sync set are asked, over real connections."""

import asyncio
import time

import pytest

from tests.harness.waiting import until
from tests.proxy.members import SLOTS, InProcessMember, in_process_pool
from tests.proxy.ownership.test_replicated_slots import given, replicating, written
from understudy.proxy.ownership.read_proof import ReadProof
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.slots import slot_of

SLOT = slot_of("k", SLOTS)
PATIENCE = 5.0


def without_etcd(member: InProcessMember, monkeypatch: pytest.MonkeyPatch) -> ReadProof:
    """The proof of a member whose reads of etcd are not answered any more."""

    async def unanswered(*arguments: float) -> bool:
        await asyncio.sleep(arguments[-1])
        return False

    monkeypatch.setattr(member.reads, "holds", lambda: False)
    monkeypatch.setattr(member.reads, "renewed", unanswered)
    monkeypatch.setattr(member.reads, "confirmed", unanswered)
    for connected in member.connections._connected.values():
        connected.connection.asking = lambda: True
    return ReadProof(member.reads, member.active, member.connections)


async def test_reads_go_on_as_long_as_all_others_of_the_set_answer(
    client: EtcdClient, pool_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with replicating(client, pool_name, "a", "b", "c") as pool:
        a = await given(pool, "a", "b", "c")
        await written(a, "k", "v")
        proof = without_etcd(a, monkeypatch)
        await until(lambda: proof.holds(SLOT), PATIENCE, "the others are asked")
        assert (await a.call("GET", "k")).status == 200
        asked = time.monotonic()
        await until(lambda: proof._told_at(SLOT) > asked, PATIENCE, "they are asked again and again")

        for connected in a.connections._connected.values():
            if connected.connection._to.member == "c":
                connected.connection.asking = lambda: False
        asked = time.monotonic()
        await until(lambda: time.monotonic() > asked + 0.2, PATIENCE, "b answers alone")
        assert proof._told_at(SLOT) < asked


async def test_nobody_but_etcd_allows_reads_where_anybody_may_claim(
    client: EtcdClient, pool_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with in_process_pool(client, pool_name, "a", "b", "c") as pool:
        a = await pool.give("a", "b", "c")
        assert (await a.call("PUT", "k", "v")).status == 201
        proof = without_etcd(a, monkeypatch)
        asked = time.monotonic()
        answers = [one.connection for one in a.connections._connected.values()]
        await until(lambda: all(one.told_at > asked for one in answers), PATIENCE, "all have answered")
        assert not proof.holds(SLOT)
        assert not await proof.renewed(SLOT, 0.1)
        assert not await proof.confirmed(SLOT, asked, 0.1)


async def test_who_knows_a_later_owner_says_so_and_the_slot_is_lost_before_a_read(
    client: EtcdClient, pool_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with replicating(client, pool_name, "a", "b") as pool:
        a = await given(pool, "a", "b")
        proof = without_etcd(a, monkeypatch)
        assert await proof.confirmed(SLOT, time.monotonic(), PATIENCE)
        pool["b"].keeper.heard_of(SLOT, 99)  # its own claim, of which a cannot hear
        asked = time.monotonic()
        other = next(slot for slot in range(SLOTS) if slot != SLOT)
        assert await proof.confirmed(other, asked, PATIENCE)
        assert SLOT not in a.owned
        assert other in a.owned
        assert not proof.holds(SLOT)
