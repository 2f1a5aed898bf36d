"""Spreads one role (standby, or one of the backups) evenly: controlled rounding of a matrix of shares.

A row is a group of slots (for standbys: the slots of one active), a column is a member. The even share of a cell is
seldom a whole number. Rounding keeps every cell at its share rounded down or up, every row at its size, and every
column within one of the sum of its shares. This is always possible, because flows with whole capacities are whole. Of
all such roundings the result is the one with the least ``strain``, then the most present holders, then the columns
closest to their sums. In tables of more than ``DENSE`` cells the flow gets only some cells of each row.

Members are numbers here, in the order of their names.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from math import ceil, floor

import msgspec

from understudy.xds.placement.mincostflow import MinCostFlow

DENSE = 1 << 14
_EPSILON = 1e-9  # shares have denominators below 10^8, so what is nearer to a whole number is whole
_GOLDEN = 0.6180339887498949


class EligibleMembers:
    """The members that may have a role in some slots, with their weights in that role."""

    def __init__(self, weights: dict[int, int]) -> None:
        self.weights = {member: weights[member] for member in sorted(weights) if weights[member]}
        self.total = sum(self.weights.values())
        self.members = list(self.weights)
        self._totals: dict[frozenset[int], int] = {}

    @cached_property
    def heaviest_first(self) -> list[int]:
        """Members by falling weight."""
        return sorted(self.members, key=lambda member: -self.weights[member])

    def total_without(self, excluded: frozenset[int]) -> int:
        """The weight of those that are not ``excluded``."""
        if not excluded:
            return self.total
        if excluded not in self._totals:
            self._totals[excluded] = self.total - sum(self.weights.get(member, 0) for member in excluded)
        return self._totals[excluded]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.weights.values()))

    def at(self, place: float) -> int:
        """The member at ``place``, in ``[0, 1)``, when members are laid out as long as their weights."""
        return self.members[min(bisect_right(self._ends, place * self.total), len(self.members) - 1)]


class Row(msgspec.Struct):
    """Slots that may be held by the same members: by ``eligible`` ones that are not ``excluded``.

    ``barred`` runs parallel to ``slots``: the members that already hold the slot in another role, and others that may
    not have it. ``present``: the member that should have the slot, or -1. :meth:`share` is a member's even share of the
    row.
    """

    eligible: EligibleMembers
    slots: list[int]
    barred: list[frozenset[int]]
    present: list[int]
    excluded: frozenset[int] = frozenset()
    rate: float = 0.0
    lost: dict[int, float] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        weights, total = self.eligible.weights, self.eligible.total_without(self.excluded)
        for barred, times in Counter(self.barred).items():
            inside = [member for member in barred if self.admits(member)]
            rate = times / (total - sum(weights[member] for member in inside))
            self.rate += rate
            for member in inside:
                self.lost[member] = self.lost.get(member, 0.0) + rate

    def admits(self, member: int) -> bool:
        """Whether ``member`` may have slots of the row, if it is not barred from them."""
        return member in self.eligible.weights and member not in self.excluded

    def share(self, member: int) -> float:
        """How many of the row's slots ``member`` would have if slots could be divided."""
        return self.eligible.weights[member] * (self.rate - self.lost.get(member, 0.0))


class ColumnBounds(msgspec.Struct, frozen=True):
    """The sums that a column may have; ``even`` is the sum of its shares."""

    even: float
    fewest: int
    most: int


def column_bounds(rows: Sequence[Row], members: int, limits: tuple[int, int]) -> list[ColumnBounds]:
    """The bounds of every column: within one of its even sum, and within ``limits`` where these allow it."""
    rates: dict[tuple[int, frozenset[int]], tuple[EligibleMembers, float]] = {}
    even = [0.0] * members
    for row in rows:
        eligible, rate = rates.get((id(row.eligible), row.excluded), (row.eligible, 0.0))
        rates[id(row.eligible), row.excluded] = (eligible, rate + row.rate)
        for member, lost in row.lost.items():
            even[member] -= lost * row.eligible.weights[member]
    for (_, excluded), (eligible, rate) in rates.items():
        for member, weight in eligible.weights.items():
            if member not in excluded:
                even[member] += weight * rate
    bounds = []
    low, high = limits
    for share in even:
        fewest = max(0, ceil(share - 1 - _EPSILON), low)
        most = min(floor(share + 1 + _EPSILON), high)
        bounds.append(ColumnBounds(share, fewest, most))
    return bounds


