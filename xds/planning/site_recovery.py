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

A site that is lost again within the freeze after its return rests until that freeze ends (``site_switch.freeze``). The
freeze begins with the table that ends a rest, so returns of a site are at least a freeze apart. An operator may end
such a rest at once, whatever ``recovery`` is. A site whose members are all starting again while they are gone has not
rested; but its return begins a freeze too, and within it such a site counts as lost.
"""

from collections.abc import Collection, Mapping

from understudy.statesync.pool.records import RESTARTING, MemberState, Table
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
    lately_back: Collection[str],
    ended: Collection[str],
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
        lately_back: the sites that returned within the freeze.
        ended: the sites whose rest an operator has ended.
    """
    able = {candidate.site for candidate in field if candidate.state.may_hold_slots} - set(offline)
    starting = {candidate.site for candidate in field if candidate.state is MemberState.INIT} - set(lately_back)
    weights = {site: one.weight for site, one in spec.sites.items() if one.weight}
    gone = {candidate.site for candidate in field}.union(lately_back) - able - starting - set(offline)
    resting = {} if first else {site: weights[site] for site in sorted(gone & weights.keys())}
    resting |= {site: weight for site, weight in before.items() if weights.get(site) == weight}
    returning = resting.keys() & able
    serving = able - resting.keys()
    if not serving:
        return {site: weight for site, weight in resting.items() if site not in able}
    for site in returning:
        kept = site in lately_back or (site == spec.main_site and (frozen or not no_worse(spec, able, grade)))
        if site in ended or (not kept and _ended(spec, site, field, serving, settled)):
            del resting[site]
    return resting


def site_returns(
    spec: PoolSpec,
    previous: Table,
    resting: Collection[str],
    *,
    able: Collection[str],
    offline: Collection[str],
    served: Collection[str],
    at: float,
) -> dict[str, float]:
    """When each site last got slots again after it was lost, for the next table (:attr:`Table.returned`).

    A site that serves again because no other one can has not returned: nothing is handed over to it.

    Args:
        spec: the pool.
        previous: the table in force.
        resting: the sites that rest by the next table.
        able: the sites with members that can serve.
        offline: the sites that an operator wants out of service.
        served: the sites of the actives in the table in force.
        at: wall time in seconds.
    """
    weighted = [site for site, one in spec.sites.items() if one.weight]
    known = {site: when for site, when in previous.returned.items() if site in weighted}
    for site in weighted:
        if site in resting or site in offline:
            continue
        if site not in able:
            if able and site in served:
                known[site] = RESTARTING
        elif site in previous.resting or known.get(site) == RESTARTING:
            if set(able) - previous.resting.keys() - {site}:
                known[site] = at
            elif known.get(site) == RESTARTING:
                del known[site]
    return known


def _ended(
    spec: PoolSpec, site: str, field: Collection[Candidate], serving: Collection[str], settled: Collection[str]
) -> bool:
    """Whether a site whose members are back may have its slots, by the pool's ``recovery``."""
    if spec.recovery != "prefer_site":
        return any(site in spec.sites and spec.sites[site].weight for site in serving)
    members = [candidate for candidate in field if candidate.site == site]
    waiting = [one for one in members if one.state.may_hold_slots and one.member not in settled]
    return not waiting
