"""A member that alone is cut off from etcd, and etcd that is away for all members: who gives way, and who does not."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable

import pytest

from tests.faults.judged import Caller, judged_clients
from tests.faults.pool import DEBIAN_ETCD, FaultPool, fault_pool
from tests.faults.test_faults import NO_SAFE_ETCD
from tests.harness.cable import Cable, Way
from tests.harness.waiting import stays, until

GRACE = 6.0
"""Seconds after which the members have heard from etcd for long enough to judge others."""
AWAY = 12.0
CUTS: dict[str, Callable[[Cable], None]] = {
    "both ways": Cable.cut,
    "no answers": lambda cable: cable.cut(Way.ANSWERS),
    "no requests": lambda cable: cable.cut(Way.REQUESTS),
    "resets": Cable.reset,
}

needs_safe_etcd = pytest.mark.skipif(not DEBIAN_ETCD.exists(), reason=NO_SAFE_ETCD)


@pytest.mark.parametrize(
    ("takeover", "cuts"),
    [
        ("lease", ["both ways", "no requests"]),
        pytest.param("fast", ["no answers", "resets"], marks=pytest.mark.nightly),
    ],
)
async def test_a_member_that_alone_is_cut_off_from_etcd_gives_its_slots_away_and_keeps_every_promise(
    takeover, cuts, tmp_path
):
    async with fault_pool(takeover=takeover, home=tmp_path) as pool:
        await until(pool.at_rest, 60, "every member has its share")
        await asyncio.sleep(GRACE)  # once: the others hear from etcd all the time
        for cut in cuts:
            async with judged_clients(pool, seed=cut):
                settled = len(pool.owner_changes)
                for cable in pool.members["m1"].to_etcd:
                    CUTS[cut](cable)
                await until(lambda: pool.owns_nothing("m1"), 40, f"{cut}: its slots are others'")
                await until(pool.followed, 40, "the owner records are followed")
                causes = {change.cause for change in pool.takeovers(settled)}
                assert "m1 lost: it gave its slots away; it cannot reach etcd" in causes, cut
                await until(lambda: _answers_anywhere(pool), 40, f"{cut}: the member that is cut off sends callers on")
                for cable in pool.members["m1"].to_etcd:
                    cable.mend()
                await until(pool.at_rest, 90, f"{cut}: it has its share again")


async def _answers_anywhere(pool: FaultPool) -> bool:
    return await Caller(pool).accepted("while one is cut off")


@contextlib.asynccontextmanager
async def away(pool: FaultPool, how: str) -> AsyncIterator[None]:
    """Etcd answers nobody during the block."""
    hit = pool.etcds[: len(pool.etcds) // 2 + 1]
    processes = [etcd.process for etcd in hit if etcd.process is not None]
    for etcd, process in zip(hit, processes, strict=True):
        etcd.kill() if how == "killed" else process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for etcd, process in zip(hit, processes, strict=True):
            etcd.spawn() if how == "killed" else process.send_signal(signal.SIGCONT)


@needs_safe_etcd
@pytest.mark.parametrize(("etcds", "how"), [(3, "killed"), pytest.param(1, "frozen", marks=pytest.mark.nightly)])
async def test_no_slot_changes_its_owner_when_etcd_was_away_and_some_find_it_before_others(etcds, how, tmp_path):
    async with fault_pool(takeover="fast", etcds=etcds, home=tmp_path) as pool:
        await until(pool.at_rest, 60, "every member has its share")
        await asyncio.sleep(GRACE)
        async with judged_clients(pool):
            before = {slot: owner.active for slot, owner in (await pool.owners()).items()}
            settled = len(pool.owner_changes)

            async with away(pool, how):
                await asyncio.sleep(AWAY)
                for cable in pool.members["m1"].to_etcd:
                    cable.cut()
            await until(lambda: _takes(pool, "m2"), 40, "the others have found etcd again")
            # longer than the control server's other brakes
            await stays(lambda: _unmoved(pool, settled, before), 3.2, "no slot changes its owner")
            for cable in pool.members["m1"].to_etcd:
                cable.mend()
            await until(lambda: Caller(pool).accepted("after it"), 40, "all members have found etcd again")
            await asyncio.sleep(GRACE)

            await until(pool.followed, 40, "the owner records are followed")
            assert _unmoved(pool, settled, before)


def _unmoved(pool: FaultPool, since: int, before: dict[int, str]) -> bool:
    return all(change.active == before[change.slot] and change.phase == "stable" for change in pool.moves(since))


async def _takes(pool: FaultPool, member: str) -> bool:
    active = (await pool.status(member))["active"]
    assert isinstance(active, list)
    key = pool.key_of(active)
    return (await Caller(pool).put(member, key, "again"))[0] in (200, 201)
