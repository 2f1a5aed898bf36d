"""What a pool does when a real etcd is in trouble, and that it recovers without help (docs/operations.md).

Forgotten authentication tokens are in ``tests/proxy/test_security_etcd.py``.
"""

import contextlib
import time

import pytest

from tests.faults.history import History
from tests.faults.judged import Caller, judged_clients
from tests.faults.pool import DEBIAN_ETCD, KilledEtcd, fault_pool
from tests.faults.test_faults import NO_SAFE_ETCD
from tests.harness.commands import commands, ready
from tests.harness.etcd import EtcdServer
from tests.harness.waiting import free_port, stays, until
from understudy.statesync.etcd.client import NoSpace
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.spec_reader import parse_spec

DEFINITE_NO = ("not-committed", "no-owner")
QUOTA = 8 << 20

needs_safe_etcd = pytest.mark.skipif(not DEBIAN_ETCD.exists(), reason=NO_SAFE_ETCD)


@needs_safe_etcd
async def test_a_cluster_of_three_etcds_loses_a_member_its_leader_and_its_majority(tmp_path):
    async with fault_pool(takeover="lease", etcds=3, home=tmp_path) as pool, judged_clients(pool):
        caller, settled = Caller(pool), len(pool.owner_changes)
        leader = await pool.leader()
        follower = next(etcd for etcd in pool.etcds if etcd is not leader)

        follower.kill()
        await until(lambda: caller.accepted("with one down"), 40, "writes go on with one of three down")
        follower.spawn()
        await follower.ready()

        leader = await pool.leader()
        leader.kill()
        await until(lambda: caller.accepted("with a new leader"), 40, "writes go on with a new leader")
        leader.spawn()
        await leader.ready()

        await until(lambda: caller.accepted("kept"), 40, "writes go on once it is back")
        for etcd in pool.etcds[:2]:
            etcd.kill()
        await until(lambda: _refused(caller), 40, "sync writes are refused without a majority")
        await until(lambda: _memory_is_over(caller), 40, "owner reads end with the read deadline")
        for etcd in pool.etcds[:2]:
            etcd.spawn()
        for etcd in pool.etcds[:2]:
            await etcd.ready()

        await until(lambda: _kept(caller, pool.names[1:]), 40, "what was acknowledged is there")
        await until(lambda: caller.accepted("after all of it"), 40, "writes go on without help")
        # Who finds the new leader later than the others may have to give way; while nobody reaches etcd, nothing moves.
        assert [c for c in pool.takeovers(settled) if not c.cause.endswith("it cannot reach etcd")] == []


async def _refused(caller: Caller) -> bool:
    status, problem, retry_after = await caller.put("m1", "probe-m1", "perhaps")
    return status == 503 and problem in (*DEFINITE_NO, "outcome-unknown") and retry_after != ""


async def _kept(caller: Caller, names: list[str]) -> bool:
    answers = [await caller.get(name, f"probe-{name}", Understudy_Consistency="linearizable") for name in names]
    return answers == [(200, "kept")] * len(names)


async def _memory_is_over(caller: Caller) -> bool:
    return (await caller.get("m1", "probe-m1"))[0] == 503


@pytest.mark.nightly
async def test_a_slow_etcd_makes_writes_slow_and_moves_nothing(tmp_path):
    async with fault_pool(takeover="lease", home=tmp_path) as pool, judged_clients(pool) as history:
        settled = len(pool.owner_changes)
        begin = time.monotonic()
        for program in (*pool.members.values(), *pool.controls):
            for cable in program.to_etcd:
                cable.delay = 0.1  # each way

        await stays(lambda: pool.moves(settled) == [], 5.0, "no slot moves")

        attempts = [attempt for op in history.ops for attempt in op.attempts if attempt.begin > begin]
        assert [attempt for attempt in attempts if attempt.status == 503 and attempt.note != "overloaded"] == []
        await until(lambda: _written(history, begin) > 10, 40, "writes go on")
        assert pool.moves(settled) == []
        for program in (*pool.members.values(), *pool.controls):
            for cable in program.to_etcd:
                cable.delay = 0.0


def _written(history: History, begin: float) -> int:
    return sum(op.writes and op.outcome == "ok" and op.begin > begin for op in history.ops)


