"""Pools of one group go to another site together, by the tables that their leaders write."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness.examples import examples
from tests.xds.planning.test_site_switch import Pool
from understudy.statesync.pool.site_records import PoolInGroup
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import SiteSpec
from understudy.xds.planning.site_group import told_to_group

ACTIVE_STANDBY = {"east": SiteSpec(weight=100), "west": SiteSpec(weight=0)}
ACTIVE_ACTIVE = {"east": SiteSpec(weight=50), "west": SiteSpec(weight=50)}


class Group:
    """Pools of one group; each decides in turn, until none has anything to change."""

    def __init__(self, sites: dict[str, SiteSpec], *names: str, **more: object) -> None:
        specs = [PoolSpec(pool=name, group="shop", slots=8, sites=sites, **more) for name in names]  # type: ignore[arg-type]
        self.pools = {spec.pool: Pool(spec) for spec in specs}
        self.settle()

    def step(self, name: str, **what: object) -> None:
        """Something happens to one pool, and all of them react."""
        self.pools[name].step(**what)  # type: ignore[arg-type]
        self.happened = {**self.happened, name: what}
        self.settle()

    happened: dict[str, dict[str, object]] = {}  # noqa: RUF012 - replaced, never changed

    def settle(self) -> None:
        for _ in range(20):
            before = {name: pool.cluster.table for name, pool in self.pools.items()}
            for name, pool in self.pools.items():
                pool.cluster = replace(pool.cluster, group=self.said_to(name))
                pool.step(**{**self.happened.get(name, {}), "after": 0.0})  # type: ignore[arg-type]
            if before == {name: pool.cluster.table for name, pool in self.pools.items()}:
                return
        raise AssertionError("the pools never come to rest")

    def said_to(self, name: str) -> dict[str, PoolInGroup]:
        return {
            other: PoolInGroup.decode(said_by(pool).encode()) for other, pool in self.pools.items() if other != name
        }

    @property
    def serving(self) -> list[set[str]]:
        return [pool.serving for pool in self.pools.values()]


def said_by(pool: Pool) -> PoolInGroup:
    cluster = pool.cluster
    assert cluster.table is not None
    sites = {name: member.site for name, member in cluster.members.items()}
    return told_to_group(cluster.spec, cluster.table.away, cluster.table.orders, sites)


@pytest.mark.parametrize("sites", [ACTIVE_STANDBY, ACTIVE_ACTIVE])
@pytest.mark.parametrize("name", ["cart", "shop", "stock"])
def test_a_site_that_one_pool_leaves_is_left_by_all_and_they_come_back_together(
    name: str, sites: dict[str, SiteSpec]
) -> None:
    group = Group(sites, "cart", "shop", "stock")
    home = group.serving
    group.step(name, offline="east")
    assert group.serving == [{"west"}] * 3
    other = next(other for other in group.pools if other != name)
    assert group.pools[other].cause == f"site west serves: in group shop, pool {name} keeps away from east"
    group.step(other, offline="east")
    group.step(name)
    assert group.serving == [{"west"}] * 3
    group.step(other)
    assert group.serving == home


def test_a_lost_site_takes_all_pools_and_the_way_back_by_hand_too() -> None:
    group = Group(ACTIVE_STANDBY, "cart", "shop")
    group.step("shop", able={"east": 0})
    assert group.serving == [{"west"}] * 2
    group.step("shop")
    assert group.serving == [{"west"}] * 2, "keep_current"
    group.step("cart", offline="west")
    assert group.serving == [{"east"}] * 2
    group.step("cart")
    assert group.serving == [{"east"}] * 2


def test_a_pool_with_one_site_only_does_not_follow() -> None:
    group = Group(ACTIVE_STANDBY, "cart", "shop")
    group.step("cart", able={"west": 0})
    group.step("shop", offline="east")
    assert group.serving == [{"east"}, {"west"}]


def test_a_key_has_its_session_on_one_site_in_all_pools() -> None:
    group = Group(ACTIVE_ACTIVE, "cart", "shop", "stock")
    cart, *others = (said_by(pool).actives for pool in group.pools.values())
    assert sorted(cart) == ["east"] * 4 + ["west"] * 4
    assert others == [cart, cart]


def test_pools_that_differ_in_slots_or_weights_keep_their_own_places() -> None:
    group = Group(ACTIVE_ACTIVE, "cart", "shop")
    shop = group.pools["shop"]
    other = PoolInGroup({}, {"east": 20, "west": 80}, ("west",) * 8)
    shop.cluster = replace(shop.cluster, group={"cart": other})
    assert shop.step() == {"east", "west"}
    shop.cluster = replace(shop.cluster, group={"cart": PoolInGroup({}, {"east": 50, "west": 50}, ("west",) * 4)})
    assert shop.step() == {"east", "west"}


EVENTS = st.tuples(
    st.sampled_from(["cart", "shop"]),
    st.sampled_from([{}, {"offline": "east"}, {"offline": "west"}, {"able": {"east": 0}}, {"able": {"west": 0}}]),
)


@settings(max_examples=examples(60))
@given(st.sampled_from([ACTIVE_STANDBY, ACTIVE_ACTIVE]), st.lists(EVENTS, max_size=8))
def test_whatever_happens_the_pools_come_to_rest_and_a_quiet_group_is_together(
    sites: dict[str, SiteSpec], events: list[tuple[str, dict[str, object]]]
) -> None:
    group = Group(sites, "cart", "shop", recovery="prefer_site", stable_for=0.1)
    for name, event in events:
        group.step(name, **event)
    for _ in range(3):
        for name in group.pools:
            group.step(name, after=400.0)
    cart, shop = (said_by(pool).actives for pool in group.pools.values())
    assert cart == shop
    assert set(cart) == {site for site, one in sites.items() if one.weight}
