"""When an active/standby pool goes from one site to another because of their grades. Pure.

Such a pool has one site with a weight above 0, the main site (``sites`` in the spec). The others stand by: they serve
while the main site is lost, is offline, or *rests* (:mod:`understudy.xds.planning.site_recovery`). It rests from the
table on that finds the grade of the sites that stand by better by ``gap``, and until its own is better by as much.
Several sites that stand by share the slots, so the lowest of their grades counts.

After a switch, whatever its cause, grades cause none for ``freeze``. The table names the last switch, so a new leader
knows it. A main site without a member that can serve is lost: neither gap nor freeze delay that switch.

The same freeze follows the return of each site that was lost, in every pool with ``sites``: a site that is lost again
within it gets no slots before its end (:mod:`understudy.xds.planning.site_recovery`).
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import msgspec

from understudy.statesync.pool.records import RESTARTING
from understudy.statesync.pool.site_grade import SiteMember, grades
from understudy.statesync.pool.site_records import SiteSwitch
from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.membership.cluster_state import ClusterState, candidates
from understudy.xds.membership.member_health import SECOND
from understudy.xds.planning.flap_damping import Hold


class Frozen(NamedTuple):
    """What began a freeze ``at`` some wall time (seconds), and its end ``until`` (ns of a monotonic clock)."""

    at: float
    until: int


class SiteFreeze(msgspec.Struct, frozen=True):
    """Until when grades cause no switch, and until when a site rests if it is lost.

    The wall clock never moves the end of a freeze away, so a wrong one makes no freeze longer than the spec says.
    """

    switch: Frozen | None = None
    returns: Mapping[str, Frozen] = {}

    def observe(self, cluster: ClusterState, at: float, now: int) -> "SiteFreeze":
        """The freezes after the last switch and the last returns in the table; ``at`` is wall time in seconds."""
        if cluster.table is None:
            return SiteFreeze()
        freeze = cluster.spec.site_switch.freeze

        def frozen(began: float, known: Frozen | None) -> Frozen:
            until = now + round(min(max(began + freeze - at, 0.0), freeze) * SECOND)
            return Frozen(began, min(known.until, until) if known is not None and known.at == began else until)

        switch = cluster.table.switch
        returned = {site: began for site, began in cluster.table.returned.items() if began != RESTARTING}
        return SiteFreeze(
            frozen(switch.at, self.switch) if switch is not None else None,
            {site: frozen(began, self.returns.get(site)) for site, began in returned.items()},
        )

    def holds(self, now: int) -> bool:
        """Whether grades may not cause a switch now. They may not before a table names which sites serve."""
        return self.switch is None or now < self.switch.until

    def lately_back(self, now: int) -> frozenset[str]:
        """The sites that rest if they are lost now, since they returned within the freeze."""
        return frozenset(site for site, one in self.returns.items() if now < one.until)

    def rests(self, cluster: ClusterState, now: int) -> list[Hold]:
        """The sites that rest because they were lost again, for people."""
        resting = cluster.table.resting if cluster.table else {}
        why = f"was lost again within {cluster.spec.site_switch.freeze:g} s after it had its slots back, and rests"
        return [Hold(f"site {s} {why}", self.returns[s].until) for s in sorted(self.lately_back(now)) if s in resting]

    def seconds_until_end(self, now: int) -> float | None:
        """Seconds until the first freeze ends; None if there is none."""
        ends = [one.until for one in (self.switch, *self.returns.values()) if one is not None and now < one.until]
        return (min(ends) - now) / SECOND if ends else None


def lately_back(cluster: ClusterState, at: float) -> frozenset[str]:
    """The sites that rest if they are lost now, by the wall clock alone; ``at`` is its time in seconds."""
    return SiteFreeze().observe(cluster, at, 0).lately_back(0)


def site_grades(cluster: ClusterState) -> dict[str, int]:
    """The grade of each site, as this server sees its members."""
    members = [SiteMember(one.member, one.site, one.weight, one.state.may_hold_slots) for one in candidates(cluster)]
    return {site: grade.value for site, grade in grades(cluster.spec, members, cluster.lacking).items()}


def with_grades(
    spec: PoolSpec, resting: Mapping[str, int], able: Collection[str], grade: Mapping[str, int]
) -> dict[str, int]:
    """The sites that rest after a look at the grades. The caller asks only while no freeze holds.

    Args:
        spec: the pool.
        resting: the sites that rest for other reasons, or rested before.
        able: the sites with members that can serve.
        grade: the grade of each site.
    """
    main, others = spec.main_site, [site for site in able if site != spec.main_site]
    if not main or main not in able or not others:
        return dict(resting)
    ahead = grade[main] - min(grade[site] for site in others)
    if main in resting and ahead >= spec.site_switch.gap:
        return {site: weight for site, weight in resting.items() if site != main}
    if main not in resting and -ahead >= spec.site_switch.gap:
        return {**resting, main: spec.sites[main].weight}
    return dict(resting)


def no_worse(spec: PoolSpec, able: Collection[str], grade: Mapping[str, int]) -> bool:
    """Whether the main site, which rests, may have its slots back by ``recovery: prefer_site``."""
    return all(grade[spec.main_site] >= grade[site] for site in able if site != spec.main_site)


def next_switch(
    spec: PoolSpec, before: SiteSwitch | None, able: Collection[str], resting: Collection[str], why: str, at: float
) -> SiteSwitch | None:
    """What the next table says of the last switch; None unless the pool is active/standby.

    Args:
        spec: the pool.
        before: what the table in force says.
        able: the sites with members that can serve.
        resting: the sites that rest by the next table.
        why: what the grades say, if they cause a switch with this table.
        at: wall time in seconds.
    """
    main = spec.main_site
    if not main or not able:
        return before if main else None
    serves = main in able and (main not in resting or len(able) == 1)
    to = (main,) if serves else tuple(sorted({*able} - {main}))
    if before is None or serves != (main in before.to):
        return SiteSwitch(to, at, why)
    return SiteSwitch(to, before.at, before.why)
