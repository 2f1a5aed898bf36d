"""The link between two sites is cut, and etcd on a third one sees both: nothing moves. Then one site loses etcd too."""

import contextlib
from pathlib import Path

import aiohttp
import pytest

from tests.faults.history import OwnerChange
from tests.faults.judged import Caller, judged_clients
from tests.faults.namespaces import Namespaces, namespaces
from tests.faults.pool import DEBIAN_ETCD, FaultPool, fault_pool
from tests.faults.test_faults import NO_SAFE_ETCD
from tests.harness.netns import unable
from tests.harness.waiting import until

EAST, WEST, WITNESS = ("m2", "m4", "control-2"), ("m1", "m3", "control-1"), "etcd1"
PATIENCE_MS = 8000
"""On a busy machine a process may be late with its answer through etcd."""
LASTS = 3.0
"""Seconds for which control servers must have reached the other site through etcd only."""


class Controls:
    """What the control servers say of the members."""

    def __init__(self, pool: FaultPool, addresses: dict[str, str]) -> None:
        self._pool = pool
        self._addresses = addresses

    async def reach_through_etcd(self, control: str, members: tuple[str, ...]) -> bool:
        """Whether a control server has reached these members, and no others, through etcd only for :data:`LASTS`."""
        url = f"http://{self._addresses[control]}/v1/status"
        try:
            async with self._pool.http.get(url, timeout=aiohttp.ClientTimeout(total=5)) as answer:
                rows = (await answer.json())["members"]
        except (aiohttp.ClientError, TimeoutError):
            return False
        lasting = {row["member"] for row in rows if (row["through_etcd_for"] or 0) >= LASTS}
        return lasting == set(members) and all(row["state"] == "UP" for row in rows)


@pytest.mark.nightly
@pytest.mark.skipif(not DEBIAN_ETCD.exists(), reason=NO_SAFE_ETCD)
async def test_each_slot_stays_where_it_is_until_a_site_is_cut_off_from_etcd_too(tmp_path: Path) -> None:
    if reason := unable():
        pytest.skip(reason)
    async with (
        contextlib.AsyncExitStack() as stack,
        namespaces(members=4, controls=2) as ground,
        fault_pool(
            takeover="lease",
            members=4,
            controls=2,
            sites=("east", "west"),
            more=f"copies: 2\nreplication: {{spread: site}}\nliveness: {{site_patience_ms: {PATIENCE_MS}}}",
            ground=ground,
            home=tmp_path,
        ) as pool,
        judged_clients(pool),
    ):
        controls = Controls(pool, {name: await ground.admin(stack, name) for name in ("control-1", "control-2")})
        await nothing_moves(ground, pool, controls, both=True)
        await nothing_moves(ground, pool, controls, both=False)
        await one_site_wins(ground, pool)


async def nothing_moves(ground: Namespaces, pool: FaultPool, controls: Controls, *, both: bool) -> None:
    """Cut the link in one or both directions: both sites go on with the slots that they have."""
    caller, begin = Caller(pool), len(pool.owner_changes)
    keys = {name: await pool.key_at(name) for name in pool.names}
    with ground.net.severed(link(EAST, WEST, both=both)):
        await until(lambda: controls.reach_through_etcd("control-1", EAST[:2]), 60, "control-1 asks through etcd")
        await until(lambda: controls.reach_through_etcd("control-2", WEST[:2]), 60, "control-2 asks through etcd")
        for name, key in keys.items():
            assert await caller.store(name, key, f"during a cut, {both}") in (200, 201)
    await until(pool.settled, 90, "the pool is whole again")
    assert takeovers(pool, begin) == []


async def one_site_wins(ground: Namespaces, pool: FaultPool) -> None:
    """Cut one site off from all others: the other one has all slots, and none of them moved twice."""
    begin, caller = len(pool.owner_changes), Caller(pool)
    with ground.net.severed([*link(EAST, WEST), *link(EAST, (WITNESS,))]):
        for name in EAST[:2]:
            await until(lambda name=name: pool.owns_nothing(name), 60, f"{name} has lost its slots")
        for name in WEST[:2]:
            assert await caller.store(name, await pool.key_at(name), "alone") in (200, 201)
        taken = takeovers(pool, begin)
        assert {change.active for change in taken} == set(WEST[:2])
        assert len({change.slot for change in taken}) == len(taken)
    await until(pool.settled, 90, "the pool is whole again")


def takeovers(pool: FaultPool, since: int) -> list[OwnerChange]:
    """All takeovers from change number ``since`` on, those by silence too."""
    return [change for change in pool.owner_changes[since:] if " lost: " in change.cause]


def link(one: tuple[str, ...], other: tuple[str, ...], *, both: bool = True) -> list[tuple[str, str]]:
    """What is lost between two sites, as (from, to)."""
    there = [(source, target) for source in one for target in other]
    return there + ([(target, source) for source, target in there] if both else [])
