"""Whether a pool is at rest: every slot owned as the table wants it, in fair shares. Pure.

For whoever may strike only then (drills), starts counting only then (the demo, benchmarks), or waits for it (tests).
"""

from understudy.deploy.inspect.member_views import member_views, slots_of
from understudy.statesync.pool.records import Phase
from understudy.statesync.pool.state import PoolState


def actives(state: PoolState) -> dict[str, int]:
    """How many slots each member is active for, by owner records."""
    return {view["member"]: view["active"] for view in member_views(state)}


def unsettled(state: PoolState, members: list[str]) -> str:
    """Why the pool is not at rest with fair shares yet; empty when it is."""
    total, table = slots_of(state), state.table.record if state.table else None
    if table is None:
        return "there is no slot table yet"
    absent = [name for name in members if name not in state.members]
    if absent:
        return f"not registered: {', '.join(absent)}"
    open_slots = [slot for slot in range(total) if slot not in state.owners]
    if open_slots:
        return f"{len(open_slots)} slots have no owner"
    boots = {name: at.record.boot for name, at in state.members.items()}
    moving = [
        slot
        for slot, at in state.owners.items()
        if at.record.phase is not Phase.STABLE
        or at.record.active != table.active_of(slot)
        or at.record.boot != boots.get(at.record.active)
    ]
    if moving:
        return f"{len(moving)} slots are on their way"
    held = actives(state)
    # A share is fair within one slot: what the table rests at, since it moves no slot for less.
    unfair = {name: held.get(name, 0) for name in members if held.get(name, 0) < total // len(members) - 1}
    return f"without a fair share of {total} slots: {unfair}" if unfair else ""
