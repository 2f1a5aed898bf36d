"""What users of ``durability: replicas`` rely on, each promise on real processes under load."""

import asyncio
import re
import signal
from collections.abc import Sequence

import pytest

from tests.faults.judged import Caller, judged_clients
from tests.faults.pool import FaultPool
from tests.faults.test_etcd_trouble import needs_safe_etcd
from tests.harness.redis_client import redis_client
from tests.harness.waiting import until
from tests.replicas.load import Load, under_load
from tests.replicas.pool import (
    CHECKPOINT,
    REPLICAS,
    in_all_sets,
    kill_at_once,
    replica_pool,
    served_by,
    started_again,
    switch,
)
from tests.replicas.verdict import missing, went_back, wrongly_lost
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.inspect.review_inputs import Evidence, read_evidence, reviews
from understudy.telemetry.otlp.spans import StoredSpan
from understudy.telemetry.slo.model import Figure, State, Targets
from understudy.telemetry.tracing import names

LATER = 1 << 62
ETCD_AWAY = 20.0
WITHOUT_ETCD = {"not-committed", "outcome-unknown", "overloaded", "no-owner", "not-ready"}
"""What docs/api.md allows as answers to ``sync`` writes while etcd is away."""


async def assert_kept(pool: FaultPool, load: Load, *members: str) -> None:
    """Every acknowledged write is there, as these members (default: all) tell, and no version went back."""
    for member in members or pool.names:
        assert missing(load.acks, await load.contents(member)) == [], member
    assert went_back(load.acks) == []


async def assert_saved(load: Load) -> None:
    """After a while etcd itself has every acknowledged write."""

    async def saved() -> bool:
        return missing(load.acks, await load.stored()) == []

    await until(saved, 40, "etcd has every acknowledged write")


async def evidence_of(pool: FaultPool) -> Evidence:
    """All that the control servers know."""
    state, _ = await read_pool(pool.client, pool.name)
    return await read_evidence([at.record.http for at in state.controls.values()], 0, LATER)


async def spans_of(pool: FaultPool) -> Sequence[StoredSpan]:
    """All spans that the control servers know."""
    return (await evidence_of(pool)).spans


async def lost_replicas(pool: FaultPool) -> Figure:
    """The figure of lost ``replicas`` writes in a review of all that the control servers know."""
    evidence = await evidence_of(pool)
    found, _ = reviews(evidence, Targets(), pool=pool.name, slots=pool.spec.slots, start_ns=0, end_ns=LATER)
    return next(figure for figure in found.figures if figure.key == "rpo_replica_writes")


async def test_a_write_is_answered_as_replicas_when_two_members_have_it(tmp_path):
    async with replica_pool(tmp_path, members=2) as pool, under_load(pool) as load:
        await load.progress(durability="replicas")
        assert {ack.durability for ack in load.acks} <= {"replicas", "sync"}
    assert load.failures == []


async def test_a_write_is_answered_as_sync_in_a_pool_of_one_member(tmp_path):
    async with replica_pool(tmp_path, members=1) as pool, under_load(pool) as load:
        await load.progress()
        assert {ack.durability for ack in load.acks} == {"sync"}
        assert missing(list(load.acks), await load.stored()) == []
    assert load.failures == []


async def test_a_write_may_ask_for_another_class_than_the_pools(tmp_path):
    classes = ("replicas", "sync", "async", "")
    async with replica_pool(tmp_path) as pool, under_load(pool, durabilities=classes) as load:
        await load.progress(120)
    answered = {(ack.asked, ack.durability) for ack in load.acks}
    told = {("replicas", "replicas"), ("sync", "sync"), ("async", "async"), ("", "replicas")}
    assert told <= answered <= told | {("replicas", "sync"), ("", "sync")}  # sync: while a set has one process
    assert load.failures == []


async def test_single_writes_of_a_sync_pool_are_answered_from_memory_and_the_others_are_not(tmp_path):
    async with replica_pool(tmp_path, more="durability: sync") as pool:
        async with under_load(pool, via=("m1", "m3"), durabilities=("replicas", "")) as load:
            await load.progress(durability="replicas")
            assert {ack.durability for ack in load.acks if ack.asked == ""} == {"sync"}
            kill_at_once(pool, ["m2"])
            await served_by(pool, {"m1", "m3"})
            await load.progress(durability="replicas")
        await assert_kept(pool, load, "m1", "m3")
        assert {ack.durability for ack in load.acks if ack.asked == ""} == {"sync"}
        assert set((await pool.losses()).values()) == {0}


