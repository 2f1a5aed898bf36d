"""The five properties of a slot table, checked from their definitions and not with the code that makes tables."""

from collections import Counter
from fractions import Fraction
from math import ceil, floor

from understudy.statesync.pool.records import MemberState
from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.placement.solver import Candidate

SERVING = (MemberState.READY, MemberState.UP)


def serving(candidates):
    return {candidate.member: candidate for candidate in candidates if candidate.state in SERVING}


def weights_of(spec: PoolSpec, candidates):
    weights = {}
    for member, candidate in serving(candidates).items():
        override = spec.members.get(member)
        weights[member] = override.weight if override and override.weight else candidate.weight
    return weights


def even_share(slots, weight, total):
    return Fraction(slots * weight, total)


def assert_apart(spec, candidates, orders):
    """Every copy is on a member that :func:`allowed` has, chosen in the order standby, last, between."""
    members = serving(candidates)
    weights = weights_of(spec, candidates)
    copies = min(spec.copies, len(members))
    for order in set(orders):
        assert len(order) == len(set(order)) == copies, order
        assert set(order) <= set(members), order
        chosen = [order[0]]
        for role in (1, *range(copies - 1, 1, -1)) if copies > 1 else ():
            assert order[role] in allowed(spec, members, weights, chosen, role, copies), (order, role)
            chosen.append(order[role])


def allowed(spec, members, weights, chosen, role, copies):
    """Who may have the next copy of a slot that ``chosen`` have, by the rule of docs/placement.md."""
    free = set(members) - set(chosen)
    active = members[chosen[0]]
    zones = {m.zone for m in members.values() if m.site == active.site and m.zone}
    last = role == copies - 1 and role > 1
    used, sites = {members[name].site for name in chosen}, {m.site for m in members.values()}
    if spec.replication.spread == "site" and min(copies, len(sites)) - len(used) >= copies - len(chosen):
        free = {name for name in free if members[name].site not in used}
    elif last:
        free = {name for name in free if members[name].site != active.site} or free
    elif role == 1 and spec.sites and copies > 2:
        free = {name for name in free if members[name].site == active.site} or free
    if spec.mode == "active_standby":
        wishes = [("zone", active, True), ("host", active, True)] if last else []
    elif role == 1:
        wishes = [("zone", active, copies == 2)] if len(zones) > 1 else []
        wishes += [("host", active, copies == 2)]
    else:
        wishes = [("zone", active, True), ("host", active, True)] if last else []
        wishes += [(level, members[name], False) for level in ("zone", "host") for name in chosen]
    for level, near, firm in wishes:
        inside = {name for name, m in members.items() if same(level, near, m)}
        left = free - inside
        if left and (firm or 2 * sum(weights[m] for m in left) >= sum(weights[m] for m in inside)):
            free = left
    return free


def same(level, one, other):
    """Whether two members are in one zone, or on one host; an unknown zone or host is not the same as any."""
    if level == "zone":
        return bool(one.zone) and (one.site, one.zone) == (other.site, other.zone)
    return bool(one.host) and (one.site, one.zone, one.host) == (other.site, other.zone, other.host)


def assert_actives_balanced(spec, candidates, orders):
    weights = weights_of(spec, candidates)
    total = sum(weights.values())
    counts = Counter(order[0] for order in orders)
    for member, weight in weights.items():
        assert abs(counts[member] - even_share(spec.slots, weight, total)) <= 1, (member, counts)


def standbys_allowed(spec, candidates):
    """For each member, who may be the standby of its slots, and whether everybody else may be."""
    members, weights = serving(candidates), weights_of(spec, candidates)
    copies = min(spec.copies, len(members))
    found = {name: allowed(spec, members, weights, [name], 1, copies) for name in members}
    return found, all(len(free) == len(members) - 1 for free in found.values())


def assert_standbys_balanced(spec, candidates, orders):
    """Each member is standby for its part of all slots that it may be standby for.

    With equal weights, and if everybody may be standby of everybody else, that is its share of the pool.
    """
    weights = weights_of(spec, candidates)
    total = sum(weights.values())
    if len(weights) < 2:
        return
    free, everybody = standbys_allowed(spec, candidates)
    actives = Counter(order[0] for order in orders)
    standbys = Counter(order[1] for order in orders)
    weight_of_free = {active: sum(weights[name] for name in free[active]) for active in actives}
    for member, weight in weights.items():
        others = Counter()
        for active, count in actives.items():
            if member in free[active]:
                others[weight_of_free[active]] += count
        attainable = sum(even_share(count, weight, rest) for rest, count in others.items())
        assert abs(standbys[member] - attainable) <= 1, (member, standbys, attainable)
        if len(set(weights.values())) == 1 and everybody:
            assert abs(standbys[member] - even_share(spec.slots, weight, total)) <= 1, (member, standbys)


def assert_even_shock(spec, candidates, orders):
    """A death falls evenly on all members that may be standby of the dead one's slots."""
    weights = weights_of(spec, candidates)
    if len(weights) < 2:
        return
    free, _ = standbys_allowed(spec, candidates)
    heirs = {member: Counter() for member in weights}
    for order in orders:
        heirs[order[0]][order[1]] += 1
    for victim, inherited in heirs.items():
        slots, total = inherited.total(), sum(weights[name] for name in free[victim])
        for survivor in weights.keys() - {victim}:
            even = even_share(slots, weights[survivor], total) if survivor in free[victim] else 0
            assert floor(even) <= inherited[survivor] <= ceil(even), (victim, survivor, inherited)


def fewest_changes(spec, candidates, present):
    """How few slots can change their active in any balanced table: the best of all possible counts, by trying them.

    ``present`` names the serving active of each slot, or None. A table with given counts keeps at most
    ``min(present count, count)`` slots of each member, and some table keeps just as many.
    """
    weights = weights_of(spec, candidates)
    kept = {0: 0}
    have = Counter(present)
    for member, weight in weights.items():
        even = even_share(spec.slots, weight, sum(weights.values()))
        better: dict[int, int] = {}
        for count in range(max(0, ceil(even - 1)), floor(even + 1) + 1):
            for used, keeps in kept.items():
                if used + count <= spec.slots:
                    total = keeps + min(have[member], count)
                    better[used + count] = max(better.get(used + count, 0), total)
        kept = better
    return spec.slots - kept[spec.slots]


def present_actives(candidates, previous, current, slots):
    members = serving(candidates)
    present = []
    for slot in range(slots):
        order = previous.orders[slot] if slot < len(previous.orders) else ()
        owner = current.get(slot)
        if owner not in members:
            owner = order[0] if order and order[0] in members else None
        present.append(owner)
    return present


def changes(present, orders):
    return sum(was != order[0] for was, order in zip(present, orders, strict=True))


def candidate(member, *, site="", weight=10, priority=1, state=MemberState.UP, zone="", host=""):
    return Candidate(member, site, weight, priority, state, zone, host)
