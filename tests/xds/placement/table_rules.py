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
    members = serving(candidates)
    for order in orders:
        assert len(order) == len(set(order)) == min(spec.copies, len(members)), order
        assert set(order) <= set(members), order
        away = {name for name, member in members.items() if member.site != members[order[0]].site}
        if len(order) > 2 and away:
            assert order[-1] in away or away <= set(order), order


def assert_actives_balanced(spec, candidates, orders):
    weights = weights_of(spec, candidates)
    total = sum(weights.values())
    counts = Counter(order[0] for order in orders)
    for member, weight in weights.items():
        assert abs(counts[member] - even_share(spec.slots, weight, total)) <= 1, (member, counts)


def assert_standbys_balanced(spec, candidates, orders):
    """Each member is standby for its part of all others' slots; with equal weights that is a share of the pool."""
    weights = weights_of(spec, candidates)
    total = sum(weights.values())
    if len(weights) < 2:
        return
    actives = Counter(order[0] for order in orders)
    standbys = Counter(order[1] for order in orders)
    for member, weight in weights.items():
        others = Counter()
        for active, count in actives.items():
            if active != member:
                others[total - weights[active]] += count
        attainable = sum(even_share(count, weight, rest) for rest, count in others.items())
        assert abs(standbys[member] - attainable) <= 1, (member, standbys, attainable)
        if len(set(weights.values())) == 1:
            assert abs(standbys[member] - even_share(spec.slots, weight, total)) <= 1, (member, standbys)


def assert_even_shock(spec, candidates, orders):
    weights = weights_of(spec, candidates)
    total = sum(weights.values())
    if len(weights) < 2:
        return
    heirs = {member: Counter() for member in weights}
    for order in orders:
        heirs[order[0]][order[1]] += 1
    for victim, inherited in heirs.items():
        slots = inherited.total()
        for survivor in weights.keys() - {victim}:
            even = even_share(slots, weights[survivor], total - weights[victim])
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


def candidate(member, *, site="", weight=10, priority=1, state=MemberState.UP):
    return Candidate(member, site, weight, priority, state)
