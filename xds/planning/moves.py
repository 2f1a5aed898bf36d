"""The next step of a rebalance under way: how many of its moves may be in the slot table. Pure.

A step is made only when the slots of all earlier moves are with their new actives, and all members of the plan can hold
slots. So a rebalance waits while something is wrong, and goes on by itself.
"""

from dataclasses import replace

import msgspec

from understudy.statesync.pool.rebalance import MovePlan, MoveProgress, PlanState
from understudy.statesync.pool.records import Phase
from understudy.xds.membership.cluster_state import ClusterState

STEP_SECONDS = 1.0
"""Moves of a plan with more than one a second are made in steps this far apart."""


class Waiting(msgspec.Struct, frozen=True):
    """Why no step can be made now."""

    why: str


def next_step(cluster: ClusterState, plan: MovePlan, progress: MoveProgress) -> MoveProgress | Waiting:
    """The progress to write, or what the plan waits for."""
    if cluster.approved is None:
        why = "the pool's spec no longer balances by load, or has another number of slots"
        return replace(progress, state=PlanState.ABORTED, why=why)
    steps = plan.steps()
    used = {move.target for move in steps[progress.released :]}
    unfit = sorted(member for member in used if not cluster.state(member).may_hold_slots)
    if unfit:
        return Waiting(f"{unfit[0]} is {cluster.state(unfit[0])}")
    open_moves = [move.slot for move in steps[: progress.released] if not _settled(cluster, move.slot, move.target)]
    if open_moves:
        return Waiting(f"slot {open_moves[0]} is still moving, and {len(open_moves) - 1} more")
    if progress.released >= len(steps):
        return replace(progress, state=PlanState.DONE)
    step = max(1, round(plan.rate * STEP_SECONDS))
    return replace(progress, released=min(len(steps), progress.released + step))


def seconds_between_steps(plan: MovePlan) -> float:
    """The shortest time between two steps."""
    return max(STEP_SECONDS, 1 / plan.rate)


def _settled(cluster: ClusterState, slot: int, target: str) -> bool:
    """Whether a slot is with its new active, or that member cannot hold it now: then its standby has it."""
    owner = cluster.owners.get(slot)
    if not cluster.state(target).may_hold_slots:
        return True
    return owner is not None and owner.active == target and owner.phase is Phase.STABLE