def spread(
    rows: Sequence[Row], bounds: Sequence[ColumnBounds], strain: Callable[[int, int, int], int] | None = None
) -> dict[int, int]:
    """The member that has the role, by slot.

    With its own result as the present holders it gives the same result again.

    Args:
        rows: the groups of slots.
        bounds: per member, from :func:`column_bounds`.
        strain: given row number, member and count, how far that cell would be from where it should be. A count that
            is one higher changes it by at most one.
    """
    while True:
        counts = _round(rows, bounds, strain)
        totals = Counter[int]()
        for row_counts in counts:
            totals.update(row_counts)
        holders: dict[int, int] = {}
        exact = True
        for row, row_counts in zip(rows, counts, strict=True):
            exact &= _hand_out(row, row_counts, holders, totals, bounds)
        if exact:
            return holders
        present = {slot: member for row in rows for slot, member in zip(row.slots, row.present, strict=True)}
        if -1 not in present.values() and _unevenness(present, bounds) <= _unevenness(holders, bounds):
            return present
        for row in rows:
            row.present = [holders[slot] for slot in row.slots]


def _unevenness(holders: dict[int, int], bounds: Sequence[ColumnBounds]) -> int:
    """How far the columns are from their even sums, in millionths of a slot."""
    totals = Counter(holders.values())
    return round(sum(abs(totals[member] - column.even) for member, column in enumerate(bounds)) * 1_000_000)


def _round(
    rows: Sequence[Row], bounds: Sequence[ColumnBounds], strain: Callable[[int, int, int], int] | None
) -> list[dict[int, int]]:
    """How many slots of each row each member has."""
    cells = sum(len(row.eligible.members) for row in rows)
    densities = [8, 32, 128] if cells > DENSE else []
    for density in densities:
        counts, proper = _round_at(rows, bounds, strain, density)
        if proper:
            return counts
    return _round_at(rows, bounds, strain, None)[0]


def _round_at(
    rows: Sequence[Row],
    bounds: Sequence[ColumnBounds],
    strain: Callable[[int, int, int], int] | None,
    density: int | None,
) -> tuple[list[dict[int, int]], bool]:
    """Round with about ``density`` times the cells per row that it needs; also returns whether all bounds are met."""
    members = len(bounds)
    kept, strained = 2, 8 * (members + 1)
    shift = strained * 8 * (members + 1)
    source, sink = len(rows) + members, len(rows) + members + 1
    flow = MinCostFlow(sink + 1)
    counts: list[dict[int, int]] = []
    base = [0] * members
    demand = 0
    extras: list[tuple[int, int, int]] = []
    for number, row in enumerate(rows):
        whole: dict[int, int] = {}
        present = Counter(row.present)
        cells = _cells(row, number, present, density)
        for member in cells:
            share = row.share(member)
            count = floor(share + _EPSILON)
            if count:
                whole[member] = count
                base[member] += count
            if share - count > _EPSILON:
                cost = 0 if present[member] > count else kept
                if strain:
                    cost += strained * (1 + strain(number, member, count + 1) - strain(number, member, count))
                extras.append((number, member, flow.add(number, len(rows) + member, 1, cost)))
        extra = len(row.slots) - sum(whole.values())
        flow.add(source, number, extra, 0)
        demand += extra
        counts.append(whole)
    needs = []
    for member, column in enumerate(bounds):
        node, have = len(rows) + member, base[member]
        middle = max(column.fewest, min(ceil(column.even - _EPSILON), column.most), have)
        need = max(0, column.fewest - have)
        needs.append((flow.add(node, sink, need, 0), need))
        flow.add(node, sink, middle - have - need, shift)
        flow.add(node, sink, max(0, column.most - middle), shift + 1)
    proper = flow.run(source, sink) == demand and all(flow.used(arc) == need for arc, need in needs)
    for number, member, arc in extras:
        if flow.used(arc):
            counts[number][member] = counts[number].get(member, 0) + 1
    return counts, proper


