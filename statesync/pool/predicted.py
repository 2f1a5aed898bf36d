"""Which member hands its slots over before it fails (``predictive: move``). Pure.

Control servers decide it, one member of a pool at a time, and write it into the slot table. The member then hands its
slots over as in any drain. A wrong forecast costs a drain; a move to members that fare no better would cost more. So
nothing moves unless most of the others are well, and none of them would need more CPU than it has.
"""

from collections.abc import Callable, Mapping

from understudy.statesync.pool.records import ForecastLevel, Leaving, Member, MemberState

PREDICTED = "predicted: "
"""The start of the cause of moves away from a member that will fail soon; its forecast follows."""


def nothing_known(_member: str) -> str:
    """The default of ``too_busy``: the load of the members is not known."""
    return ""


def leaving_members(
    members: Mapping[str, Member],
    states: Mapping[str, MemberState],
    before: Mapping[str, Leaving],
    too_busy: Callable[[str], str] = nothing_known,
) -> dict[str, Leaving]:
    """The members that are to own nothing because they will fail soon: one at the most.

    Args:
        members: the registered members.
        states: the state of each, as it reports it, or LOST.
        before: whom the slot table in force names. Who has left stays away until it is well again, or another process.
        too_busy: why the others cannot carry the slots of a member, by measured load; '' if they can, or nobody knows.
    """
    kept = {name: one for name, one in before.items() if _stays_away(members, states, name, one)}
    if kept:
        return kept
    failing = [name for name in members if _fails_soon(members, states, name)]
    for name in sorted(failing, key=lambda one: (members[one].forecast_end, one)):
        if not obstacle(members, states, name, {}) and not too_busy(name):
            return {name: Leaving(members[name].boot, PREDICTED + members[name].forecast)}
    return {}


def obstacle(
    members: Mapping[str, Member], states: Mapping[str, MemberState], member: str, leaving: Mapping[str, Leaving]
) -> str:
    """Why a member that will fail soon keeps its slots; '' if nothing is against a move."""
    gone = [name for name in leaving if name != member]
    if gone:
        return f"{', '.join(gone)} has handed its slots over already, and one member of a pool does so at a time"
    others = [name for name in members if name != member]
    well = [name for name in others if states[name].may_hold_slots and members[name].expected is ForecastLevel.OK]
    if not well:
        return "no other member is well: the slots would be no better off there"
    if 2 * len(well) < len(others):
        return f"only {len(well)} of {len(others)} other members are well, too few to carry the slots"
    return ""


def _fails_soon(members: Mapping[str, Member], states: Mapping[str, MemberState], name: str) -> bool:
    return members[name].expected is ForecastLevel.CRITICAL and states[name].may_hold_slots


def _stays_away(members: Mapping[str, Member], states: Mapping[str, MemberState], name: str, leaving: Leaving) -> bool:
    """Whether a member that has left is the same process, not well again, and not the only one that could serve."""
    record = members.get(name)
    if record is None or record.boot != leaving.boot or record.expected is not ForecastLevel.CRITICAL:
        return False
    return any(states[other].may_hold_slots for other in members if other != name)
