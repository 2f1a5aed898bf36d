"""What front Envoys told of late, Envoy by Envoy, with members by their names. Pure."""

from collections import defaultdict
from typing import Any

from understudy.statesync.pool.records import MemberState
from understudy.telemetry.receiver.front_tally import GAP_SECONDS, OF_MEMBERS, WINDOW_SECONDS, FrontTally, Kind
from understudy.xds.membership.cluster_state import World

_NOT_WELL = (MemberState.LOST, MemberState.DOWN, MemberState.INIT)
"""Members that Envoys had better not reach: failed checks of these tell nothing about the network."""


def cut_off_pairs(world: World, fronts: FrontTally, wall: float) -> dict[tuple[str, str], float]:
    """Envoys and members that are well and do not reach each other, and for how many seconds.

    What Envoys told before a member was well is none of it. ``wall`` is the time in seconds since 1970.
    """
    return {
        (node, member): seconds
        for (node, member), seconds in sorted(fronts.unreachable().items())
        if member in world.members
        and world.state(member) not in _NOT_WELL
        and wall - world.members[member].since >= GAP_SECONDS
    }


def fronts_view(world: World | None, fronts: FrontTally, wall: float) -> dict[str, Any]:
    """The answer of ``/v1/fronts``; a member that is not known any more is called by its address."""
    names = {record.app: member for member, record in world.members.items()} if world else {}
    members: dict[str, dict[str, dict[str, Any]]] = defaultdict(lambda: defaultdict(_nothing))
    totals: dict[str, dict[str, int]] = defaultdict(lambda: {Kind.REQUESTS: 0, Kind.KEYLESS: 0})
    for (node, where, kind), count in sorted(fronts.recent().items()):
        if kind in OF_MEMBERS:
            members[node][names.get(where, where)][kind] += count
        else:
            totals[node][kind] = count
    for (node, member), seconds in (cut_off_pairs(world, fronts, wall) if world else {}).items():
        members[node][member]["unreachable_seconds"] = round(seconds, 1)
    nodes = sorted({*members, *totals})
    return {
        "window_seconds": WINDOW_SECONDS,
        "fronts": [{"node": node, **totals[node], "members": members[node]} for node in nodes],
    }


def _nothing() -> dict[str, Any]:
    return {**dict.fromkeys(OF_MEMBERS, 0), "unreachable_seconds": 0.0}
