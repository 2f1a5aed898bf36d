from collections import Counter

import pytest

from tests.xds.placement.table_rules import candidate
from understudy.statesync.pool.records import MemberState, Table
from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.placement.solver import decide


def pool(slots=60, **settings):
    return PoolSpec(pool="cart", slots=slots, **settings)


def in_zones(**zones):
    """Members named after their zone, such as a-1 and a-2 for ``a=2``; each is on a host of its own."""
    return [
        candidate(f"{zone}-{number}", zone=zone, host=f"{zone}-host-{number}")
        for zone, count in zones.items()
        for number in range(1, count + 1)
    ]


def zones_of(order):
    return "".join(member[0] for member in order)


def test_three_copies_in_three_zones_are_one_in_each():
    orders = decide(pool(), in_zones(a=2, b=2, c=2), Table()).orders

    assert {"".join(sorted(zones_of(order))) for order in orders} == {"abc"}


def test_with_two_zones_standby_and_last_copy_are_not_in_the_actives():
    orders = decide(pool(), in_zones(a=3, b=3), Table()).orders

    assert {zones_of(order) for order in orders} == {"abb", "baa"}


def test_a_zone_that_is_lost_falls_evenly_on_the_members_of_the_others():
    orders = decide(pool(), in_zones(a=2, b=2, c=2), Table()).orders

    heirs = Counter(order[1] for order in orders if order[0].startswith("a"))
    assert {member[0] for member in heirs} == {"b", "c"}
    assert max(heirs.values()) - min(heirs.values()) <= 2


@pytest.mark.parametrize(("rest", "zones"), [(1, {"aab", "aba"}), (2, {"abb"}), (3, {"abb"})])
def test_few_members_elsewhere_are_not_the_standbys_of_a_large_zone(rest, zones):
    """With 4 members in zone a, the others need half their weight; the last copy is elsewhere in any case."""
    orders = decide(pool(), in_zones(a=4, b=rest), Table()).orders

    assert {zones_of(order) for order in orders if order[0].startswith("a")} == zones


def test_a_lone_member_of_a_third_zone_does_not_get_the_last_copy_of_every_slot():
    orders = decide(pool(), in_zones(a=5, b=5, c=1), Table()).orders

    holding = sum("c-1" in order for order in orders)
    assert holding < 30
    assert all(order[0][0] != order[-1][0] for order in orders)


def test_the_only_copy_is_in_another_zone_however_few_members_that_has():
    orders = decide(pool(copies=2), in_zones(a=4, b=1), Table()).orders

    assert {zones_of(order) for order in orders} == {"ab", "ba"}


def test_copies_are_on_different_hosts_when_there_is_one_zone():
    field = [candidate(f"m-{number}", zone="a", host=f"host-{number // 2}") for number in range(6)]

    orders = decide(pool(), field, Table()).orders

    assert {len({int(member[2]) // 2 for member in order}) for order in orders} == {3}


def test_members_that_share_the_only_host_are_copies_of_each_other():
    field = [candidate(f"m-{number}", host="only") for number in range(3)]

    assert {len(order) for order in decide(pool(), field, Table()).orders} == {3}


def test_a_standby_may_be_on_another_site_and_the_last_copy_is():
    field = [
        *(candidate(f"e-{n}", site="east", zone=zone) for n, zone in enumerate("aabb")),
        *(candidate(f"w-{n}", site="west") for n in range(2)),
    ]

    orders = decide(pool(), field, Table()).orders

    assert {order[1][0] for order in orders if order[0][0] == "e"} == {"e", "w"}
    assert all(order[0][0] != order[2][0] for order in orders)
    zone = {member.member: member.zone or member.site for member in field}
    assert all(zone[order[0]] != zone[order[1]] for order in orders if order[0][0] == "e")


def test_members_of_an_earlier_release_are_kept_away_from_nobody():
    """Half of the members have told their zone and host, as in an upgrade."""
    field = [candidate("m-0", zone="a", host="h-0"), *(candidate(f"m-{number}") for number in range(1, 6))]
    bare = [candidate(f"m-{number}") for number in range(6)]

    assert decide(pool(), field, Table()).orders == decide(pool(), bare, Table()).orders


def test_hosts_with_the_same_name_in_two_zones_are_two_hosts():
    field = [candidate(f"{zone}-{host}", zone=zone, host=host) for zone in "ab" for host in ("h1", "h2")]

    assert {len(order) for order in decide(pool(copies=4), field, Table()).orders} == {4}


@pytest.mark.parametrize("dead", ["a-1", "b-2"])
def test_the_death_of_one_member_moves_only_its_slots(dead):
    field = in_zones(a=2, b=2, c=2)
    before = decide(pool(), field, Table()).orders
    left = [member for member in field if member.member != dead]

    after = decide(pool(), left, Table(1, before)).orders

    assert all(new[0] == old[0] for old, new in zip(before, after, strict=True) if old[0] != dead)
    assert all(len(set(zones_of(order))) == 3 for order in after)


class TestActiveStandby:
    spec = pool(4, mode="active_standby")

    def test_of_equal_priority_a_member_in_another_zone_stands_by(self):
        assert set(decide(self.spec, in_zones(a=3, b=1), Table()).orders) == {("a-1", "b-1", "a-2")}

    def test_of_equal_priority_a_member_on_another_host_stands_by(self):
        field = [candidate("m-1", host="h1"), candidate("m-2", host="h1"), candidate("m-3", host="h2")]

        assert set(decide(self.spec, field, Table()).orders) == {("m-1", "m-3", "m-2")}

    def test_priority_counts_more_but_the_last_copy_is_elsewhere(self):
        field = [*in_zones(a=3), candidate("b-1", zone="b", priority=9)]

        assert set(decide(self.spec, field, Table()).orders) == {("a-1", "a-2", "b-1")}

    def test_who_stands_by_follows_the_active_after_a_takeover(self):
        field = in_zones(a=2, b=2)
        before = decide(self.spec, field, Table())
        down = [candidate("a-1", zone="a", state=MemberState.LOST), *field[1:]]

        after = decide(self.spec, down, Table(1, before.orders))

        assert set(before.orders) == {("a-1", "b-1", "b-2")}
        assert set(after.orders) == {("b-1", "a-2", "b-2")}