async def test_a_pool_that_is_stopped_as_a_whole_saves_what_only_memory_has(tmp_path):
    rare = "durability: replicas\nreplication: {patience_ms: 1500, checkpoint_ms: 60000}"
    async with replica_pool(tmp_path, more=rare) as pool:
        async with under_load(pool) as load:
            await load.progress(durability="replicas")
        assert missing(load.acks, await load.stored()) != [], "etcd lacks some of it"

        for member in pool.members.values():
            member.signal(signal.SIGTERM)
        await until(lambda: not any(member.runs for member in pool.members.values()), 60, "all members have ended")
        assert missing(load.acks, await load.stored()) == []

        await until(pool.settled, 60, "the pool is whole again")
        assert set((await pool.losses()).values()) == {0}
        assert missing(load.acks, await load.contents("m1")) == []


async def test_nothing_is_lost_when_a_member_is_killed_and_its_heirs_serve(tmp_path):
    async with replica_pool(tmp_path) as pool:
        async with under_load(pool, via=("m1", "m3")) as load:
            kill_at_once(pool, ["m2"])
            await served_by(pool, {"m1", "m3"})
            await load.progress(durability="replicas")
            await assert_kept_so_far(pool, load)
            await started_again(pool, "m2")
            await in_all_sets(pool)
            await load.progress()
        await assert_kept(pool, load)
        assert set((await pool.losses()).values()) == {0}


async def assert_kept_so_far(pool: FaultPool, load: Load) -> None:
    """Every write that is acknowledged by now is there, as ``m3`` tells while writes go on."""
    acks = list(load.acks)
    assert missing(acks, await load.contents("m3")) == []


async def test_nothing_is_lost_when_an_active_and_a_standby_are_killed_at_once(tmp_path):
    async with replica_pool(tmp_path) as pool:
        async with under_load(pool, via=("m3",)) as load:
            kill_at_once(pool, ["m1", "m2"])
            await served_by(pool, {"m3"})
            await load.progress()
        await assert_kept(pool, load, "m3")
        assert set((await pool.losses()).values()) == {0}
        await assert_saved(load)  # one copy is left, so all of it is in etcd


async def test_replicas_writes_go_on_while_etcd_is_stopped_and_etcd_gets_them_afterwards(tmp_path):
    async with (
        replica_pool(tmp_path) as pool,
        under_load(pool, pause=0.1) as load,
        under_load(pool, durabilities=("sync",), sessions=6, pause=0.1) as committed,
    ):
        await in_all_sets(pool)
        pool.etcds[0].stop()
        acknowledged = len(load.acks)
        await asyncio.sleep(ETCD_AWAY)
        for member in pool.names:
            assert await began_a_session(pool, member) == (201, "replicas")
        assert len(load.acks) - acknowledged > 100
        assert {ack.durability for ack in load.acks[acknowledged:]} == {"replicas"}
        for member in pool.names:
            acks = list(load.acks)
            assert missing(acks, await load.contents(member, linearizable=False)) == [], f"reads by {member}"
        pool.etcds[0].spawn()
        await pool.etcds[0].ready()
        await committed.progress()
        await load.progress()
        await load.end()
        await committed.end()
        assert load.failures == []
        assert {failure.problem for failure in committed.failures if failure.status} <= WITHOUT_ETCD
        await assert_kept(pool, load)
        await assert_kept(pool, committed)
        await assert_saved(load)


