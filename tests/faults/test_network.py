"""Packets that are really lost, between parts that each have a network of their own; and a wall clock that jumps."""

import asyncio
import time

import pytest

from tests.faults.judged import Caller, judged_clients
from tests.faults.namespaces import namespaces
from tests.faults.pool import DEBIAN_ETCD, fault_pool
from tests.faults.test_faults import NO_SAFE_ETCD
from tests.harness.clock import LIBRARY, NO_LIBRARY
from tests.harness.netns import unable
from tests.harness.waiting import until

MINUTES = 300.0


@pytest.mark.skipif(not DEBIAN_ETCD.exists(), reason=NO_SAFE_ETCD)
async def test_lost_packets_and_resets_between_any_two_parts_break_no_promise(tmp_path):
    if reason := unable():
        pytest.skip(reason)
    async with (
        namespaces() as ground,
        fault_pool(takeover="lease", ground=ground, home=tmp_path) as pool,
        judged_clients(pool),
    ):
        caller, net = Caller(pool), ground.net

        with net.severed([("etcd1", "m1")]):
            await until(lambda: pool.owns_nothing("m1"), 60, "an owner that hears nothing from etcd gives way")
            await until(lambda: _taken(caller, "m2"), 40, "the others take writes meanwhile")
        await until(pool.settled, 90, "the member that was deaf is whole again")

        with net.severed([("m2", "m3"), ("m3", "m2"), ("m2", "control-1")], reset=True):
            await asyncio.sleep(2.0)
        with net.severed([("m3", "etcd1")], reset=True), net.severed([("m1", "m3")]):
            await asyncio.sleep(2.0)
        with net.severed([("control-1", "etcd1")]):
            await asyncio.sleep(2.0)

        everybody = [party for party in net.addresses if party != "m2"]
        with net.severed([pair for party in everybody for pair in (("m2", party), (party, "m2"))]):
            await until(lambda: pool.owns_nothing("m2"), 60, "a member that is cut off from all gives way")
            assert (await caller.put("m2", "alone", "v"))[0] == 503
            # Until its read deadline it may answer from memory: so long its successors serve nobody.
            await until(lambda: _refuses(caller, "m2"), 40, "it answers no reads either")
        await until(pool.settled, 90, "the pool is whole again")
        await until(lambda: caller.accepted("after all of it"), 40, "all members take writes")


async def _refuses(caller: Caller, member: str) -> bool:
    return (await caller.get(member, "alone"))[0] == 503


async def _taken(caller: Caller, member: str) -> bool:
    return (await caller.put(member, "meanwhile", "v"))[0] in (200, 201)


@pytest.mark.nightly
@pytest.mark.skipif(not LIBRARY.exists(), reason=NO_LIBRARY)
async def test_a_wall_clock_that_jumps_by_minutes_moves_nothing_and_breaks_nothing(tmp_path):
    async with fault_pool(takeover="lease", clocks=True, home=tmp_path) as pool, judged_clients(pool):
        caller, settled = Caller(pool), len(pool.owner_changes)
        clock = pool.members["m1"].clock
        assert clock is not None

        async def changed_hands(member: str, by: float) -> bool:
            """Whether ``m1`` has taken a slot of ``member`` over, at a time that is ``by`` seconds wrong."""
            return any(
                owner.active == "m1" and f"{member} lost" in owner.cause and abs(owner.since - time.time() - by) < 60
                for owner in (await pool.owners()).values()
            )

        for member, by in (("m2", MINUTES), ("m3", -MINUTES)):
            key = await pool.key_at(member)
            await caller.store(member, key, "v")
            assert await caller.delete(member, key, Idempotency_Key=f"once-{by}") == 204
            clock.shift(by)
            await asyncio.sleep(2.5)  # the library looks once a second
            await until(lambda by=by: caller.accepted(f"{by:+.0f} s"), 40, "all members take writes")
            pool.members[member].kill()
            await until(lambda member=member, by=by: changed_hands(member, by), 40, f"a takeover at {by:+.0f} s")
            assert await caller.delete("m1", key, Idempotency_Key=f"once-{by}") == 204
            pool.members[member].start()
            await until(pool.at_rest, 90, "the pool is whole again, with a share of the slots for each member")

        assert [change for change in pool.takeovers(settled) if "m1 lost" in change.cause] == []
