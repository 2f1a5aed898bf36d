"""Whether a pool has converged: every slot has the owner that the table assigns, and shares are even. Pure.

Drills, the demo, benchmarks and tests wait for this before they start.
"""

from understudy.deploy.inspect.member_views import member_views, slots_of
from understudy.statesync.pool.records import Phase
from understudy.statesync.pool.state import PoolState


def actives(state: PoolState) -> dict[str, int]:
    """The number of slots that each member is active for, by owner records."""
    return {view["member"]: view["active"] for view in member_views(state)}


def moving_slots(state: PoolState) -> list[int]:
    """The slots that are handed over, or that should have another owner: by the table, or because it is gone."""
    table = state.table.record if state.table else None
    boots = {name: at.record.boot for name, at in state.members.items()}
    return [
        slot
        for slot, at in state.owners.items()
        if at.record.phase is not Phase.STABLE
        or (table is not None and slot < table.slots and at.record.active != table.active_of(slot))
        or at.record.boot != boots.get(at.record.active)
    ]


def not_converged(state: PoolState, members: list[str]) -> str:
    """Why the pool has not converged yet; '' when it has. ``members`` must be registered and have their shares."""
    total, table = slots_of(state), state.table.record if state.table else None
    if table is None:
        return "there is no slot table yet"
    absent = [name for name in members if name not in state.members]
    if absent:
        return f"not registered: {', '.join(absent)}"
    open_slots = [slot for slot in range(total) if slot not in state.owners]
    if open_slots:
        return f"{len(open_slots)} slots have no owner"
    if moving := moving_slots(state):
        return f"{len(moving)} slots are moving"
    held = actives(state)
    # A share may be one slot off: the table moves no slot for less.
    unfair = {name: held.get(name, 0) for name in members if held.get(name, 0) < total // len(members) - 1}
    return f"these members have less than their share of {total} slots: {unfair}" if unfair else ""
