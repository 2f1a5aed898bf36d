"""What a pool does because of the other pools of its group: they go to another site together (``group``). Pure.

Every pool tells the others from which sites it keeps its slots away, for reasons of its own
(:class:`~understudy.statesync.pool.site_records.PoolInGroup`). A pool keeps its slots away from all of these sites. So
the pools go back only when the last of them may. A pool that would be left without a site does not follow.

The first pool by name, of those with the same slots and weights of sites, also says on which site each slot is. The
others follow it. So a session key has its session in all of these pools on one site.
"""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from understudy.statesync.pool.site_records import OFFLINE, RESTS, PoolInGroup
from understudy.statesync.pool.spec import PoolSpec


class AwayByGroup(msgspec.Struct, frozen=True):
    """The sites that get no slots because of another pool, with the name of that pool.

    ``offline``: an operator has taken the site out of service there. ``resting``: it rests there.
    """

    offline: Mapping[str, str] = {}
    resting: Mapping[str, str] = {}

    @property
    def sites(self) -> dict[str, str]:
        """All of them."""
        return {**self.resting, **self.offline}


def away_by_group(others: Mapping[str, PoolInGroup], able: Collection[str]) -> AwayByGroup:
    """The sites that a pool leaves with its group.

    Args:
        others: what the other pools of the group say, by their names.
        able: the sites with members that can serve, and that this pool does not keep away from for its own reasons.
    """
    offline, resting = _away(others, OFFLINE), _away(others, RESTS)
    if set(able) <= offline.keys():
        return AwayByGroup()
    if set(able) <= offline.keys() | resting.keys():
        return AwayByGroup(offline)
    return AwayByGroup(offline, resting)


def _away(others: Mapping[str, PoolInGroup], why: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pool, said in sorted(others.items()):
        for site, reason in said.away.items():
            if reason == why:
                found.setdefault(site, pool)
    return found


def sites_to_follow(spec: PoolSpec, others: Mapping[str, PoolInGroup], serving: Collection[str]) -> tuple[str, ...]:
    """The site on which each slot's active is to be; empty if this pool follows no other one.

    Args:
        spec: the pool.
        others: what the other pools of the group say, by their names.
        serving: the sites on which this pool can serve now.
    """
    like = [
        name
        for name, said in sorted(others.items())
        if len(said.actives) == spec.slots and said.weights == weights_in(spec)
    ]
    if not like or spec.pool < like[0]:
        return ()
    wanted = others[like[0]].actives
    return wanted if set(wanted) <= set(serving) else ()


def told(spec: PoolSpec, away: Mapping[str, str]) -> str:
    """Why slots move with the group, for people; ``away`` is :attr:`AwayByGroup.sites`."""
    if not away:
        return f"the other pools of group {spec.group} have slots there again"
    pools = ", ".join(f"pool {pool} keeps away from {site}" for site, pool in sorted(away.items()))
    return f"in group {spec.group}, {pools}"


def weights_in(spec: PoolSpec) -> dict[str, int]:
    """The weight of each site that the spec names."""
    return {site: one.weight for site, one in spec.sites.items()}


def own_reasons(offline: Collection[str], resting: Collection[str]) -> dict[str, str]:
    """What a pool tells its group: the sites that it keeps away from for its own reasons."""
    return {**dict.fromkeys(sorted(resting), RESTS), **dict.fromkeys(sorted(offline), OFFLINE)}


def told_to_group(
    spec: PoolSpec, away: Mapping[str, str], orders: Sequence[Sequence[str]], sites: Mapping[str, str]
) -> PoolInGroup:
    """The pool's record for its group, by its slot table; ``sites`` is the site of each member."""
    actives = tuple(sites.get(order[0], "") if order else "" for order in orders)
    return PoolInGroup(dict(away), weights_in(spec), actives)