@needs_safe_etcd
async def test_etcds_leader_and_a_member_die_at_once_and_nothing_is_lost_or_written_twice(tmp_path):
    async with replica_pool(tmp_path, etcds=3) as pool, judged_clients(pool, ("replicas", "sync")):
        caller, leader = Caller(pool), await pool.leader()
        leader.kill()
        kill_at_once(pool, ["m1"])
        for member in ("m2", "m3"):
            assert await caller.store(member, f"with-a-new-leader-{member}", "kept") in (200, 201)
        await served_by(pool, ("m2", "m3"))
        leader.spawn()
        await leader.ready()
        await started_again(pool, "m1")

        async def all_kept() -> bool:
            answers = [await caller.get("m1", f"with-a-new-leader-{member}") for member in ("m2", "m3")]
            return answers == [(200, "kept")] * 2

        await until(all_kept, 40, "m1 knows the pool again, and answers for both")


async def began_a_session(pool: FaultPool, member: str) -> tuple[int, str]:
    """Make a session through a member; the status of the answer, and the class that it names."""
    url = f"http://{pool.members[member].api}/v1/sessions/new-at-{member}"
    async with pool.http.put(url, data="{}", headers={"Content-Type": "application/json"}) as answer:
        return answer.status, answer.headers.get("Understudy-Durability", "")


@pytest.mark.nightly
async def test_a_frozen_standby_is_left_out_and_comes_back(tmp_path):
    async with replica_pool(tmp_path) as pool:
        record = await pool.record("m2")
        async with under_load(pool, via=("m1", "m3"), active=("m1", "m3")) as load:
            written = {pool.spec.slot_of_key(key) for key in load.keys}
            pool.members["m2"].signal(signal.SIGSTOP)
            try:
                await until(lambda: are_without(pool, written, "m2"), 40, "its sync sets are without m2")
                await load.progress(durability="replicas")
            finally:
                pool.members["m2"].signal(signal.SIGCONT)
            await in_all_sets(pool)
            await load.progress()
        assert load.failures == []
        assert record is not None
        sets = await pool.valid_sync_sets()
        assert all(("m2", record.boot) in sets[slot].members for slot in written)
        await assert_kept(pool, load)


async def are_without(pool: FaultPool, slots: set[int], name: str) -> bool:
    sets = await pool.valid_sync_sets()
    return all(slot in sets and name not in sets[slot].names for slot in slots)


async def test_nobody_notices_that_a_member_is_drained(tmp_path):
    async with replica_pool(tmp_path) as pool:
        async with under_load(pool, via=("m1", "m2")) as load:
            pool.members["m3"].signal(signal.SIGTERM)
            assert await pool.members["m3"].ended() == 0
            await served_by(pool, {"m1", "m2"})
            await load.progress(durability="replicas")
        assert load.failures == []
        await assert_kept(pool, load, "m1", "m2")
        assert set((await pool.losses()).values()) == {0}


async def test_nobody_notices_that_five_members_become_two_at_once(tmp_path):  # infinispan 16316
    async with replica_pool(tmp_path, members=5) as pool:
        async with under_load(pool, via=("m1", "m2")) as load:
            leaving = [pool.members[name] for name in ("m3", "m4", "m5")]
            for member in leaving:
                member.signal(signal.SIGTERM)
            assert [await member.ended() for member in leaving] == [0, 0, 0]
            await served_by(pool, {"m1", "m2"})
            await load.progress()
        assert load.failures == []
        await assert_kept(pool, load, "m1", "m2")
        assert set((await pool.losses()).values()) == {0}


@pytest.mark.nightly
async def test_only_the_youngest_replicas_writes_are_gone_after_all_members_are_killed_and_that_is_counted(tmp_path):
    async with replica_pool(tmp_path, traces=True) as pool:
        before = await pool.losses()
        async with under_load(pool, durabilities=("replicas", "replicas", "sync")) as load:
            await load.progress(300)
            died = kill_at_once(pool, pool.names)
            await load.halt()
        await started_again(pool, *pool.names)
        lossy = {slot for slot, count in (await pool.losses()).items() if count > before.get(slot, 0)}
        for member in pool.names:
            contents = await load.contents(member)
            assert wrongly_lost(load.acks, contents, died=died, checkpoint=CHECKPOINT, lossy=lossy) == [], member

        async def reviewed() -> bool:
            return (await lost_replicas(pool)).value == len(lossy)

        await until(reviewed, 30, f"the review counts {len(lossy)} slots that lost all copies")
        found = await lost_replicas(pool)
        assert found.state is (State.MISSED if lossy else State.MET)
        told = re.search(r"none was older than (\d+) s", found.basis)
        assert (told is not None and int(told[1]) >= CHECKPOINT) or not lossy
        await in_all_sets(pool)
        restored = {key for key in load.keys if pool.spec.slot_of_key(key) in lossy}
        assert restored
        for member in pool.names:
            for consistency in ("", "stale"):
                said = await said_restored(pool, member, load.keys, consistency)
                assert set(said) == restored
                assert min(said.values()) > CHECKPOINT
        async with under_load(pool) as again:
            await again.progress(durability="replicas")
        await assert_kept(pool, again)
        assert await said_restored(pool, "m1", again.keys) == {}


