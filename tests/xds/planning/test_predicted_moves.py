"""The slot table when a member will fail soon: who gets its slots, with what cause, and what becomes of it later."""

from dataclasses import replace

from tests.xds.planning.test_flap_damping import START, world
from understudy.statesync.pool.records import Leaving, MemberState
from understudy.xds.control.decision_log import act_of
from understudy.xds.membership.cluster_state import ClusterState
from understudy.xds.planning.flap_damping import SECOND, FlapDamping
from understudy.xds.planning.plan import TablePlan, decision_inputs, next_plan

WHY = "predicted: memory 91 % of 512 MiB, full in 20 s"
A_LEAVES = {"a": Leaving("one", WHY)}


def planned(cluster: ClusterState) -> TablePlan:
    plan = next_plan(cluster, 1.0)
    assert plan is not None
    return plan


def test_the_slots_of_a_member_that_will_fail_move_and_the_audit_log_says_why() -> None:
    before = world("aabbcc", states="UUU")
    cluster = replace(before, leaving=A_LEAVES)
    assert decision_inputs(cluster) != decision_inputs(before)  # so it is decided at once
    plan = planned(cluster)
    assert "a" not in {member for order in plan.table.orders for member in order}
    assert plan.table.leaving == A_LEAVES
    assert plan.table.cause == WHY
    assert act_of(plan).why == WHY
    assert act_of(plan).detail.startswith("2 slots get another active")


def test_the_same_forecast_writes_no_second_table() -> None:
    cluster = replace(world("aabbcc", states="UUU"), leaving=A_LEAVES)
    assert next_plan(replace(cluster, table=planned(cluster).table), 1.0) is None


def test_a_predicted_move_is_never_held_back_as_a_surge() -> None:
    cluster = world("aaabbb")
    damping = FlapDamping().observe(cluster, START)
    later = replace(cluster, leaving=A_LEAVES)
    damping = damping.observe(later, START + 60 * SECOND)
    plan = planned(later)
    assert damping.with_plan(later, plan.table.orders, START + 60 * SECOND).frozen is None
    assert damping.held_slots(later) == frozenset()


def test_a_member_that_is_well_again_gets_a_share() -> None:
    away = replace(world("bbbccc", states="UUU"), leaving=A_LEAVES)
    table = planned(away).table
    back = replace(away, leaving={}, table=table)
    plan = planned(back)
    assert plan.table.leaving == {}
    assert "a" in {order[0] for order in plan.table.orders}
    assert plan.table.cause == "rebalance"


def test_a_leaving_member_counts_as_draining_only_while_it_could_serve() -> None:
    cluster = replace(world("ab", states="DU"), leaving=A_LEAVES)
    assert cluster.state("a") is MemberState.DOWN
    assert replace(world("ab"), leaving=A_LEAVES).state("a") is MemberState.DRAINING
