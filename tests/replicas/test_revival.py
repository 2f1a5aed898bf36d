"""An operator ends a total loss: on real processes, with the command that operators use."""

import asyncio
import json
import signal
import sys
from typing import Any

import pytest

from tests.faults.pool import FaultPool
from tests.harness.forkserver import forked
from tests.harness.places import ROOT
from tests.harness.waiting import until
from tests.replicas.load import under_load
from tests.replicas.pool import REPLICAS, in_all_sets, kill_at_once, replica_pool
from tests.replicas.test_replicas import said_restored
from tests.replicas.verdict import missing
from understudy.deploy.inspect.query import read_pool
from understudy.statesync.etcd.client import ModRevision, Put
from understudy.statesync.pool.ownership import process_of
from understudy.statesync.pool.records import SyncRecord
from understudy.statesync.replication.sync_set import Process

DOOMED = ("m1", "m2", "m3")
WAITS = REPLICAS.replace("}", ", on_total_loss: wait}")


async def slots(pool: FaultPool, *arguments: str) -> tuple[int, Any, str]:
    """``understudy slots``: its exit code, its answer in JSON, and what it wrote to stderr."""
    place = ("--etcd", pool.etcds[0].endpoint, "--pool", pool.name, "-o", "json")
    command = forked([sys.executable, "-m", "understudy.deploy.cli", "slots", *arguments, *place])
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=pipe, stderr=pipe)
    out, err = await process.communicate()
    return process.returncode or 0, json.loads(out) if out else None, err.decode()


async def sets_within(pool: FaultPool, names: tuple[str, ...]) -> set[int]:
    """The slots of which no other member has a copy in its sync set."""
    return {slot for slot, one in (await pool.valid_sync_sets()).items() if one.names <= set(names)}


async def waiting(pool: FaultPool) -> set[int]:
    _, view, _ = await slots(pool, "waiting")
    return {row["slot"] for row in view["waiting"]}


async def test_slots_whose_whole_set_was_killed_wait_until_an_operator_revives_them(tmp_path):
    async with replica_pool(tmp_path, members=4, more=WAITS) as pool:
        theirs = await sets_within(pool, DOOMED)
        assert theirs
        refused = await slots(pool, "revive", str(min(theirs)), "--yes")
        assert (refused[0], "serves it" in refused[2]) == (1, True)
        async with under_load(pool, via=("m4",), sessions=24) as load:
            await load.progress(100)
            died = kill_at_once(pool, DOOMED)
            await load.halt()

        await until(lambda: same(pool, theirs), 60, "the slots of the three wait, and no others")
        losses = await pool.losses()
        assert set(losses.values()) == {0}
        lost = next((key for key in load.keys if pool.spec.slot_of_key(key) in theirs), pool.key_of(theirs))
        async with pool.http.get(f"http://{pool.members['m4'].api}/v1/sessions/{lost}") as answer:
            assert answer.status == 503

        code, view, said = await slots(pool, "revive", "--all-waiting", "--yes")
        assert (code, set(view["revived"]), view["waiting"]) == (0, theirs, []), said
        contents = await load.contents("m4")
        restored = {key for key in load.keys if pool.spec.slot_of_key(key) in theirs}
        assert set(await said_restored(pool, "m4", load.keys)) == restored
        young = [ack for ack in missing(load.acks, contents) if ack.slot in theirs and ack.end > died - 3.0]
        assert missing(load.acks, contents) == young
        assert {slot for slot, count in (await pool.losses()).items() if count} == theirs
        async with under_load(pool, via=("m4",)) as again:
            await again.progress()
        assert missing(again.acks, await again.contents("m4")) == []
        assert await slots(pool, "waiting") == (0, {"pool": pool.name, "waiting": []}, "")


async def same(pool: FaultPool, theirs: set[int]) -> bool:
    return await waiting(pool) == theirs


@pytest.mark.nightly
async def test_slots_of_hosts_that_are_silent_are_revived_and_their_processes_follow_when_they_come_back(tmp_path):
    async with replica_pool(tmp_path, members=4) as pool:
        theirs = await sets_within(pool, DOOMED)
        assert theirs
        key = pool.key_of(theirs)
        api = f"http://{pool.members['m4'].api}/v1/sessions/{key}"
        async with pool.http.put(api, data="old", headers={"Understudy-Durability": "sync"}) as answer:
            assert answer.status == 201
        for name in DOOMED:
            pool.members[name].signal(signal.SIGSTOP)
        try:
            await until(lambda: same(pool, theirs), 60, "the slots of the three wait, and no others")
            code, view, said = await slots(pool, "revive", *map(str, theirs), "--yes", "--wait", "90")
            assert (code, set(view["revived"])) == (0, theirs), said
            async with pool.http.get(api) as answer:
                assert (await answer.text(), "Understudy-Restored" in answer.headers) == ("old", True)
            async with pool.http.put(api, data="new") as answer:
                assert answer.status == 200
        finally:
            for name in DOOMED:
                pool.members[name].signal(signal.SIGCONT)
        await until(pool.settled, 90, "the pool is whole again")
        for name in pool.names:
            async with pool.http.get(f"http://{pool.members[name].api}/v1/sessions/{key}") as answer:
                assert (await answer.text(), "Understudy-Restored" in answer.headers) == ("new", False), name
        await in_all_sets(pool)
        async with under_load(pool, via=("m4",)) as load:
            await load.progress(durability="replicas")
        assert missing(load.acks, await load.contents("m1")) == []


async def test_former_actives_of_a_slot_whose_set_is_gone_do_not_wait_for_each_other(tmp_path):
    async with replica_pool(tmp_path) as pool:
        pool.members["m1"].signal(signal.SIGSTOP)
        theirs = await left_with_former_actives(pool, "m1", ("m2", "m3"))
        assert theirs
        kill_at_once(pool, ["m1"])
        await until(lambda: served_by(pool, theirs, {"m2", "m3"}), 60, "the slots are served again")
        assert {slot for slot, count in (await pool.losses()).items() if count} == theirs
        async with under_load(pool, via=("m2", "m3")) as load:
            await load.progress()
        assert missing(load.acks, await load.contents("m2")) == []


async def left_with_former_actives(pool: FaultPool, active: str, former: tuple[str, ...]) -> set[int]:
    """Have the sync records of a stopped active's slots say that it alone is in the set, after these actives."""
    state, _ = await read_pool(pool.client, pool.name)
    earlier = tuple(Process(name, state.members[name].record.boot) for name in former)
    changed = set()
    for slot, owner in state.owners.items():
        if owner.record.active == active:
            record = SyncRecord(owner.record.epoch, (process_of(owner.record),), memory=True, former=earlier)
            key, fence = pool.keys.sync_set(slot), ModRevision(pool.keys.owner(slot), owner.revision)
            if (await pool.client.txn([fence], [Put(key, record.encode())])).succeeded:
                changed.add(slot)
    return changed


async def served_by(pool: FaultPool, theirs: set[int], members: set[str]) -> bool:
    owners = await pool.owners()
    return all(owners[slot].active in members for slot in theirs)
