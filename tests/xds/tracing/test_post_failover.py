"""When a pool has two current copies of every slot again, and whether the dead came back."""

from dataclasses import replace

import pytest

from tests.xds.membership.test_cluster_state import member, world
from understudy.statesync.pool.records import MemberState
from understudy.telemetry.tracing import names
from understudy.xds.membership.failure_detector import Pulse
from understudy.xds.tracing.failover_timing import Course
from understudy.xds.tracing.post_failover import protected, returned

NOW = 100


def pulses(**changes: dict) -> dict:
    found = {}
    for name in "abc":
        pulse = Pulse(name, "one", streams=frozenset({1}), applied=NOW)
        found[name, "one"] = replace(pulse, **changes.get(name, {}))
    return found


def three(**states: MemberState):
    members = [member(name, state=states.get(name, MemberState.UP)) for name in "abc"]
    return world(*members, orders=("abc", "bca", "cab"), owners="abc", beating=tuple("abc"))


def test_a_pool_at_rest_is_protected():
    assert protected(three(), pulses(), NOW)


@pytest.mark.parametrize(
    "lacks", [{"lacking": 1}, {"applied": NOW - 1}, {"streams": frozenset()}], ids=["copies", "news", "heartbeat"]
)
def test_who_lacks_something_is_no_copy(lacks):
    assert protected(three(), pulses(b=lacks), NOW)
    assert not protected(three(), pulses(b=lacks, c=lacks), NOW)


def test_two_of_three_protect_and_one_does_not():
    assert protected(three(c=MemberState.LOST), pulses(), NOW)
    assert not protected(three(b=MemberState.INIT, c=MemberState.LOST), pulses(), NOW)
    assert not protected(world(member("a"), owners="a"), pulses(), NOW)


def test_only_the_same_process_counts_as_returned():
    course = Course(names.KIND_TAKEOVER, "cart", "", "a", "silence", {0: "one"}, 0, 0, 0, 1)
    assert returned(three(), course)
    assert not returned(three(), replace(course, moving={0: "another"}))
