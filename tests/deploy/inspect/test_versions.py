"""What ``status`` says about versions that nobody can serve."""

import pytest

from understudy.deploy.inspect.versions import sessions_text, version_warnings, versions_view
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Lost, Member, MemberState, Owner, Table
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_versions import Versions
from understudy.statesync.pool.state import At, PoolState


def a_pool(*members: tuple[str, str, str], **versions: str) -> PoolState:
    """A pool of members (name, version, state), each of them active for a slot."""
    state = PoolState(PoolKeys("cart"))
    state.spec = At(PoolSpec(pool="cart", slots=8, versions=Versions(**versions) if versions else None), 1)
    for slot, (name, version, is_in) in enumerate(members):
        at = Member(name, "b1", "127.0.0.1:1", "127.0.0.1:2", MemberState(is_in), app_version=version)
        state.members[name] = At(at, 1)
        state.owners[slot] = At(Owner(name, "b1", 1), 1)
    return state


def test_an_operator_sees_how_many_sessions_each_version_still_has():
    state = a_pool(("m1", "v1", "UP"), ("m2", "v2", "UP"), ("m3", "v2", "DOWN"), new_sessions="v2", unmarked="v1")
    load = [
        {"member": "m1", "versions": {"v1": 5, "v2": 40}},
        {"member": "m2", "versions": {"v1": 2, "v2": 30, "": 1}},
        {"member": "m3", "versions": {}},
        {"member": "m4", "versions": {"v1": 1000}},  # it is active for nothing, so others count its sessions
    ]
    rows = versions_view(state, load)
    told = [(one["version"], one["members"], one["serving"], one["sessions"], one["takes"]) for one in rows]
    assert told == [
        ("", 0, 0, 1, ""),
        ("v1", 1, 1, 7, "sessions without a mark"),
        ("v2", 2, 1, 70, "new sessions"),
    ]
    assert [sessions_text(one) for one in rows] == ["1", "7", "70"]


@pytest.mark.parametrize(
    ("load", "told"),
    [
        ([], "not known"),
        ([{"member": "m1", "versions": {"v1": 5}}], "5 or more: 1 members have not told theirs"),
        ([{"member": "m1", "versions": {"v1": 5}}, {"member": "m2", "versions": None}], "5 or more: 1 members"),
    ],
)
def test_sessions_that_no_member_has_told_of_are_not_none(load, told):
    state = a_pool(("m1", "v1", "UP"), ("m2", "v2", "UP"))
    row = next(one for one in versions_view(state, load) if one["version"] == "v1")
    assert sessions_text(row).startswith(told)


def test_a_pool_without_versions_has_no_such_table():
    assert versions_view(a_pool(("m1", "", "UP")), []) == []


def warnings(members: dict[str, str], *, lost: str = "", **versions: str) -> list[str]:
    state = PoolState(PoolKeys("cart"))
    state.spec = At(PoolSpec(pool="cart", versions=Versions(**versions)), 1)
    for name, version in members.items():
        record = Member(name, "b1", "127.0.0.1:1", "127.0.0.1:2", MemberState.UP, app_version=version)
        state.members[name] = At(record, 1)
    entries = {lost: Lost("b1", "killed", "", 0.0)} if lost else {}
    state.table = At(Table(1, (("m1", "m2"),), entries), 1)
    return list(version_warnings(state))


@pytest.mark.parametrize(
    ("members", "lost", "versions", "told"),
    [
        ({"m1": "v1", "m2": "v2"}, "", {"new_sessions": "v2", "unmarked": "v1"}, []),
        ({"m1": "v1", "m2": "v1"}, "", {"new_sessions": "v2"}, ["versions that run: v1"]),
        ({"m1": "v1", "m2": "v2"}, "m1", {"new_sessions": "v2"}, ["version v1 has members, and none"]),
        ({"m1": "v1", "m2": "v2"}, "m1", {"new_sessions": "v2", "unmarked": "v1"}, ["refused with 503"]),
        (
            {"m1": "v1", "m2": "v2"},
            "m1",
            {"new_sessions": "v2", "unmarked": "v1", "when_gone": "move"},
            ["they move to version v2"],
        ),
    ],
)
def test_a_version_that_nobody_can_serve_is_told(
    members: dict[str, str], lost: str, versions: dict[str, str], told: list[str]
):
    found = warnings(members, lost=lost, **versions)
    assert len(found) == len(told)
    assert all(part in line for part, line in zip(told, found, strict=True))