def _cells(row: Row, number: int, present: Counter[int], density: int | None) -> list[int]:
    """The columns to use in a row: all, or the whole shares, the present holders and an even sample."""
    eligible, size = row.eligible, len(row.slots)
    samples = density * size if density else 0
    if not samples or samples >= 2 * len(eligible.members):
        return [m for m in eligible.members if m not in row.excluded] if row.excluded else eligible.members
    cells = {member for member in present if member in eligible.weights}
    for member in eligible.heaviest_first:
        if eligible.weights[member] * row.rate < 1 - _EPSILON:
            break
        cells.add(member)
    start = number * _GOLDEN % 1
    cells.update(eligible.at((place + start) / samples) for place in range(samples))
    return sorted(cells - row.excluded)


def _hand_out(
    row: Row,
    counts: dict[int, int],
    holders: dict[int, int],
    totals: Counter[int],
    bounds: Sequence[ColumnBounds],
) -> bool:
    """Give each slot of a row one of the members counted for the row, present holders first; False if impossible."""
    left = dict(counts)
    open_slots = []
    for place, slot in enumerate(row.slots):
        member = row.present[place]
        if left.get(member, 0):
            holders[slot] = member
            left[member] -= 1
        else:
            open_slots.append(place)
    supply, exact = _interleaved(left), True
    for place in open_slots:
        holders[row.slots[place]] = supply.pop() if supply else -1
    for place in open_slots:
        slot = row.slots[place]
        if holders[slot] < 0 or holders[slot] in row.barred[place]:
            exact &= _exchange(row, place, holders, totals, bounds)
    return exact


def _interleaved(left: dict[int, int]) -> list[int]:
    """Each member as often as it is counted, in turns."""
    turns = []
    for turn in range(max(left.values(), default=0)):
        turns += [member for member in sorted(left, reverse=True) if left[member] > turn]
    return turns[::-1]


def _exchange(
    row: Row, place: int, holders: dict[int, int], totals: Counter[int], bounds: Sequence[ColumnBounds]
) -> bool:
    """Repair a slot whose new holder already has it in another role: exchange holders between slots of the row.

    With one barred member per slot (a standby, when the first backup is chosen) one swap is always enough: partners
    that cannot swap hold or bar the same member, and there are at most as many of them as the row has slots, this slot
    counted twice. With more roles there may be no way. Then the member furthest below its share is taken, the row is no
    longer rounded exactly, and the result is False.
    """
    slot, wrong = row.slots[place], holders[row.slots[place]]
    if wrong >= 0:
        chain = _chain(row, place, holders)
        if chain:
            passed = [holders[row.slots[link]] for link in chain]
            for link, member in zip(chain, (*passed[1:], wrong), strict=True):
                holders[row.slots[link]] = member
            return True
        totals[wrong] -= 1
    free = [m for m in row.eligible.members if m not in row.barred[place] and m not in row.excluded]
    holders[slot] = min(free, key=lambda member: (totals[member] - bounds[member].even, member))
    totals[holders[slot]] += 1
    return False


def _chain(row: Row, place: int, holders: dict[int, int]) -> list[int]:
    """The shortest chain of places from ``place`` on: each can take the holder of the next, the last the first's.

    Empty if there is none.
    """
    wrong = holders[row.slots[place]]
    reached_from = {place: place}
    queue = [place]
    for here in queue:
        if wrong not in row.barred[here]:
            chain = [here]
            while chain[-1] != place:
                chain.append(reached_from[chain[-1]])
            return chain[::-1]
        for other, slot in enumerate(row.slots):
            if other not in reached_from and holders[slot] >= 0 and holders[slot] not in row.barred[here]:
                reached_from[other] = here
                queue.append(other)
    return []
