"""How many slots each site, and each of its members, is to be active for (``sites`` in the spec). Pure.

A site's share of the slots is its weight, of the sum of all weights, whatever the number of its members. Within the
site its members share by their own weights. Both are within one slot of the share, and as near as possible to what
there is, so that the fewest slots move.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from heapq import heapify, heappop, heappush

from understudy.statesync.pool.separation import Place
from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.placement.quotas import Quota, choose_actives, quota


def site_weights(
    spec: PoolSpec, places: Sequence[Place], weights: Sequence[int], resting: Collection[str]
) -> dict[str, int]:
    """The weights of the sites that have members which may hold slots.

    A site that the spec does not name stands by, like one of weight 0. If only sites that stand by are left, they share
    the slots by the weights of their members. Resting sites get slots only if no other site is left.

    Args:
        spec: the pool.
        places: where each member runs that may hold slots.
        weights: the weight of each of them.
        resting: sites that are back but get no slot yet.
    """
    able: Counter[str] = Counter()
    for place, weight in zip(places, weights, strict=True):
        able[place.site] += weight
    field = [site for site in able if site not in resting] or list(able)
    wanted = {site: spec.sites[site].weight if site in spec.sites else 0 for site in field}
    chosen = wanted if any(wanted.values()) else {site: able[site] for site in field}
    return {site: chosen.get(site, 0) for site in sorted(able)}


def member_targets(
    slots: int,
    by_site: Mapping[str, int],
    sites: Sequence[str],
    weights: Sequence[int],
    present: Sequence[int],
) -> list[int]:
    """How many slots each member is to be active for.

    Args:
        slots: the pool's slots.
        by_site: the weight of each site.
        sites: each member's site.
        weights: each member's weight.
        present: the member that is active for each slot, -1 for none.
    """
    counts = Counter(present)
    inside = {site: [member for member, own in enumerate(sites) if own == site] for site in by_site}
    have = [sum(counts[member] for member in inside[site]) for site in by_site]
    found = [0] * len(sites)
    for site, share in zip(by_site, targets(slots, list(by_site.values()), have), strict=True):
        members = inside[site]
        own = targets(share, [weights[member] for member in members], [counts[member] for member in members])
        for member, count in zip(members, own, strict=True):
            found[member] = count
    return found


def actives_on(
    wanted: Sequence[str],
    sites: Sequence[str],
    weights: Sequence[int],
    present: Sequence[int],
    holders: Sequence[Sequence[int]],
    asked: Sequence[int],
) -> list[int]:
    """The active of each slot whose site is given. Within a site as always: the fewest moves, by members' weights.

    Args:
        wanted: the site of each slot; each has a member with a weight.
        sites: each member's site.
        weights: each member's weight.
        present: the member that is active for each slot, -1 for none.
        holders: the members that have each slot's sessions, best first.
        asked: the active of each slot by the table in force, -1 for none.
    """
    chosen = list(present)
    for site in sorted(set(wanted)):
        slots = [slot for slot, where in enumerate(wanted) if where == site]
        inside = frozenset(member for member, where in enumerate(sites) if where == site)
        current = [present[slot] if present[slot] in inside else -1 for slot in slots]
        counts = Counter(current)
        shares = targets(
            len(slots),
            [weight if member in inside else 0 for member, weight in enumerate(weights)],
            [counts[member] for member in range(len(weights))],
        )
        found = choose_actives(
            shares,
            current,
            [[one for one in holders[slot] if one in inside and one != present[slot]] for slot in slots],
            [asked[slot] in inside and asked[slot] != present[slot] for slot in slots],
            [Quota(share, share) for share in shares],
        )
        for slot, member in zip(slots, found, strict=True):
            chosen[slot] = member
    return chosen


def targets(slots: int, weights: Sequence[int], counts: Sequence[int]) -> list[int]:
    """Whole numbers with the sum ``slots``, each within one of its share by weight and as near as can be to ``counts``.

    Where one more or one less is needed, those that are furthest from their share give or take first.
    """
    total = sum(weights)
    limits = [quota(slots, weight, total) for weight in weights]
    found = [min(max(count, limit.fewest), limit.most) for count, limit in zip(counts, limits, strict=True)]

    missing = slots - sum(found)
    step = 1 if missing > 0 else -1

    def movable(place: int) -> bool:
        return found[place] < limits[place].most if step > 0 else found[place] > limits[place].fewest

    queue = [(step * (found[p] * total - slots * weights[p]), p) for p in range(len(found)) if movable(p)]
    heapify(queue)
    for _ in range(abs(missing)):
        distance, place = heappop(queue)
        found[place] += step
        if movable(place):
            heappush(queue, (distance + total, place))
    return found
