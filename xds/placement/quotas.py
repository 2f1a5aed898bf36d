"""Which member is active for which slot: weighted quotas, and the fewest changes that meet them.

Members are numbers here, in the order of their names. A member's share is ``slots * weight / sum of weights``. It may
be active for at most one slot more or less than that. :func:`choose_actives` makes the fewest changes that any table
within these quotas needs. Members that already hold a slot's sessions get it first.

The fewest changes are ``max(orphans + too many, too few)``: ``too many`` is the number of slots above the upper quotas,
``too few`` the number missing to the lower ones. Orphans and slots above a quota must change, and each missing slot is
a change of its own. This number can be reached, because the lower quotas add up to at most the number of slots and the
upper ones to at least that. Released slots first fill the lower quotas. The rest fits below the upper quotas. If there
are too few released slots, members above their lower quota have enough to give.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush

import msgspec

from understudy.xds.placement.mincostflow import MinCostFlow

_WISH = 8  # the value of a wish, in slots nearer to a member's share


class Quota(msgspec.Struct, frozen=True):
    """The fewest and the most slots that a member may be active for."""

    fewest: int
    most: int


def quota(slots: int, weight: int, total: int) -> Quota:
    """The whole numbers within one of ``slots * weight / total``; 0 for a weight of 0."""
    if weight == 0:
        return Quota(0, 0)
    return Quota(max(0, -(-slots * weight // total) - 1), slots * weight // total + 1)


class _Balance(msgspec.Struct):
    """How many slots each member has so far, and how many are still to be given."""

    slots: int
    weights: Sequence[int]
    quotas: Sequence[Quota]
    counts: list[int]
    pool: int
    missing: int

    def may_take(self, member: int) -> bool:
        """Whether ``member`` may get one slot of the pool so that enough are left for members below their quota."""
        count, limits = self.counts[member], self.quotas[member]
        return count < limits.fewest or (count < limits.most and self.pool > self.missing)

    def take(self, member: int) -> None:
        if self.counts[member] < self.quotas[member].fewest:
            self.missing -= 1
        self.counts[member] += 1
        self.pool -= 1

    def neediest_first(self) -> Iterator[int]:
        """Members by how far they are below their share, each counted again after it got a slot.

        While the pool is not empty, the first of them is below its share, so it stays within its quota. A member below
        its lower quota lacks more than one slot, so it comes before all others.
        """
        total = sum(self.weights)
        queue = [
            (self.counts[member] * total - self.slots * weight, member)
            for member, weight in enumerate(self.weights)
            if weight
        ]
        heapify(queue)
        while queue:
            _, member = heappop(queue)
            yield member
            heappush(queue, (self.counts[member] * total - self.slots * self.weights[member], member))


def choose_actives(
    weights: Sequence[int],
    current: list[int],
    wishes: Sequence[Sequence[int]],
    planned: Sequence[bool],
    quotas: Sequence[Quota] | None = None,
) -> list[int]:
    """The active member of each slot.

    Args:
        weights: per member; not all 0.
        current: per slot the present active, or -1 for an orphan.
        wishes: per slot the members that should get it rather than others if it changes, best first.
        planned: per slot whether it is already moving to its first wish.
        quotas: per member, other quotas than those of its weight.
    """
    slots, total = len(current), sum(weights)
    quotas = quotas or [quota(slots, weight, total) for weight in weights]
    counts = [0] * len(weights)
    for member in current:
        if member >= 0:
            counts[member] += 1
    releases = _releases(slots, weights, quotas, counts)
    balance = _Balance(
        slots=slots,
        weights=weights,
        quotas=quotas,
        counts=[count - release for count, release in zip(counts, releases, strict=True)],
        pool=slots - sum(counts) + sum(releases),
        missing=sum(max(0, limits.fewest - count) for limits, count in zip(quotas, counts, strict=True)),
    )
    chosen = list(current)
    for slot, member in _granted(current, wishes, planned, releases, balance).items():
        chosen[slot] = member
        balance.take(member)
        if current[slot] >= 0:
            releases[current[slot]] -= 1
    loose = _loose(chosen, current, wishes, releases)
    for slot, member in zip(loose, _taking(balance), strict=False):
        chosen[slot] = member
    return chosen


def _releases(slots: int, weights: Sequence[int], quotas: Sequence[Quota], counts: Sequence[int]) -> list[int]:
    """How many slots each member gives up: those above its quota, and as many more as other members lack."""
    total = sum(weights)
    releases = [max(0, count - limits.most) for count, limits in zip(counts, quotas, strict=True)]
    free = slots - sum(counts) + sum(releases)
    lacking = sum(max(0, limits.fewest - count) for count, limits in zip(counts, quotas, strict=True)) - free
    queue = [
        (slots * weights[member] - (count - releases[member]) * total, member)
        for member, count in enumerate(counts)
        if count - releases[member] > quotas[member].fewest
    ]
    heapify(queue)
    for _ in range(lacking):
        _, member = heappop(queue)
        releases[member] += 1
        left = counts[member] - releases[member]
        if left > quotas[member].fewest:
            heappush(queue, (slots * weights[member] - left * total, member))
    return releases


def _granted(
    current: list[int],
    wishes: Sequence[Sequence[int]],
    planned: Sequence[bool],
    releases: Sequence[int],
    balance: _Balance,
) -> dict[int, int]:
    """The slots that a member of their wishes gets, and which one: as many as the quotas permit.

    A move under way counts most, then first wishes, then others. It is a flow: from orphans and from members that
    release slots, through the slots or through the hub, to members with room, lower quotas first.
    """
    takers = [member for member in range(len(balance.counts)) if balance.may_take(member)]
    able = frozenset(takers)
    asking = [
        slot
        for slot, member in enumerate(current)
        if (member < 0 or releases[member]) and not able.isdisjoint(wishes[slot])
    ]
    if not asking:
        return {}
    givers = [member for member, release in enumerate(releases) if release]
    hub, source, sink = range(len(asking) + len(givers) + len(takers), len(asking) + len(givers) + len(takers) + 3)
    giver_node = {member: len(asking) + place for place, member in enumerate(givers)}
    taker_node = {member: len(asking) + len(givers) + place for place, member in enumerate(takers)}
    flow = MinCostFlow(sink + 1)
    for member in givers:
        flow.add(source, giver_node[member], releases[member], 0)
        flow.add(giver_node[member], hub, releases[member], 3 * _WISH)
    flow.add(source, hub, current.count(-1) - sum(current[slot] < 0 for slot in asking), 0)
    granted = []
    for node, slot in enumerate(asking):
        if current[slot] < 0:
            flow.add(source, node, 1, 0)
            flow.add(node, hub, 1, 3 * _WISH)
        else:
            flow.add(giver_node[current[slot]], node, 1, 0)
        for rank, member in enumerate(wishes[slot]):
            if member in able:
                cost = _WISH * (2 if rank else 1 - planned[slot])
                granted.append((slot, member, flow.add(node, taker_node[member], 1, cost)))
    beyond = 4 * _WISH * sink
    for member in takers:
        limits, count = balance.quotas[member], balance.counts[member]
        need = max(0, limits.fewest - count)
        middle = max(0, limits.most - 1 - count - need)
        flow.add(hub, taker_node[member], limits.most - count, 0)
        flow.add(taker_node[member], sink, need, 0)
        flow.add(taker_node[member], sink, middle, beyond)
        flow.add(taker_node[member], sink, limits.most - count - need - middle, beyond + 1)
    flow.run(source, sink)
    return {slot: member for slot, member, arc in granted if flow.used(arc)}


def _loose(
    chosen: Sequence[int], current: Sequence[int], wishes: Sequence[Sequence[int]], releases: list[int]
) -> list[int]:
    """The slots for members that have too few: all orphans left, and the slots that each member still releases.

    A member gives slots of each of its standbys in turn, so that the slots it keeps stay spread over them.
    """
    loose = [slot for slot, member in enumerate(chosen) if member < 0]
    own: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for slot, member in enumerate(current):
        if member >= 0 and releases[member] and chosen[slot] == member:
            own[member][wishes[slot][0] if wishes[slot] else -1].append(slot)
    for member, by_standby in own.items():
        for _ in range(releases[member]):
            largest = max(by_standby.values(), key=len)
            loose.append(largest.pop())
    return sorted(loose)


def _taking(balance: _Balance) -> Iterator[int]:
    for member in balance.neediest_first():
        balance.take(member)
        yield member
