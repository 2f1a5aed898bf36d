"""What follows a change of active: when every slot has enough copies again, and whether the lost member came back.

The leader watches this for :data:`RE_PROTECT_BOUND_NS` at most and records it in the trace of the change:
``re_protect`` and, of a takeover, ``returned``. A takeover is watched from its end, since its slots lack a copy from
the last sign of life. Planned moves are watched from their table, since they may leave slots with too few copies at any
time. The decision is pure and errs on the safe side: a member counts as a copy only while it reports that it holds
*all* slots that the table gives it, as of that table.
"""

import asyncio
from collections.abc import Callable, Mapping

from understudy.statesync.pool.records import MemberState
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.setup import Attributes, Telemetry
from understudy.xds.membership.claim_reports import ClaimReports
from understudy.xds.membership.cluster_state import ClusterState
from understudy.xds.membership.member_health import SECOND, MemberBoot, MemberHealth
from understudy.xds.tracing.failover_timing import OwnershipChange

RE_PROTECT_BOUND_NS = 300 * 10**9
"""A pool that lacks copies for longer has missed every reasonable objective."""
RETURN_BOUND_NS = 30 * 10**9
"""How long to wait for beats of the member that was taken for dead."""
POLL_INTERVAL = 0.2


def protected(cluster: ClusterState, health: Mapping[MemberBoot, MemberHealth], table_revision: int) -> bool:
    """Whether every slot has two living members in its order that hold all they should, as of the table in force.

    ``table_revision`` is the etcd revision of that table.
    """
    if cluster.table is None:
        return False
    complete = {name for name in cluster.members if _is_complete(cluster, health, name, table_revision)}
    return all(sum(member in complete for member in order) >= 2 for order in set(cluster.table.orders))


def returned(cluster: ClusterState, change: OwnershipChange) -> bool:
    """Whether the very process whose slots were taken over beats again."""
    return any((change.subject, boot) in cluster.beating for boot in set(change.moving.values()))


def could_not_serve(reports: ClaimReports, who: MemberBoot, start: int, end: int) -> str:
    """Why a process that lives could not serve between these times (ns), as text; '' if it could, as far as is known.

    A slow process could serve. It needs more CPU, and a takeover from it was wrong.
    """
    standstill = reports.standstill(who, start, end)
    return f"it stood still for {standstill / SECOND:.1f} s" if standstill else ""


async def watch(
    change: OwnershipChange,
    telemetry: Telemetry,
    current: Callable[[], ClusterState | None],
    health: Callable[[], Mapping[MemberBoot, MemberHealth]],
    table_revision: Callable[[], int],
    reports: ClaimReports,
) -> None:
    """Record what follows ``change``; returns when both questions are answered or time is up."""
    trace = telemetry.failover(change.traceparent)
    protection_known, return_known = False, change.kind == names.KIND_HANDOVER
    while not (protection_known and return_known):
        await asyncio.sleep(POLL_INTERVAL)
        cluster, now = current(), telemetry.now_ns()
        if cluster is None:
            continue
        if not protection_known:
            safe, late = protected(cluster, health(), table_revision()), now >= change.written + RE_PROTECT_BOUND_NS
            if safe or late:
                protection_known = True
                mark = {} if safe else {names.UNMEASURED: True}
                trace.phase(names.RE_PROTECT, change.began, now, {**change.attributes(), **mark})
        if not return_known:
            alive, late = returned(cluster, change), now >= change.written + RETURN_BOUND_NS
            if alive or late:
                return_known = True
                attributes = {**change.attributes(), **_return_attributes(change, reports, alive=alive)}
                trace.phase(names.RETURNED, change.found, now, attributes)


def _return_attributes(change: OwnershipChange, reports: ClaimReports, *, alive: bool) -> Attributes:
    """Whether the member that was taken for dead lives, and why it could not serve then."""
    if not alive:
        return {names.RETURNED_ALIVE: False}
    boots = set(change.moving.values())
    whys = (could_not_serve(reports, (change.subject, boot), change.last_beat, change.found) for boot in boots)
    return returned_alive(next(filter(None, whys), ""))


def returned_alive(why: str) -> Attributes:
    """The attributes of ``returned`` for a process that lives; ``why`` it could not serve, '' if it could."""
    return {names.RETURNED_ALIVE: True, **({names.COULD_NOT_SERVE: why} if why else {})}


def _is_complete(
    cluster: ClusterState, health: Mapping[MemberBoot, MemberHealth], name: str, table_revision: int
) -> bool:
    """Whether a member lives and holds all sessions that it should, as of the table at this revision."""
    if cluster.state(name) not in (MemberState.UP, MemberState.READY, MemberState.DRAINING, MemberState.ATTENTION):
        return False
    found = health.get((name, cluster.members[name].boot))
    return found is not None and bool(found.streams) and not found.lacking and found.applied >= table_revision
