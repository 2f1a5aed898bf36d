"""What front Envoys reported of late, for each Envoy, with members by their names. Pure."""

from collections import defaultdict
from typing import Any

from understudy.statesync.pool.records import MemberState
from understudy.telemetry.receiver.front_tally import GAP_SECONDS, OF_MEMBERS, WINDOW_SECONDS, FrontTally, Kind
from understudy.xds.membership.cluster_state import ClusterState

_NOT_SERVING = (MemberState.LOST, MemberState.DOWN, MemberState.INIT)
"""States in which Envoys need not reach a member: failed checks of these say nothing about the network."""


def cut_off_pairs(cluster: ClusterState, fronts: FrontTally, wall: float) -> dict[tuple[str, str], float]:
    """Pairs of an Envoy and a healthy member that it cannot reach, and for how many seconds.

    Reports from before the member became healthy do not count. ``wall`` is the time in seconds since 1970.
    """
    return {
        (node, member): seconds
        for (node, member), seconds in sorted(fronts.unreachable().items())
        if member in cluster.members
        and cluster.state(member) not in _NOT_SERVING
        and wall - cluster.members[member].since >= GAP_SECONDS
    }


def fronts_view(cluster: ClusterState | None, fronts: FrontTally, wall: float) -> dict[str, Any]:
    """The answer of ``/v1/fronts``; an unknown member is named by its address."""
    names = {record.app: member for member, record in cluster.members.items()} if cluster else {}
    members: dict[str, dict[str, dict[str, Any]]] = defaultdict(lambda: defaultdict(_nothing))
    totals: dict[str, dict[str, int]] = defaultdict(
        lambda: dict.fromkeys((Kind.REQUESTS, Kind.KEYLESS, Kind.FAILED), 0)
    )
    sites: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys((Kind.AT_HOME, Kind.AWAY), 0))
    for (node, where, kind), count in sorted(fronts.recent().items()):
        if kind in (Kind.AT_HOME, Kind.AWAY):
            sites[where][kind] += count
        elif kind in OF_MEMBERS:
            members[node][names.get(where, where)][kind] += count
        else:
            totals[node][kind] = count
    for (node, member), seconds in (cut_off_pairs(cluster, fronts, wall) if cluster else {}).items():
        members[node][member]["unreachable_seconds"] = round(seconds, 1)
    nodes = sorted({*members, *totals})
    return {
        "window_seconds": WINDOW_SECONDS,
        "fronts": [{"node": node, **totals[node], "members": members[node]} for node in nodes],
        "sites": sites,
        "totals": {str(kind): fronts.totals[kind] for kind in (Kind.REQUESTS, Kind.FAILED)},
    }


def _nothing() -> dict[str, Any]:
    return {**dict.fromkeys(OF_MEMBERS, 0), "unreachable_seconds": 0.0}
