"""Who may have slots again (``recovery: prefer_priority`` or ``prefer_site``), and since when it was stable. Pure.

A member of a better priority than the active's pre-empts by handover when it was fit without interruption for
``stable_for``, its beats arrive here, and it holds all copies that the table assigns to it. A site that is back gets
its slots when this is so of all its members and nothing that it needs was down meanwhile
(:mod:`understudy.xds.planning.site_recovery`). What one process has reached it keeps until it is unfit: a table that
moves slots to it is not undone because new copies are on their way. A new leader knows nothing of what was before, so
it begins the wait anew.

Times are ns of one monotonic clock and come in as arguments.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from understudy.xds.membership.cluster_state import ClusterState, candidates
from understudy.xds.membership.member_health import SECOND, MemberBoot
from understudy.xds.placement.solver import priority_of

SYNC_POLL_SECONDS = 0.5
"""How often the leader looks whether a member that was stable for long enough has its copies."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What the leader remembers of each process.

    Attributes:
        since: since when it is fit, without interruption.
        settled: those that were fit for long enough and had all their copies.
    """

    since: Mapping[MemberBoot, int] = field(default_factory=dict)
    settled: frozenset[MemberBoot] = frozenset()

    def observe(self, cluster: ClusterState, complete: Collection[MemberBoot], now: int) -> "Recovery":
        """Take in the pool as it is at ``now``; ``complete`` are those whose beats arrive and that lack no copy."""
        fit = [
            (name, member.boot)
            for name, member in cluster.members.items()
            if cluster.state(name).may_hold_slots and not cluster.lacks_needs(name)
        ]
        since = {who: self.since.get(who, now) for who in fit}
        wait = round(cluster.spec.stable_for * SECOND)
        settled = {who for who, at in since.items() if who in self.settled or (now - at >= wait and who in complete)}
        return Recovery(since, frozenset(settled))

    def members(self) -> frozenset[str]:
        """The names of those that may pre-empt."""
        return frozenset(name for name, _ in self.settled)

    def waiting(self, cluster: ClusterState) -> dict[str, int]:
        """The members that may pre-empt later, by when they have been stable for long enough (ns); else empty.

        Those are the fit members of a better priority than the active's in a pool that prefers priority, and those of
        resting sites in a pool that prefers sites.
        """
        if cluster.spec.recovery == "prefer_site":
            resting = cluster.table.resting if cluster.table else {}
            return self._not_settled(cluster, {name for name in cluster.members if cluster.site(name) in resting})
        if cluster.spec.recovery != "prefer_priority":
            return {}
        active = {owner for slot in cluster.owners if (owner := cluster.serving_owner(slot)) is not None}
        if not active:
            return {}
        priorities = {one.member: priority_of(cluster.spec, one) for one in candidates(cluster)}
        best = min(priorities[name] for name in active)
        return self._not_settled(cluster, {name for name, priority in priorities.items() if priority < best})

    def _not_settled(self, cluster: ClusterState, names: Collection[str]) -> dict[str, int]:
        """Those of ``names`` that are fit and not settled, by when they have been stable for long enough (ns)."""
        wait = round(cluster.spec.stable_for * SECOND)
        return {
            name: at + wait
            for (name, boot), at in self.since.items()
            if name in names and (name, boot) not in self.settled
        }

    def seconds_until_due(self, cluster: ClusterState, now: int) -> float | None:
        """Seconds until the next look at a member that waits; None if none does."""
        due = [(at - now) / SECOND if at > now else SYNC_POLL_SECONDS for at in self.waiting(cluster).values()]
        return min(due, default=None)
