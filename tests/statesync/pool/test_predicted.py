"""Which member moves away before it fails: one at a time, and only if most of the others are well."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness.examples import examples
from understudy.statesync.pool.predicted import PREDICTED, leaving_members, obstacle
from understudy.statesync.pool.records import Leaving, Member, MemberState, Table

UP, DOWN, DRAINING = MemberState.UP, MemberState.DOWN, MemberState.DRAINING
WILL_FAIL = "memory 91 % of 512 MiB, full in 20 s"


def pool(levels: str, ends: tuple[float, ...] = ()) -> dict[str, Member]:
    """Members a, b, c...: C is critical, W is warned of, anything else is well; ``ends`` are when they fail."""
    names = {"C": "critical", "W": "warn"}
    return {
        name: Member(
            name,
            "1",
            "x:1",
            "x:2",
            UP,
            forecast=WILL_FAIL if level in names else "",
            forecast_level=names.get(level, ""),
            forecast_end=ends[place] if ends else 0.0,
        )
        for place, (name, level) in enumerate(zip("abcdef", levels, strict=False))
    }


def states(members: dict[str, Member], down: str = "") -> dict[str, MemberState]:
    return {name: DOWN if name in down else UP for name in members}


@pytest.mark.parametrize(
    ("levels", "down", "who"),
    [
        ("C..", "", "a"),
        ("...", "", ""),
        ("W..", "", ""),
        ("CC..", "", "a"),
        ("C.", "", "a"),
        ("C", "", ""),
        ("C.", "b", ""),
        ("CC", "", ""),
        ("CCC", "", ""),
        ("CWW", "", ""),
        ("CW.", "", "a"),
        ("C...", "bc", ""),
        ("C..", "a", ""),
    ],
    ids=[
        "one of three will fail",
        "nobody will fail",
        "a warning moves nothing",
        "of two only one leaves",
        "the other one of two is well",
        "it is the only member",
        "the other one is down",
        "both leak",
        "all leak",
        "all others are warned of",
        "half of the others are well",
        "too many others are down",
        "it is down already",
    ],
)
def test_who_leaves(levels: str, down: str, who: str) -> None:
    members = pool(levels)
    found = leaving_members(members, states(members, down), {})
    assert found == ({who: Leaving("1", PREDICTED + WILL_FAIL)} if who else {})


def test_of_two_the_one_that_fails_first_leaves() -> None:
    members = pool("C.C..", (50.0, 0.0, 40.0, 0.0, 0.0))
    assert list(leaving_members(members, states(members), {})) == ["c"]


def test_a_member_whose_slots_the_others_cannot_carry_stays_and_one_that_has_left_stays_away() -> None:
    members = pool("CC....", (40.0, 50.0, 0.0, 0.0, 0.0, 0.0))
    busy = {"a": "c would need 2.1 CPUs with them, and has 2"}
    assert list(leaving_members(members, states(members), {}, lambda name: busy.get(name, ""))) == ["b"]
    assert leaving_members(members, states(members), A_LEFT, lambda name: busy.get(name, "")) == A_LEFT


A_LEFT = {"a": Leaving("1", "predicted: it said so then")}


def test_who_has_left_stays_away_until_it_is_well_or_another_process() -> None:
    members = pool("C..")
    away = states(members) | {"a": DRAINING}
    assert leaving_members(members, away, A_LEFT) == A_LEFT
    assert leaving_members(pool("W.."), away, A_LEFT) == {}
    assert leaving_members(pool("..."), away, A_LEFT) == {}
    assert leaving_members(members, away, {"a": Leaving("0", "an earlier process")}) == {}
    gone = {name: member for name, member in members.items() if name != "a"}
    assert leaving_members(gone, away, A_LEFT) == {}


def test_nobody_follows_while_one_is_away_and_it_returns_if_nobody_else_can_serve() -> None:
    members = pool("CC..")
    away = states(members) | {"a": DRAINING}
    assert leaving_members(members, away, A_LEFT) == A_LEFT
    assert leaving_members(members, {"a": DRAINING, "b": DOWN, "c": DOWN, "d": DOWN}, A_LEFT) == {}


@pytest.mark.parametrize(
    ("levels", "left", "said"),
    [
        ("CC", {}, "no other member is well"),
        ("CWW.", {}, "only 1 of 3 other members are well"),
        (".C..", A_LEFT, "a has handed its slots over already"),
        ("C..", A_LEFT, ""),
    ],
)
def test_why_a_member_that_will_fail_keeps_its_slots(levels: str, left: dict[str, Leaving], said: str) -> None:
    members = pool(levels)
    member = next(name for name, one in members.items() if one.forecast_level == "critical")
    assert obstacle(members, states(members), member, left).startswith(said)
    assert bool(said) == bool(obstacle(members, states(members), member, left))


@settings(max_examples=examples(200))
@given(
    levels=st.text("C.W", min_size=1, max_size=6),
    down=st.sets(st.sampled_from("abcdef")),
    left=st.sampled_from(["", "a", "b", "f"]),
)
def test_never_more_than_one_and_never_the_last_that_can_serve(levels: str, down: set[str], left: str) -> None:
    members = pool(levels)
    now = states(members, "".join(down))
    before = {left: Leaving("1", "predicted: earlier")} if left else {}
    found = leaving_members(members, now, before)
    assert len(found) <= 1
    rest = [name for name in members if name not in found and now[name].may_hold_slots]
    assert rest or not found


def test_a_table_without_leaving_members_is_that_of_earlier_releases() -> None:
    assert b"leaving" not in Table(1, (("a",),)).encode()
    table = Table(1, (("a",),), leaving=A_LEFT)
    assert Table.decode(table.encode()) == table


def test_a_level_of_a_later_release_counts_as_none() -> None:
    assert Member("a", "1", "", "", forecast_level="doomed").expected.rank == 0
