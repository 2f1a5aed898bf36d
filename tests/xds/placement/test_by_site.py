"""``sites`` and ``replication.spread``: which sites the actives and the copies of the slots are on."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness.examples import examples
from tests.xds.placement import table_rules as rules
from tests.xds.placement.table_rules import candidate
from understudy.statesync.pool.records import MemberState, Table
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import SiteSpec
from understudy.statesync.pool.spec_reader import parse_spec
from understudy.xds.placement.by_site import targets
from understudy.xds.placement.solver import decide

EAST = [candidate(name, site="east") for name in ("e-1", "e-2", "e-3")]
WEST = [candidate(name, site="west") for name in ("w-1", "w-2")]
NORTH = [candidate("n-1", site="north")]
SITE_OF = {one.member: one.site for one in [*EAST, *WEST, *NORTH]}


def pool(*, slots=256, copies=3, spread=None, **weights):
    sites = {site: SiteSpec(weight=weight) for site, weight in weights.items()}
    made = PoolSpec(pool="cart", slots=slots, copies=copies, sites=sites)
    return made.model_copy(update={"replication": made.replication.model_copy(update={"spread": spread})})


def orders_of(spec, candidates, before=(), **more):
    return decide(spec, candidates, Table(1, tuple(before)), **more).orders


def by_site(orders):
    return Counter(SITE_OF[order[0]] for order in orders)


def changes(before, after):
    return sum(one[0] != other[0] for one, other in zip(before, after, strict=True))


def test_a_site_of_weight_0_stands_by_with_a_copy_of_every_slot():
    orders = orders_of(pool(east=100, west=0), [*EAST, *WEST])

    assert by_site(orders) == {"east": 256}
    assert all(SITE_OF[order[1]] == "east" and SITE_OF[order[2]] == "west" for order in orders)


def test_equal_weights_share_evenly_whatever_the_number_of_members():
    orders = orders_of(pool(east=50, west=50), [*EAST, *WEST])

    assert by_site(orders) == {"east": 128, "west": 128}
    assert sorted(Counter(order[0] for order in orders).values()) == [42, 43, 43, 64, 64]


def test_another_weight_moves_only_the_difference():
    before = orders_of(pool(east=50, west=50), [*EAST, *WEST])

    after = orders_of(pool(east=100, west=0), [*EAST, *WEST], before)

    assert by_site(after) == {"east": 256}
    assert changes(before, after) == 128


def test_the_site_that_stands_by_takes_over_what_is_left_and_a_member_that_dies_moves_nothing_to_it():
    spec = pool(east=100, west=0)
    before = orders_of(spec, [*EAST, *WEST])

    assert by_site(orders_of(spec, WEST, before)) == {"west": 256}
    assert by_site(orders_of(spec, [*EAST[1:], *WEST], before)) == {"east": 256}


def test_a_site_that_the_spec_does_not_name_stands_by_and_a_resting_one_gets_nothing():
    assert by_site(orders_of(pool(east=100), [*EAST, *WEST])) == {"east": 256}
    assert by_site(orders_of(pool(east=100, west=0), [*EAST, *WEST], resting={"east"})) == {"west": 256}
    assert by_site(orders_of(pool(east=100, west=0), EAST, resting={"east"})) == {"east": 256}


@pytest.mark.parametrize(("copies", "sites"), [(2, 2), (3, 3), (4, 3)])
def test_spread_puts_a_copy_on_as_many_sites_as_there_are(copies, sites):
    for order in orders_of(pool(copies=copies, spread="site"), [*EAST, *WEST, *NORTH]):
        assert len({SITE_OF[member] for member in order}) == sites


def test_spread_among_members_of_one_site_changes_nothing():
    assert orders_of(pool(spread="site"), EAST) == orders_of(pool(), EAST)


@settings(max_examples=examples(60), deadline=None)
@given(
    st.sampled_from([3, 24, 64]),
    st.integers(2, 4),
    st.sampled_from([None, "site"]),
    st.dictionaries(st.sampled_from(["east", "west", "north"]), st.integers(0, 5), min_size=1),
    st.lists(st.sets(st.sampled_from(sorted(SITE_OF))), min_size=1, max_size=5),
)
def test_any_history_of_members_keeps_shares_copies_and_slots_where_they_are(slots, copies, spread, weights, history):
    if not any(weights.values()):
        weights["east"] = 1
    spec, orders = pool(slots=slots, copies=copies, spread=spread, **weights), ()
    for away in history:
        field = [one for one in [*EAST, *WEST, *NORTH] if one.member not in away]
        if not field:
            continue
        orders = orders_of(spec, field, orders)
        able = {one.site for one in field}
        total = sum(weights.get(site, 0) for site in able)
        for site in able if total else ():
            assert abs(by_site(orders)[site] - Fraction(slots * weights.get(site, 0), total)) <= 1
        rules.assert_apart(spec, field, orders)
        assert orders_of(spec, field, orders) == orders


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 99)), min_size=1, max_size=6), st.integers(0, 99))
def test_targets_add_up_stay_near_the_share_and_keep_what_is_within_it(rows, orphans):
    weights, counts = [weight for weight, _ in rows], [count for _, count in rows]
    slots = sum(counts) + orphans
    if not any(weights):
        return
    found = targets(slots, weights, counts)

    assert sum(found) == slots
    for weight, target in zip(weights, found, strict=True):
        assert abs(target - Fraction(slots * weight, sum(weights))) <= 1
    assert targets(slots, weights, found) == found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("mode: active_standby\nsites: {east: {weight: 1}}", "in mode active_standby one member has all slots"),
        ("balance: {by: cpu}\nsites: {east: {weight: 1}}", "they share the slots by number"),
        ("sites: {east: {weight: 0}}", "at least one site needs a weight above 0"),
        ("recovery: prefer_site", "prefer_site needs sites"),
    ],
)
def test_what_means_nothing_is_refused(text, why):
    with pytest.raises(ValueError, match=why):
        parse_spec(f"pool: cart\n{text}", where="pool.yaml")


def test_a_spec_that_uses_neither_is_stored_as_earlier_releases_know_it():
    assert b"sites" not in PoolSpec(pool="cart").encode()
    assert b"spread" not in PoolSpec(pool="cart").encode()
    assert b'"east":{"weight":3' in pool(east=3).encode()


def test_members_that_fail_are_no_part_of_a_site():
    away = [candidate(one.member, site="east", state=MemberState.LOST) for one in EAST]

    assert by_site(orders_of(pool(east=100, west=0), [*away, *WEST])) == {"west": 256}
