"""``recovery: prefer_priority``: who may pre-empt, and since when; with the tables that follow."""

from dataclasses import replace

import pytest

from understudy.statesync.pool.records import Member, MemberState, Owner, Table
from understudy.statesync.pool.spec import PoolSpec, SpecError
from understudy.statesync.pool.spec_parts import MemberSpec
from understudy.statesync.pool.spec_reader import parse_spec
from understudy.xds.membership.cluster_state import ClusterState
from understudy.xds.membership.member_health import SECOND
from understudy.xds.planning.flap_damping import FREEZE_TIME, FlapDamping
from understudy.xds.planning.plan import next_plan
from understudy.xds.planning.recovery import SYNC_POLL_SECONDS, Recovery

START = 1000 * SECOND
STABLE = 30 * SECOND
UP, DOWN = MemberState.UP, MemberState.DOWN
A, B = ("a", "one"), ("b", "one")
PRIORITIES = {"b": MemberSpec(priority=2), "c": MemberSpec(priority=3)}


def served_by_b(recovery="prefer_priority", *, boot="one", **states) -> ClusterState:
    """A pool of a, b, c in this order of priority, whose four slots b has; a is back."""
    spec = PoolSpec(pool="cart", mode="active_standby", slots=4, recovery=recovery, members=PRIORITIES)
    boots = {"a": boot, "b": "one", "c": "one"}
    return ClusterState(
        spec=spec,
        members={name: Member(name, one, "127.0.0.1:7000", "127.0.0.1:1", UP) for name, one in boots.items()},
        states=dict.fromkeys(boots, UP) | states,
        registered=boots,
        owners={slot: Owner("b", "one", 2) for slot in range(4)},
        table=Table(2, (("b", "a", "c"),) * 4),
        deaths={},
        beating=frozenset(boots.items()),
    )


def after(*looks):
    """What the leader remembers after looks at the pool: the pool, who is complete, and seconds since the start."""
    memory = Recovery()
    for cluster, complete, seconds in looks:
        memory = memory.observe(cluster, complete, START + round(seconds * SECOND))
    return memory


def actives(cluster, memory):
    plan = next_plan(cluster, 0.0, settled=memory.members())
    return {order[0] for order in (plan.table.orders if plan else cluster.table.orders)}


def test_a_better_member_that_is_back_pre_empts_when_it_was_stable_for_long_enough():
    pool = served_by_b()

    assert actives(pool, after((pool, {A}, 0), (pool, {A}, 29.9))) == {"b"}
    assert actives(pool, after((pool, {A}, 0), (pool, {A}, 30))) == {"a"}


def test_with_keep_current_it_never_does():
    pool = served_by_b("keep_current")

    assert actives(pool, after((pool, {A}, 0), (pool, {A}, 3600))) == {"b"}


def test_it_waits_until_it_has_all_copies():
    pool = served_by_b()

    waiting = after((pool, (), 0), (pool, (), 60))
    assert actives(pool, waiting) == {"b"}
    assert waiting.seconds_until_due(pool, START + 60 * SECOND) == SYNC_POLL_SECONDS
    assert actives(pool, after((pool, (), 0), (pool, (), 60), (pool, {A}, 61))) == {"a"}


@pytest.mark.parametrize("between", [served_by_b(a=DOWN), served_by_b(boot="two")])
def test_an_interruption_or_a_restart_begins_the_wait_anew(between):
    pool = replace(served_by_b(), members=between.members, registered=between.registered)
    complete = {A, ("a", "two")}

    assert actives(pool, after((served_by_b(), complete, 0), (between, complete, 20), (pool, complete, 40))) == {"b"}


def test_a_new_leader_begins_the_wait_anew():
    pool = served_by_b()

    assert actives(pool, after((pool, {A}, 100))) == {"b"}


def test_moves_under_way_go_on_when_the_leader_is_new_and_copies_are_missing():
    pool = served_by_b()
    half = {slot: Owner("a" if slot < 1 else "b", "one", 3) for slot in range(4)}
    moving = replace(pool, owners=half, table=Table(3, (("a", "b", "c"),) * 4))

    assert actives(moving, Recovery()) == {"a"}


def test_a_member_of_equal_or_worse_priority_never_pre_empts():
    pool = served_by_b()
    equal = replace(pool, spec=pool.spec.model_copy(update={"members": {"c": MemberSpec(priority=3)}}))

    assert actives(equal, after((equal, {A}, 0), (equal, {A}, 60))) == {"b"}


def test_the_move_of_all_slots_is_no_surge_that_freezes():
    pool = served_by_b()
    memory = after((pool, {A}, 0), (pool, {A}, 30))
    damping = FlapDamping().observe(pool, START).observe(pool, START + STABLE, released=True)

    plan = next_plan(pool, 0.0, damping.held_slots(pool), memory.members())

    assert damping.with_plan(pool, plan.table.orders, START + STABLE).frozen is None
    silent = FlapDamping().observe(pool, START).observe(pool, START + STABLE)
    assert silent.with_plan(pool, plan.table.orders, START + STABLE).frozen.until == START + STABLE + FREEZE_TIME


def test_the_leader_looks_again_when_the_wait_ends():
    pool = served_by_b()

    assert after((pool, {A}, 0)).seconds_until_due(pool, START + 10 * SECOND) == 20
    keeping = served_by_b("keep_current")
    assert after((keeping, {A}, 0)).seconds_until_due(keeping, START) is None


def test_a_pool_that_shares_its_load_has_no_priorities_to_prefer():
    with pytest.raises(SpecError, match="recovery: prefer_priority is for mode: active_standby"):
        parse_spec("pool: cart\nrecovery: prefer_priority", where="pool.yaml")


def test_a_stored_spec_has_no_new_key_unless_it_is_used():
    assert b"stable_for" not in PoolSpec(pool="cart").encode()
    assert b'"stable_for":5.0' in parse_spec("pool: cart\nstable_for: 5s", where="pool.yaml").encode()
