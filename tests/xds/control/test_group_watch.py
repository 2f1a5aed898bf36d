"""Two pools of one group on one control server, with a real etcd: they leave a site and come back together."""

from dataclasses import replace

import pytest

from tests.harness.waiting import until
from tests.xds.control.control_pool import SPEC, ControlPool, SimulatedMember, control_pool
from understudy.deploy.data.pools import delete_pool
from understudy.statesync.pool.groups import read_group
from understudy.statesync.pool.keys import GroupKeys
from understudy.statesync.pool.records import Intent, MemberState, Table
from understudy.statesync.pool.spec_parts import SiteSpec

SITES = {"east": SiteSpec(weight=50), "west": SiteSpec(weight=50)}


async def with_members(pool: ControlPool) -> list[SimulatedMember]:
    """A member of the pool on each site, registered at once."""
    members = [pool.member(f"{pool.spec.pool}-{site}") for site in SITES]
    for member, site in zip(members, SITES, strict=True):
        member.record = replace(member.record, site=site)
        await member.begin(MemberState.READY)
    await pool.client.txn([], [member.record_as(MemberState.READY) for member in members])
    return members


def sites_of(table: Table) -> list[str]:
    return [order[0].rpartition("-")[2] for order in table.orders if order]


@pytest.fixture
async def pools(tmp_path):
    spec = SPEC.model_copy(update={"sites": SITES, "group": "shop"})
    async with control_pool(tmp_path, spec) as cart:
        (tmp_path / "stock").mkdir()
        stock = ControlPool(cart.etcd, cart.client, tmp_path / "stock", spec.model_copy(update={"pool": "stock"}))
        await stock.apply(stock.spec)
        await cart.control(pools=["cart", "stock"])
        stock.controls = cart.controls
        try:
            yield cart, stock
        finally:
            stock.close()


async def test_pools_of_a_group_have_their_slots_on_the_same_sites(pools) -> None:
    cart, stock = pools
    for pool in (cart, stock):
        await with_members(pool)
        seen = await pool.table_with(lambda table: set(sites_of(table)) == set(SITES), "a table with both sites")
        await pool.claim_all(seen)
    home = sites_of((await cart.table()).table)
    await stock.table_with(lambda table: sites_of(table) == home, "stock has each slot where cart has it")

    intent = cart.keys.site_intent("east")
    await cart.client.put(intent, Intent(site="east").encode())
    for pool in (cart, stock):
        seen = await pool.table_with(lambda table: set(sites_of(table)) == {"west"}, f"{pool.spec.pool} is in the west")
        await pool.claim_all(seen)
    assert (seen.table.with_group, seen.table.offline) == ({"east": "cart"}, ())
    assert "pool cart keeps away from east" in seen.table.cause

    await cart.client.delete(intent)

    async def together_again() -> bool:
        cart_sites, stock_sites = [sites_of((await pool.table()).table) for pool in (cart, stock)]
        return cart_sites == stock_sites and set(cart_sites) == set(SITES)

    await until(together_again, 40, "both pools are back, with each slot on one site")
    await delete_pool(cart.client, "cart")
    assert await cart.client.get(GroupKeys("-/shop").pool("cart")) is None


async def test_a_pool_that_leaves_its_group_says_nothing_there_any_more(pools) -> None:
    cart, stock = pools
    await with_members(cart)
    await cart.table_with(lambda table: table.group == "-/shop", "a table of the group")
    assert (await read_group(cart.client, stock.spec)).keys() == {"cart"}
    await cart.apply(cart.spec.model_copy(update={"group": None}))

    async def left() -> bool:
        return not await read_group(cart.client, stock.spec)

    await until(left, 40, "cart has left the group")
