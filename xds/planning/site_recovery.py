"""Which sites get no slots although they are back: ``recovery`` in a pool with ``sites``. Pure.

A site *rests* from the table on that finds none of its members able to hold slots while other sites have some, unless
an operator took it out of service. The table names it with the weight that the spec gave it then, so a new leader knows
it too. When it ends depends on ``recovery``:

* ``keep_current``: at once if another site of the spec with a weight serves (active/active). If only sites that stand
  by serve (active/standby), they go on, until an operator changes the site's weight or takes them out of service.
* ``prefer_site``: when all its members were stable for ``stable_for`` and have all their copies. In an active/standby
  pool also only when its grade is no worse than that of the sites that serve, and not while a freeze holds.

In an active/standby pool grades also make a site rest, and end it (:mod:`understudy.xds.planning.site_switch`).

It ends at once when no other site is left, and when the spec gives the site another weight.
"""

from collections.abc import Collection, Mapping

from understudy.statesync.pool.records import MemberState
from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.placement.solver import Candidate
from understudy.xds.planning.site_switch import no_worse


def resting_sites(
    spec: PoolSpec,
    field: Collection[Candidate],
    before: Mapping[str, int],
    *,
    offline: Collection[str],
    settled: Collection[str],
    first: bool,
    grade: Mapping[str, int],
    frozen: bool,
) -> dict[str, int]:
    """The sites that rest, each with its weight in the spec when it began to.

    Args:
        spec: the pool.
        field: all known members.
        before: the sites that rest by the table in force.
        offline: the sites that an operator wants out of service, here or in another pool of the group.
        settled: the members that were stable for long enough and have all their copies.
        first: there is no table yet, so no site had a slot.
        grade: the grade of each site.
        frozen: grades may not cause a switch now.
    """
    able = {candidate.site for candidate in field if candidate.state.may_hold_slots} - set(offline)
    starting = {candidate.site for candidate in field if candidate.state is MemberState.INIT}
    weights = {site: one.weight for site, one in spec.sites.items() if one.weight}
    gone = {candidate.site for candidate in field} - able - starting - set(offline)
    resting = {} if first else {site: weights[site] for site in sorted(gone & weights.keys())}
    resting |= {site: weight for site, weight in before.items() if weights.get(site) == weight}
    returning = resting.keys() & able
    serving = able - resting.keys()
    if not serving:
        return {site: weight for site, weight in resting.items() if site not in able}
    for site in returning:
        kept = site == spec.main_site and (frozen or not no_worse(spec, able, grade))
        if not kept and _ended(spec, site, field, serving, settled):
            del resting[site]
    return resting


def _ended(
    spec: PoolSpec, site: str, field: Collection[Candidate], serving: Collection[str], settled: Collection[str]
) -> bool:
    """Whether a site whose members are back may have its slots, by the pool's ``recovery``."""
    if spec.recovery != "prefer_site":
        return any(site in spec.sites and spec.sites[site].weight for site in serving)
    members = [candidate for candidate in field if candidate.site == site]
    waiting = [one for one in members if one.state.may_hold_slots and one.member not in settled]
    return not waiting
