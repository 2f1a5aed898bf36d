"""The grade of a site: the part of its members that can serve, and 0 without what the site needs."""

import pytest

from understudy.statesync.pool.site_grade import SiteMember, grades
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import MemberSpec, SiteSpec


def spec(members: int | None = None, needs: tuple[str, ...] = ()) -> PoolSpec:
    sites = {"east": SiteSpec(weight=100, members=members, needs=needs), "west": SiteSpec(weight=0)}
    return PoolSpec(pool="cart", slots=8, sites=sites)


def east(states: str) -> list[SiteMember]:
    """Members on east: U can serve, D cannot."""
    return [SiteMember(f"e-{number}", "east", 10, letter == "U") for number, letter in enumerate(states)]


@pytest.mark.parametrize(
    ("states", "members", "down", "value", "why"),
    [
        ("UUU", None, (), 100, "100 of 100: 3 of 3 members can serve"),
        ("UUD", None, (), 66, "66 of 100: 2 of 3 members can serve (not e-2)"),
        ("UU", 4, (), 50, "50 of 100: 2 of 4 members can serve"),
        ("UUU", 2, (), 100, "100 of 100: 3 of 3 members can serve"),
        ("", 3, (), 0, "0 of 100: 0 of 3 members can serve"),
        ("", None, (), 0, "0 of 100: 0 of 0 members can serve"),
        ("UU", None, ("database",), 0, "0 of 100: 2 of 2 members can serve; database is down"),
        ("UU", None, ("unknown",), 100, "100 of 100: 2 of 2 members can serve"),
    ],
)
def test_a_grade_and_what_it_comes_from(
    states: str, members: int | None, down: tuple[str, ...], value: int, why: str
) -> None:
    found = grades(spec(members, ("database", "queue")), east(states), {"east": down})["east"]
    assert (found.value, found.why) == (value, why)


def test_members_count_by_their_weight_and_the_specs_weight_counts_more() -> None:
    members = [SiteMember("e-0", "east", 30, False), SiteMember("e-1", "east", 10, True)]
    assert grades(spec(), members, {})["east"].value == 25
    even = spec().model_copy(update={"members": {"e-0": MemberSpec(weight=10)}})
    assert grades(even, members, {})["east"].value == 50


def test_a_site_that_the_spec_does_not_name_has_a_grade_too() -> None:
    found = grades(spec(), [SiteMember("n-1", "north", 10, True)], {"north": {"database"}})
    assert {site: grade.value for site, grade in found.items()} == {"east": 0, "north": 100, "west": 0}
