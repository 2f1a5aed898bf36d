"""What ``status`` says about versions that nobody can serve."""

import pytest

from understudy.deploy.inspect.versions import version_warnings
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Lost, Member, MemberState, Table
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_versions import Versions
from understudy.statesync.pool.state import At, PoolState


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