@needs_safe_etcd
async def test_a_full_store_refuses_writes_and_keeps_what_it_took(tmp_path):
    arguments = (f"--quota-backend-bytes={QUOTA}",)
    async with fault_pool(takeover="lease", etcd_arguments=arguments, home=tmp_path) as pool, judged_clients(pool):
        caller, etcd, settled = Caller(pool), pool.etcds[0], len(pool.owner_changes)
        await until(lambda: caller.accepted("kept"), 40, "all members take writes")
        assert await caller.store("m1", "established", "v") == 201

        await _fill(etcd)
        for key in ("established", "new"):
            status, problem, retry_after = await caller.put("m1", key, "v")
            assert (status, problem) in [(503, "not-committed"), (503, "outcome-unknown"), (503, "overloaded")]
            assert (problem == "overloaded") <= (key == "new")
            assert retry_after != ""
        for name in pool.names:
            assert await caller.get(name, f"probe-{name}") == (200, "kept")
            assert await caller.get(name, f"probe-{name}", Understudy_Consistency="linearizable") == (200, "kept")

        async with etcd.client() as client:
            revision = (await client.range(pool.keys.everything)).revision
        etcd.ctl("compact", str(revision))
        etcd.ctl("defrag")
        etcd.ctl("alarm", "disarm")

        await until(lambda: caller.accepted("again"), 40, "writes go on once there is space")
        assert pool.takeovers(settled) == []


async def _fill(etcd: EtcdServer) -> None:
    """Write one large key over and over until etcd raises its alarm."""
    async with etcd.client() as client:
        for _ in range(4 * QUOTA >> 20):
            try:
                await client.put("/filler", bytes(1 << 20))
            except NoSpace:
                return
    raise AssertionError("etcd did not run out of space")


async def test_watches_whose_history_was_compacted_read_everything_anew(tmp_path):
    async with fault_pool(takeover="lease", home=tmp_path) as pool, judged_clients(pool):
        caller, etcd = Caller(pool), pool.etcds[0]
        deaf = pool.members["m1"]
        key = await pool.key_at("m2")
        assert await caller.store("m2", key, "before") == 201
        cables = [*deaf.to_etcd, *pool.controls[0].to_etcd]
        gaps = (await pool.status("m1"))["sync"]["gaps"]

        for cable in cables:
            cable.reset()
        for value in ("lost on the deaf", "lost as well", "meanwhile"):
            assert await caller.store("m2", key, value) == 200
        async with etcd.client() as client:
            await client.compact((await client.range(pool.keys.everything)).revision)
            for cable in cables:
                cable.mend()

            async def in_sync_again() -> bool:
                sync = (await pool.status("m1"))["sync"]
                return sync["gaps"] > gaps and sync["in_sync"] == sync["wanted"] > 0

            await until(in_sync_again, 40, "the deaf member has read everything anew")
            assert await caller.get("m1", key, Understudy_Consistency="stale") == (200, "meanwhile")
            pool.members["m3"].kill()
            await until(lambda: pool.owns_nothing("m3"), 40, "the control server sees that a member is gone")
            await until(pool.settled, 60, "the pool is whole again")


@pytest.mark.parametrize(("make", "warned"), [(EtcdServer, True), (KilledEtcd, False)], ids=["3.5.1", "Debian's"])
async def test_a_control_server_names_an_etcd_that_is_known_to_lose_data(make, warned, pool_name, tmp_path):
    if make is KilledEtcd and not DEBIAN_ETCD.exists():
        pytest.skip(NO_SAFE_ETCD)
    etcd = make()
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(etcd.close)
        await etcd.start()
        client = await stack.enter_async_context(etcd.client())
        await client.put(PoolKeys(pool_name).spec, parse_spec(f"pool: {pool_name}", where="test").encode())
        running = await stack.enter_async_context(commands(tmp_path))
        http, grpc = (f"127.0.0.1:{free_port()}" for _ in range(2))
        await running.start(
            *("control", "control", "--name", "c", "--pool", pool_name, "--etcd", etcd.endpoint),
            *("--grpc", grpc, "--http", http),
        )
        await ready(http)
        said = running.log("control")
    assert ("can lose consistency" in said) is warned
    assert (f"etcd 3.5.1 at {etcd.endpoint}" in said) is warned
