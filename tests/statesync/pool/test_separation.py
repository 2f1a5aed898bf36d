import pytest

from tests.xds.placement.table_rules import candidate
from understudy.statesync.pool.separation import separation, together

PLACES = {
    "m-1": candidate("m-1", site="east", zone="a", host="h1"),
    "m-2": candidate("m-2", site="east", zone="a", host="h1"),
    "m-3": candidate("m-3", site="east", zone="a", host="h2"),
    "m-4": candidate("m-4", site="east", zone="b", host="h3"),
    "m-5": candidate("m-5", site="west", zone="a", host="h4"),
    "old": candidate("old", site="east"),
}


@pytest.mark.parametrize(
    ("order", "level"),
    [
        (("m-1", "m-5"), "site"),
        (("m-1", "m-2", "m-4"), "zone"),
        (("m-1", "m-3"), "host"),
        (("m-1", "m-2"), "member"),
        (("m-1", "old"), "member"),
        (("m-1",), "none"),
        (("m-1", "gone"), "none"),
    ],
)
def test_copies_are_apart_at_the_widest_level_whose_loss_they_survive(order, level):
    assert separation(order, PLACES, PLACES, by_line=False).level == level


@pytest.mark.parametrize(
    ("order", "able", "by_line", "why"),
    [
        (("m-1", "m-4"), ("m-1", "m-4"), False, "all members are on site east"),
        (("m-1", "m-3"), ("m-1", "m-3"), False, "all members are in zone a"),
        (("m-1", "m-2"), ("m-1", "m-2"), False, "all members are on host h1"),
        (("old", "old-2"), ("old", "old-2"), False, "the hosts of the members are not known (--host)"),
        (("m-1", "m-4"), PLACES, False, "a standby that is the only copy is not placed by site; copies: 3 has"),
        (("m-1", "m-3"), PLACES, True, "the only standby is the next in line by priority"),
        (("m-1", "m-2", "m-3"), PLACES, False, "the slot table has not followed the zones of its members yet"),
    ],
)
def test_it_says_why_they_are_not_further_apart(order, able, by_line, why):
    places = {**PLACES, "old-2": candidate("old-2", site="east")}

    assert separation(order, places, able, by_line=by_line).why.startswith(why)


def test_slots_with_all_copies_in_one_domain_are_named_if_there_is_another():
    orders = [("m-1", "m-2"), ("m-1", "m-3"), ("m-1", "m-4"), ("m-1", "old"), ("m-1",)]

    assert together(orders, PLACES, PLACES) == {"zone": [0, 1], "host": []}
    assert together(orders, PLACES, ["m-1", "m-2", "m-3"]) == {"zone": [], "host": [0]}
    assert together(orders, PLACES, ["m-1", "m-2"]) == {"zone": [], "host": []}
