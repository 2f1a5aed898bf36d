"""The moves that bring every member's load within a bound of its share: few, and to members that have the sessions.

A member's share is the whole load times its weight. Its bound is ``1 + over`` times that. To find the fewest moves is a
packing problem, so this is a greedy choice and not always the fewest: a member above its bound first looks for one slot
whose move is enough, else it gives the largest that fits elsewhere. Targets are the slot's standby, then its other
copies, then the member with the least load. A move that turned out to be needless is taken back.
:attr:`Rebalance.least` is a number of moves that no plan can go below.

A slot whose load alone is above every bound is *hot*: no move helps. Its member gives its other slots away until they
are at most ``over`` of its share. Members are numbers here. Equal input gives equal plans.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from itertools import islice

import msgspec

_EPSILON = 1e-9
_ALIKE = 0.9
"""Slots of at least this part of the largest load that fits count as equally large: then the cheapest is moved."""


class Step(msgspec.Struct, frozen=True):
    """A slot gets another active; ``copy``: it is its standby (1) or a backup (2 and more) now; 0: it has no copy."""

    slot: int
    source: int
    target: int
    copy: int


class Rebalance(msgspec.Struct, frozen=True):
    """The moves, the load of each member before and after them, their shares and bounds, and what is left.

    ``hot`` are slots that are above every bound, ``above`` the members that stay above theirs, ``least`` a number of
    moves that no plan can go below.
    """

    steps: tuple[Step, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    shares: tuple[float, ...]
    hot: tuple[int, ...]
    above: tuple[int, ...]
    least: int


def rebalance(
    loads: Sequence[float], orders: Sequence[Sequence[int]], weights: Sequence[int], over: float
) -> Rebalance:
    """The plan.

    Args:
        loads: per slot, never negative.
        orders: per slot its members, the active first; none is empty.
        weights: per member, those that may be active; 0 for others.
        over: how far a member may be above its share, 0.2 for 20 %.
    """
    return _Plan(loads, orders, weights, over).made()


class _Plan:
    """A plan under way: where each slot is, and the load of each member."""

    def __init__(
        self, loads: Sequence[float], orders: Sequence[Sequence[int]], weights: Sequence[int], over: float
    ) -> None:
        self.loads, self.orders, self.weights = loads, orders, weights
        total, heavy = sum(loads), sum(weights)
        self.shares = [total * weight / heavy for weight in weights]
        self.bounds = [share * (1 + over) for share in self.shares]
        highest = max(self.bounds) + _EPSILON
        self.hot = {slot: load for slot, load in enumerate(loads) if load > highest}
        self.uneven = len(set(weights)) > 1
        self.at = [order[0] for order in orders]
        self.held: list[set[int]] = [set() for _ in weights]
        for slot, member in enumerate(self.at):
            self.held[member].add(slot)
        self.load = [sum(loads[slot] for slot in sorted(held)) for held in self.held]
        hot_at: dict[int, float] = {}
        for slot, load in self.hot.items():
            hot_at[self.at[slot]] = hot_at.get(self.at[slot], 0.0) + load
        for member, load in hot_at.items():
            self.bounds[member] = load + self.shares[member] * over
        self.steps: dict[int, Step] = {}
        self._above = {member for member in range(len(weights)) if self._is_above(member)}
        self._ranked = sorted((self._relative(member), member) for member, weight in enumerate(weights) if weight)
        self._unmoved_at: dict[int, list[int]] = {}

    def made(self) -> Rebalance:
        """Choose the moves."""
        before, least, stuck = tuple(self.load), self._least(), set[int]()
        while above := self._above - stuck:
            member = max(above, key=lambda m: (self._relative(m), -m))
            step = self._step_from(member)
            if step is not None:
                self._take(step)
            elif not self._exchange(member):
                stuck.add(member)
        self._drop_needless()
        return Rebalance(
            steps=tuple(self.steps.values()),
            before=before,
            after=tuple(self.load),
            shares=tuple(self.shares),
            hot=tuple(self.hot),
            above=tuple(sorted(self._above)),
            least=least,
        )

    def _is_above(self, member: int) -> bool:
        return self.load[member] > self.bounds[member] + _EPSILON

    def _relative(self, member: int) -> float:
        """The load for the member's weight; a member without weight has too much of any load."""
        return self.load[member] / self.weights[member] if self.weights[member] else float("inf")

    def _least(self) -> int:
        """A number of moves that no plan can go below: each member above its bound gives its largest slots."""
        moves = 0
        for member in sorted(self._above):
            excess = self.load[member] - self.bounds[member]
            for load in sorted((self.loads[slot] for slot in self._movable(member)), reverse=True):
                if excess <= _EPSILON:
                    break
                moves, excess = moves + 1, excess - load
        return moves

    def _movable(self, member: int) -> list[int]:
        """The slots that a member may give away, in their order: those with load that are not hot."""
        return [slot for slot in sorted(self.held[member]) if self.loads[slot] > _EPSILON and slot not in self.hot]

    def _step_from(self, member: int) -> Step | None:
        """The best move away from a member; None if no slot of it fits anywhere."""
        excess = self.load[member] - self.bounds[member]
        steps = [step for slot in self._movable(member) if (step := self._fitting(slot, member))]
        enough = [step for step in steps if self.loads[step.slot] >= excess - _EPSILON]
        if enough:
            return min(enough, key=lambda step: (_far(step), self.loads[step.slot], step.slot))
        most = max((self.loads[step.slot] for step in steps), default=0.0)
        large = [step for step in steps if self.loads[step.slot] >= _ALIKE * most]
        return min(large, key=lambda step: (_far(step), -self.loads[step.slot], step.slot), default=None)

    def _idlest(self, member: int) -> Iterator[int]:
        """The other members that may be active, those with the least load first."""
        return (other for _, other in self._ranked if other != member)

    def _fitting(self, slot: int, member: int) -> Step | None:
        """A move of a slot to its best target within bounds."""
        copies = self.orders[slot]
        for place in range(1, len(copies)):
            if copies[place] != member and self.weights[copies[place]] and self._fits(slot, copies[place]):
                return Step(slot, member, copies[place], place)
        # With equal weights no member has more room than the idlest.
        others = self._idlest(member) if self.uneven else islice(self._idlest(member), 1)
        found = next((other for other in others if self._fits(slot, other)), None)
        return None if found is None else Step(slot, member, found, 0)

    def _fits(self, slot: int, member: int) -> bool:
        return self.load[member] + self.loads[slot] <= self.bounds[member] + _EPSILON

    def _exchange(self, member: int) -> bool:
        """Give a slot for a smaller one, where none fits elsewhere without that; whether there was such a pair."""
        largest_first = sorted(self._unmoved(member), key=lambda slot: (-self.loads[slot], slot))
        for other in self._idlest(member):
            smaller = self._unmoved(other)
            room = self.bounds[other] - self.load[other]
            for slot in largest_first if smaller else ():
                load = self.loads[slot]
                smallest = next((one for one in smaller if load - self.loads[one] <= room + _EPSILON), None)
                if smallest is not None and self.loads[smallest] < load * _ALIKE:
                    self._take(Step(slot, member, other, self._copy(slot, other)))
                    self._take(Step(smallest, other, member, self._copy(smallest, member)))
                    return True
        return False

    def _unmoved(self, member: int) -> list[int]:
        """The slots that a member may give away and that have not moved yet, those with the least load first."""
        if member not in self._unmoved_at:
            slots = [slot for slot in self._movable(member) if slot not in self.steps]
            self._unmoved_at[member] = sorted(slots, key=self.loads.__getitem__)
        return self._unmoved_at[member]

    def _copy(self, slot: int, member: int) -> int:
        order = list(self.orders[slot])
        return order.index(member) if member in order[1:] else 0

    def _take(self, step: Step) -> None:
        """Note a move; a slot that is moved twice is moved once, to where it goes last."""
        first = self.steps.pop(step.slot, None)
        source = first.source if first else step.source
        if source != step.target:
            self.steps[step.slot] = Step(step.slot, source, step.target, self._copy(step.slot, step.target))
        self._put(step.slot, step.target)

    def _put(self, slot: int, member: int) -> None:
        now = self.at[slot]
        self.held[now].discard(slot)
        self._add_load(now, -self.loads[slot])
        self.held[member].add(slot)
        self._add_load(member, self.loads[slot])
        self.at[slot] = member

    def _add_load(self, member: int, load: float) -> None:
        """Change a member's load, its place among the idlest, and whether it is above its bound."""
        if self.weights[member]:
            del self._ranked[bisect_left(self._ranked, (self._relative(member), member))]
        self.load[member] += load
        if self.weights[member]:
            insort(self._ranked, (self._relative(member), member))
        self._above.discard(member)
        if self._is_above(member):
            self._above.add(member)
        self._unmoved_at.pop(member, None)

    def _drop_needless(self) -> None:
        """Take moves back that the bounds do not need, the most expensive first."""
        for step in sorted(self.steps.values(), key=lambda one: (-_far(one), self.loads[one.slot], one.slot)):
            if self._fits(step.slot, step.source):
                self._put(step.slot, step.source)
                del self.steps[step.slot]


def _far(step: Step) -> int:
    """How much must be copied before the move: nothing to the standby or another copy, all to others."""
    return step.copy or 1_000