async def said_restored(pool: FaultPool, member: str, keys: Sequence[str], consistency: str = "") -> dict[str, int]:
    """The sessions of which a member's answers say that they were restored, and how much may be missing, in seconds."""
    headers = {"Understudy-Consistency": consistency} if consistency else {}
    found = {}
    for key in keys:
        url = f"http://{pool.members[member].api}/v1/sessions/{key}"
        async with pool.http.get(url, headers=headers) as answer:
            assert answer.status == 200
            if "Understudy-Restored" in answer.headers:
                found[key] = int(answer.headers["Understudy-Restored"])
    return found


async def test_the_trace_of_a_takeover_tells_what_the_member_that_came_back_was_sent(tmp_path):
    async with replica_pool(tmp_path, traces=True) as pool:
        async with under_load(pool, sessions=20) as load:
            await load.progress()
        kill_at_once(pool, ["m1"])
        await served_by(pool, {"m2", "m3"})
        await started_again(pool, "m1")
        await in_all_sets(pool)

        async def rejoined() -> list[StoredSpan]:
            found = [span for span in await spans_of(pool) if span.name == names.REJOIN]
            return found if sum(span.attributes[names.SLOTS] for span in found) >= pool.spec.slots else []

        spans = await until(rejoined, 30, "m1 has rejoined in all slots")
        assert {span.trace_id for span in spans} == {
            span.trace_id for span in await spans_of(pool) if span.name == names.FAILOVER
        }
        assert {(span.attributes[names.MEMBER], span.instance) for span in spans} == {("m1", "m2"), ("m1", "m3")}
        assert sum(span.attributes[names.COPY_SESSIONS] for span in spans) >= len(load.keys)
        assert sum(span.attributes[names.COPY_BYTES] for span in spans) > 0
        for span in spans:
            assert 0 < span.attributes[names.COPY_LONGEST_MS] <= span.duration_ns / 1e6 + 0.001


async def test_nobody_notices_that_a_pool_is_switched_to_replicas_and_back(tmp_path):
    async with replica_pool(tmp_path, more="durability: sync") as pool:
        async with under_load(pool, durabilities=("",)) as load:
            assert {ack.durability for ack in load.acks} == {"sync"}
            await switch(pool, REPLICAS)
            await in_all_sets(pool)
            await load.progress(durability="replicas")
            await switch(pool, "durability: sync")
            await load.progress(durability="sync")
            await until(lambda: nothing_in_memory_only(pool), 60, "no slot has writes in memory only")
            await load.progress()
        assert load.failures == []
        assert {ack.durability for ack in load.acks[-20:]} == {"sync"}
        await assert_kept(pool, load)
        assert missing(load.acks, await load.stored()) == []


async def nothing_in_memory_only(pool: FaultPool) -> bool:
    return not any(one.memory for one in (await pool.valid_sync_sets()).values())


async def test_a_redis_client_finds_what_it_set_after_the_member_that_had_it_is_killed(tmp_path):
    async with replica_pool(tmp_path) as pool:
        key = await pool.key_at("m2")
        async with redis_client(pool.members["m1"].redis) as one, redis_client(pool.members["m3"].redis) as other:
            assert await one("SET", key, "kept") == b"OK"
            assert await other("GET", key) == b"kept"
            kill_at_once(pool, ["m2"])

            async def served() -> bool:
                return await other("GET", key) == b"kept"

            await until(served, 40, "m3 finds it")
            assert await one("SET", key, "later") == b"OK"
            assert await other("GET", key) == b"later"
