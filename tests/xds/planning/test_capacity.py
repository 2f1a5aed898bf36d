"""The capacity of a pool: whether any one member may go, and how many members that takes."""

from dataclasses import replace

import pytest

from understudy.statesync.heartbeat.load_report import LoadReport, SlotLoad
from understudy.statesync.pool.records import Member, MemberState, Owner, Table
from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.membership.cluster_state import ClusterState
from understudy.xds.membership.load_book import LoadBook, PoolLoad
from understudy.xds.planning.capacity import NotKnown, advice, capacity, cheapest_to_empty, too_busy_without

ORDERS = (("a", "b", "c"), ("a", "c", "b"), ("b", "a", "c"), ("c", "b", "a"))
SITES = {"a": "east", "b": "west", "c": "west"}


def a_pool() -> ClusterState:
    return ClusterState(
        spec=PoolSpec(pool="cart", slots=len(ORDERS)),
        members={
            name: Member(name, "one", "127.0.0.1:7000", "127.0.0.1:1", MemberState.UP, site=SITES[name])
            for name in "abc"
        },
        states=dict.fromkeys("abc", MemberState.UP),
        registered=dict.fromkeys("abc", "one"),
        owners={slot: Owner(order[0], "one", 1) for slot, order in enumerate(ORDERS)},
        table=Table(1, ORDERS),
        deaths={},
        beating=frozenset(),
    )


def with_cpu(cpu: float, members: str = "abc") -> PoolLoad:
    """Each member uses so many of two CPUs, for ten calls a second in each of its slots."""
    book = LoadBook()
    for name in members:
        slots = [SlotLoad(slot, 10.0, 1, 1) for slot, order in enumerate(ORDERS) if order[0] == name]
        book.on_report((name, "one"), LoadReport(cpu=cpu, cpus=2.0, slots=slots), 0)
    return book.current(1)


def test_the_slots_of_a_lost_member_burden_their_standbys() -> None:
    """a has two slots: one goes to b and one to c, with half of a's CPU each."""
    found = capacity(a_pool(), with_cpu(0.8))
    (loss,) = [one for one in found.losses if (one.level, one.name) == ("member", "a")]
    assert {one.member: round(one.cpu_then, 6) for one in loss.survivors} == {"b": 1.2, "c": 1.2}
    assert {one.member: one.calls_then for one in loss.survivors} == {"b": 20, "c": 20}
    assert found.fits
    assert advice(found, "cart") == []


def test_a_pool_that_is_too_busy_for_a_loss_says_what_it_takes() -> None:
    """Three members use 1.5 of 2 CPUs each: 4.5 in all, of 1.6 that may be used, so three must be left of four."""
    found = capacity(a_pool(), with_cpu(1.5))
    assert not found.fits
    assert (found.members, found.wanted) == (3, 4)
    assert not found.losses[0].fits
    assert "start 1 more members" in advice(found, "cart")[0]


def test_others_are_too_busy_for_the_slots_of_a_member_when_one_would_need_more_than_all_of_its_cpus() -> None:
    """a has two slots, with half of its CPU each: one goes to b and one to c. Those of b go to a, and of c to b."""
    pool = a_pool()
    assert too_busy_without(pool, with_cpu(1.3), "a") == ""
    assert too_busy_without(pool, with_cpu(1.4), "a") == "b would need 2.1 CPUs with them, and has 2"
    assert too_busy_without(pool, with_cpu(1.4), "b").startswith("a would need 2.8")
    assert too_busy_without(pool, with_cpu(1.4, "ac"), "a") == ""


def test_a_site_is_lost_as_a_whole() -> None:
    found = capacity(a_pool(), with_cpu(0.3))
    (loss,) = [one for one in found.losses if (one.level, one.name) == ("site", "west")]
    assert loss.members == ("b", "c")
    assert [(one.member, round(one.cpu_then, 6)) for one in loss.survivors] == [("a", 0.9)]
    assert {one.level for one in found.losses} == {"member", "site"}


def test_slots_whose_copies_all_go_burden_whoever_has_most_room() -> None:
    """b and c are the west. With a table in which b's slot has its copies there alone, a carries it all the same."""
    pool = replace(a_pool(), table=Table(1, (("a", "b"), ("a", "c"), ("b", "c"), ("c", "a"))))
    found = capacity(pool, with_cpu(0.3))
    (loss,) = [one for one in found.losses if (one.level, one.name) == ("site", "west")]
    assert [(one.member, round(one.cpu_then, 6)) for one in loss.survivors] == [("a", 0.9)]
    assert (loss.slots_without, loss.fits) == (1, True)


def with_bytes(sizes: dict[str, int]) -> PoolLoad:
    """Little CPU, and slots whose content has these bytes at their active."""
    book = LoadBook()
    for name, size in sizes.items():
        slots = [SlotLoad(slot, 1.0, 2, size) for slot, order in enumerate(ORDERS) if order[0] == name]
        book.on_report((name, "one"), LoadReport(cpu=0.1, cpus=2.0, slots=slots), 0)
    return book.current(1)


@pytest.mark.parametrize(
    ("sites", "orders", "goes", "copied"),
    [
        ({}, (("a", "b"), ("a", "b"), ("b", "a"), ("c", "a")), "c", 10),
        ({"c": "west"}, (("a", "b"), ("a", "b"), ("b", "a"), ("c", "a")), "b", 1200),
        ({}, ORDERS, "b", 1210),
    ],
)
def test_the_member_that_costs_least_to_empty_is_the_one_to_remove(
    sites: dict[str, str], orders: tuple[tuple[str, ...], ...], goes: str, copied: int
) -> None:
    """Its copies have the fewest bytes; a member that is alone on its site stays. Then the calls to hand over count."""
    pool = a_pool()
    members = {name: replace(member, site=sites.get(name, "east")) for name, member in pool.members.items()}
    pool = replace(pool, members=members, table=Table(1, orders))
    load = with_bytes({"a": 100, "b": 1000, "c": 10})
    found = cheapest_to_empty(pool, load, capacity(pool, load))
    assert found is not None
    assert (found.member, found.copied_bytes) == (goes, copied)


def test_no_member_goes_that_the_pool_wants_or_whose_load_the_others_cannot_carry() -> None:
    for cpu in (0.8, 1.5):
        assert cheapest_to_empty(a_pool(), with_cpu(cpu), capacity(a_pool(), with_cpu(cpu))) is None


def test_it_is_not_known_while_a_member_has_not_reported() -> None:
    with pytest.raises(NotKnown, match="the load of b"):
        capacity(a_pool(), with_cpu(1.0, "ac"))
