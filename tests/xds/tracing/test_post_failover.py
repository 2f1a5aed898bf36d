"""When a pool has two current copies of every slot again, and whether the dead came back."""

from dataclasses import replace

import pytest

from tests.xds.membership.test_cluster_state import member, world
from understudy.statesync.pool.records import MemberState
from understudy.telemetry.tracing import names
from understudy.xds.membership.member_health import MemberHealth
from understudy.xds.tracing.failover_timing import OwnershipChange
from understudy.xds.tracing.post_failover import protected, returned

NOW = 100


def health_of_all(**changes: dict) -> dict:
    found = {}
    for name in "abc":
        health = MemberHealth(name, "one", streams=frozenset({1}), applied=NOW)
        found[name, "one"] = replace(health, **changes.get(name, {}))
    return found


def three(**states: MemberState):
    members = [member(name, state=states.get(name, MemberState.UP)) for name in "abc"]
    return world(*members, orders=("abc", "bca", "cab"), owners="abc", beating=tuple("abc"))


def test_a_pool_at_rest_is_protected():
    assert protected(three(), health_of_all(), NOW)


@pytest.mark.parametrize(
    "lacks", [{"lacking": 1}, {"applied": NOW - 1}, {"streams": frozenset()}], ids=["copies", "news", "heartbeat"]
)
def test_who_lacks_something_is_no_copy(lacks):
    assert protected(three(), health_of_all(b=lacks), NOW)
    assert not protected(three(), health_of_all(b=lacks, c=lacks), NOW)


def test_two_of_three_protect_and_one_does_not():
    assert protected(three(c=MemberState.LOST), health_of_all(), NOW)
    assert not protected(three(b=MemberState.INIT, c=MemberState.LOST), health_of_all(), NOW)
    assert not protected(world(member("a"), owners="a"), health_of_all(), NOW)


def test_only_the_same_process_counts_as_returned():
    change = OwnershipChange(names.KIND_TAKEOVER, "cart", "", "a", "silence", {0: "one"}, 0, 0, 0, 1)
    assert returned(three(), change)
    assert not returned(three(), replace(change, moving={0: "another"}))
