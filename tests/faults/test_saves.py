"""Saves of sessions fail, while leases, claims, sync sets and all else in etcd work."""

import asyncio
from collections.abc import Sequence

import pytest

from tests.faults.judged import Caller
from tests.faults.pool import FaultPool, fault_pool
from tests.harness.etcd_gate import SaveFault
from tests.harness.sidecars import PATIENT
from tests.harness.waiting import stays, until
from tests.replicas.load import Load, under_load
from tests.replicas.pool import CHECKPOINT, REPLICAS, in_all_sets, kill_at_once, served_by
from tests.replicas.verdict import missing, went_back

REPLICATED = f"copies: 2\n{PATIENT}\n{REPLICAS}"
WITHOUT_SAVES = {"not-committed", "outcome-unknown", "overloaded"}
"""What docs/api.md allows as answers to ``sync`` writes that etcd does not take."""


def gated_pool(home):
    """Two members, whose saves can fail alone."""
    return fault_pool(takeover="fast", members=2, slots=8, home=home, gate=True, more=REPLICATED)


async def unsaved(pool: FaultPool, load: Load, members: Sequence[str], how: SaveFault) -> None:
    """Wait until so much is acknowledged while saves of these members fail that etcd would have some of it by now."""
    tried = {name: await pool.gate.failed(name) for name in members}

    async def all_tried() -> bool:
        return all([await pool.gate.failed(name) > tried[name] for name in members])

    await until(all_tried, 20, "saves are tried")
    before, acknowledged = await load.stored(), len(load.acks)
    await asyncio.sleep(CHECKPOINT)
    await load.progress(durability="replicas")
    if how is not SaveFault.LOST:
        assert await load.stored() == before
        assert missing(load.acks[:acknowledged], before) != []


async def all_saved(load: Load) -> None:
    """Wait until etcd has every write that is acknowledged by now."""
    acks = list(load.acks)

    async def saved() -> bool:
        return missing(acks, await load.stored()) == []

    await until(saved, 40, "etcd has every acknowledged write")


async def refused(pool: FaultPool, how: SaveFault) -> None:
    """A write of class ``sync`` is not acknowledged."""
    status, problem, _ = await Caller(pool).put("m1", "asks", how.name, Understudy_Durability="sync")
    assert status == 503
    assert problem in WITHOUT_SAVES


@pytest.mark.nightly
async def test_replicas_writes_go_on_while_saves_fail_and_etcd_gets_them_after(tmp_path):
    async with gated_pool(tmp_path) as pool:
        await in_all_sets(pool, 2)
        settled, sets = len(pool.owner_changes), await pool.sync_sets()
        async with under_load(pool) as load:
            for how in (SaveFault.DENIED, SaveFault.LOST):
                async with pool.gate.failing(pool.names, how):
                    await asyncio.gather(unsaved(pool, load, pool.names, how), refused(pool, how))
                await all_saved(load)
        assert load.failures == []
        assert went_back(load.acks) == []
        assert pool.owner_changes[settled:] == []
        assert await pool.sync_sets() == sets


async def test_nothing_is_lost_when_an_active_dies_whose_saves_fail(tmp_path):
    async with gated_pool(tmp_path) as pool:
        await in_all_sets(pool, 2)
        theirs = {"via": ["m2"], "active": ["m1"]}
        async with under_load(pool, **theirs) as load, under_load(pool, **theirs) as resting:
            async with pool.gate.failing(["m1"], SaveFault.HANGING):
                await unsaved(pool, resting, ["m1"], SaveFault.HANGING)
                await resting.end()  # nobody writes these sessions again
                kill_at_once(pool, ["m1"])
                await served_by(pool, {"m2"})
                for one in (load, resting):
                    assert missing(list(one.acks), await one.contents("m2")) == []
                await load.progress()
            await all_saved(load)
            await all_saved(resting)
        pool.members["m1"].start()
        await in_all_sets(pool, 2)
        for name in pool.names:
            assert missing(load.acks, await load.contents(name)) == []
        assert went_back(load.acks) == []
        assert set((await pool.losses()).values()) == {0}


async def test_a_member_that_is_left_alone_acknowledges_nothing_while_its_saves_fail(tmp_path):
    async with gated_pool(tmp_path) as pool:
        await in_all_sets(pool, 2)
        async with under_load(pool, via=["m2"]) as load:
            async with pool.gate.failing(pool.names, SaveFault.BUSY):
                await unsaved(pool, load, pool.names, SaveFault.BUSY)
                kill_at_once(pool, ["m1"])
                await served_by(pool, {"m2"})
                acknowledged = load.count()
                await stays(lambda: load.count() == acknowledged, 2 * CHECKPOINT, "nothing is acknowledged")
                sets, stored = await pool.valid_sync_sets(), await load.stored()
                assert all(sets[ack.slot].memory for ack in missing(load.acks, stored)), "nobody may claim from etcd"
            await load.progress()
            await all_saved(load)
        assert missing(load.acks, await load.contents("m2")) == []
        assert went_back(load.acks) == []
        assert set((await pool.losses()).values()) == {0}
