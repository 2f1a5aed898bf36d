"""When an active/standby pool goes from one site to another because of their grades. Pure.

Such a pool has one site with a weight above 0, the main site (``sites`` in the spec). The others stand by: they serve
while the main site is lost, is offline, or *rests* (:mod:`understudy.xds.planning.site_recovery`). It rests from the
table on that finds the grade of the sites that stand by better by ``gap``, and until its own is better by as much.
Several sites that stand by share the slots, so the lowest of their grades counts.

After a switch, whatever its cause, grades cause none for ``freeze``. The table names the last switch, so a new leader
knows it. A main site without a member that can serve is lost: neither gap nor freeze delay that switch.
"""

from collections.abc import Collection, Mapping

import msgspec

from understudy.statesync.pool.site_grade import SiteMember, grades
from understudy.statesync.pool.site_records import SiteSwitch
from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.membership.cluster_state import ClusterState, candidates
from understudy.xds.membership.member_health import SECOND


class SiteFreeze(msgspec.Struct, frozen=True):
    """Until when grades cause no switch (ns of a monotonic clock).

    The wall clock never moves the end of a freeze away, so a wrong one makes no freeze longer than the spec says.
    """

    switch: SiteSwitch | None = None
    until: int = 0

    def observe(self, cluster: ClusterState, at: float, now: int) -> "SiteFreeze":
        """The freeze after the last switch in the table; ``at`` is wall time in seconds."""
        switch = cluster.table.switch if cluster.table else None
        if switch is None:
            return SiteFreeze()
        freeze = cluster.spec.site_switch.freeze
        until = now + round(min(max(switch.at + freeze - at, 0.0), freeze) * SECOND)
        known = self.switch is not None and self.switch.at == switch.at
        return SiteFreeze(switch, min(self.until, until) if known else until)

    def holds(self, now: int) -> bool:
        """Whether grades may not cause a switch now. They may not before a table names which sites serve."""
        return self.switch is None or now < self.until

    def seconds_until_end(self, now: int) -> float | None:
        """Seconds until grades may cause a switch; None if they may, or no table names a switch."""
        return (self.until - now) / SECOND if self.switch is not None and now < self.until else None


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
