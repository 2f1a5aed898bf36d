"""``site offline``: its expiry, and each refusal with what overrules it."""

from collections.abc import Callable
from typing import Any

import pytest

from understudy.deploy.common.errors import NegativeAnswer
from understudy.deploy.inspect.capacity import too_small
from understudy.deploy.operate.service import OFFLINE_SECONDS, require_safe_in_group, site_offline, site_online
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import (
    RESTARTING,
    Intent,
    Member,
    MemberState,
    Owner,
    Process,
    SyncRecord,
    Table,
)
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.state import At, PoolState

NOW = 10_000.0
INTENT = Intent(site="east", until=NOW + OFFLINE_SECONDS, since=NOW)


def pool() -> PoolState:
    """Two slots that east serves, with a current copy on west."""
    state = PoolState(PoolKeys("cart"), spec=At(PoolSpec(pool="cart", slots=2), 1))
    state.table = At(Table(1, (("e1", "w1"),) * 2), 2)
    for name, site in (("e1", "east"), ("w1", "west")):
        state.members[name] = At(Member(name, f"boot of {name}", "", "", MemberState.UP, site=site), 3)
    for slot in range(2):
        state.owners[slot] = At(Owner("e1", "boot of e1", 1), 4)
        state.sync_sets[slot] = At(SyncRecord(1, tuple(Process(name, f"boot of {name}") for name in ("e1", "w1"))), 5)
    return state


def away(state: PoolState) -> None:
    state.members["n1"] = At(Member("n1", "n", "", "", MemberState.UP, site="north"), 3)
    state.sites["west"] = At(Intent(since=NOW - 60, site="west"), 6)


def moving(state: PoolState) -> None:
    state.owners[1] = At(Owner("w1", "boot of w1", 2), 6)


def late(state: PoolState) -> None:
    state.sync_sets[1] = At(SyncRecord(1, (Process("e1", "boot of e1"),)), 6)


def unknown(state: PoolState) -> None:
    del state.members["e1"], state.owners[0], state.owners[1]


@pytest.mark.parametrize(
    ("harm", "no_room", "reason"),
    [
        (unknown, "", "no member on a site 'east'; its sites are west"),
        (away, "", "site west is offline already"),
        (moving, "", "1 slots are moving (1)"),
        (late, "", "1 slots have current copies on site east only"),
        (lambda _: None, "they need 9 CPUs", "cannot carry the load of site east: they need 9 CPUs"),
    ],
)
def test_what_is_not_safe_is_refused_unless_forced(
    harm: Callable[[PoolState], None], no_room: str, reason: str
) -> None:
    state = pool()
    harm(state)
    with pytest.raises(NegativeAnswer) as refused:
        site_offline(state, INTENT, no_room=no_room)
    assert reason in str(refused.value)
    assert "--force --reason WHY" in str(refused.value)
    assert site_offline(state, INTENT, force=True, no_room=no_room).intent == INTENT


def test_site_online_ends_a_rest_after_two_losses_but_no_other_one() -> None:
    state = pool()
    state.table = At(Table(1, (("w1", "e1"),) * 2, resting={"east": 50}, returned={"east": NOW - 299}), 2)
    change = site_online(state, "east", NOW)
    assert change.intent == Intent(site="east", until=NOW - 299, since=NOW)
    assert not change.intent.holds(NOW)
    state.sites["east"] = At(change.intent, 9)
    assert state.ended_rests() == {"east": NOW - 299}
    assert state.offline(NOW) == frozenset()

    assert site_online(state, "east", NOW + 1).intent is None
    state.table = At(Table(1, (("w1", "e1"),) * 2, resting={"east": 50}, returned={"east": RESTARTING}), 2)
    assert site_online(state, "east", 1.0).intent is None


@pytest.mark.parametrize(
    ("harm", "no_room"), [(away, ""), (moving, ""), (late, ""), (lambda _: None, "they need 9 CPUs")]
)
def test_a_pool_of_the_group_that_could_not_leave_the_site_is_a_refusal(
    harm: Callable[[PoolState], None], no_room: str
) -> None:
    other = pool()
    harm(other)
    with pytest.raises(NegativeAnswer, match="pool cart of the same group would go too: "):
        require_safe_in_group(other, INTENT, no_room)


@pytest.mark.parametrize("gone", ["e1", "w1"])
def test_a_pool_of_the_group_that_does_not_follow_is_none(gone: str) -> None:
    other = pool()
    late(other)
    del other.members[gone]
    require_safe_in_group(other, INTENT, "they need 9 CPUs")


def test_a_site_that_is_handing_over_gets_another_end() -> None:
    state = pool()
    moving(state)
    state.sites["east"] = At(Intent(since=NOW - 60, site="east"), 6)
    assert site_offline(state, INTENT).intent == INTENT


def test_the_last_site_is_refused_also_with_force() -> None:
    state = pool()
    del state.members["w1"]
    with pytest.raises(NegativeAnswer, match="east is the last site that can serve pool cart"):
        site_offline(state, INTENT, force=True)


def test_a_site_that_is_well_goes_out_with_its_end_in_the_audit_log() -> None:
    change = site_offline(pool(), INTENT)
    assert (change.act.what, change.act.undo) == ("site offline east", "understudy site online east --pool cart")
    assert change.act.detail == "until 1970-01-01 04:46:40Z"


def loss(cpus: float, *then: float) -> dict[str, Any]:
    survivors = [{"cpu_then": one, "cpus": cpus} for one in then]
    worst = max(then) / cpus
    return {
        "level": "site",
        "name": "east",
        "survivors": survivors,
        "fits": worst <= 0.8,
        "worst": worst,
        "slots_without": 0,
    }


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (loss(2, 0.7, 0.8), ""),
        (loss(2, 0.8, 0.9), "the other members could not lose one more: they would need 1.7 of 2 CPUs"),
        (loss(2, 1.9, 0.1), "the busiest of the other members would use 95 % of its CPUs"),
        (loss(2, 1.5), ""),
        ({**loss(2, 0.1), "slots_without": 3}, ""),
        ({**loss(2, 1.9), "name": "west"}, ""),
    ],
)
def test_other_sites_need_room_for_the_load_and_for_the_loss_of_one_more_member(
    found: dict[str, Any], reason: str
) -> None:
    assert too_small({"losses": [found], "usable": 0.8}, "east") == reason
