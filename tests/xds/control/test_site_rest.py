"""A site that is lost twice rests, whoever leads, with real control servers and a real etcd."""

import time
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from pathlib import Path

import pytest

from tests.harness.records import SeenTable
from tests.harness.waiting import until
from tests.xds.control.control_pool import SPEC, Control, ControlPool, control_pool
from understudy.deploy.common.operator import this_operator
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.operate import service
from understudy.statesync.audit.log import OperatorLog
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.pool.records import MemberState
from understudy.statesync.pool.spec_parts import SiteSpec, SiteSwitching

SITES = {"east": SiteSpec(weight=50), "west": SiteSpec(weight=50)}


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[ControlPool]:
    async with control_pool(tmp_path, SPEC.model_copy(update={"sites": SITES})) as pool:
        controls = [await pool.control(name) for name in ("control-1", "control-2")]
        for site in SITES:
            member = pool.member(site)
            member.record = replace(member.record, site=site)
            await member.begin(MemberState.READY)
        await pool.client.txn([], [member.record_as(MemberState.READY) for member in pool.members.values()])
        for control in controls:
            await control.hears(*pool.members.values())
        await served_on(pool, SITES)
        yield pool


async def served_on(pool: ControlPool, sites: Collection[str]) -> SeenTable:
    """The table that gives slots to these sites, after their members have claimed them."""
    seen = await pool.table_with(lambda table: {order[0] for order in table.orders} == {*sites}, f"{sites} serve")
    await pool.claim_all(seen)
    return seen


async def lost_and_up_again(pool: ControlPool) -> None:
    """Site west is lost, so east takes its slots over, and then can serve again."""
    pool.members["west"].is_now(MemberState.DOWN)
    await served_on(pool, ["east"])
    pool.members["west"].is_now(MemberState.READY)


async def leader_of(pool: ControlPool) -> Control:
    async def leader() -> Control | None:
        for control in pool.controls.values():
            if control.runs and await control.leads():
                return control
        return None

    return await until(leader, 40, "a control server leads")


async def rests(pool: ControlPool) -> None:
    """Wait until the leader says that west rests although it can serve."""
    leader = await leader_of(pool)

    async def told() -> bool:
        status = await leader.ask("/v1/status")
        west = next(one for one in status["members"] if one["member"] == "west")
        return west["state"] == "READY" and any("site west was lost again" in one["why"] for one in status["brakes"])

    await until(told, 40, f"{leader.name} says that west rests")
    table = (await pool.table()).table
    assert {order[0] for order in table.orders} == {"east"}


async def test_a_site_that_was_lost_twice_rests_until_an_operator_or_time_ends_it(pool: ControlPool) -> None:
    await lost_and_up_again(pool)
    first = (await served_on(pool, SITES)).table
    await lost_and_up_again(pool)
    await rests(pool)

    (await leader_of(pool)).kill()
    await rests(pool)

    state, _ = await read_pool(pool.client, pool.spec.pool)
    log = OperatorLog(pool.client, state.keys, this_operator("site online", EtcdSettings(pool.etcd.endpoints)), "")
    await service.carry_out(log, service.site_online(state, "west", time.time()))
    second = (await served_on(pool, SITES)).table
    assert second.returned["west"] > first.returned["west"]

    await lost_and_up_again(pool)
    await rests(pool)
    freeze = time.time() + 3.0 - second.returned["west"]
    await pool.apply(pool.spec.model_copy(update={"site_switch": SiteSwitching(freeze=freeze)}))
    await served_on(pool, SITES)
    assert time.time() >= second.returned["west"] + freeze
