"""The moves that bring every member's load within a bound of its share: few, and to members that have the sessions.

A member's share is the whole load times its weight. Its bound is ``1 + over`` times that. To find the fewest moves is a
packing problem, so this is a greedy choice and not always the fewest: a member above its bound first looks for one slot
whose move is enough, else it gives the largest that fits elsewhere. Targets are the slot's standby, then its other
copies, then the member with the least load. A move that turned out to be needless is taken back.
:attr:`Rebalance.least` is a number of moves that no plan can go below.

A slot whose load alone is above every bound is *hot*: no move helps. Its member gives its other slots away until they
are at most ``over`` of its share. Members are numbers here. Equal input gives equal plans.
"""

from collections.abc import Sequence

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
        self.hot = [slot for slot, load in enumerate(loads) if load > max(self.bounds) + _EPSILON]
        self.at = [order[0] for order in orders]
        self.held: list[set[int]] = [set() for _ in weights]
        for slot, member in enumerate(self.at):
            self.held[member].add(slot)
        self.load = [sum(loads[slot] for slot in sorted(held)) for held in self.held]
        hot_at = [sum(loads[slot] for slot in self.hot if self.at[slot] == member) for member in range(len(weights))]
        for member, load in enumerate(hot_at):
            if load:
                self.bounds[member] = load + self.shares[member] * over
        self.steps: dict[int, Step] = {}

    def made(self) -> Rebalance:
        """Choose the moves."""
        before, least, stuck = tuple(self.load), self._least(), set[int]()
        while True:
            above = [member for member in self._above() if member not in stuck]
            if not above:
                break
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
            above=tuple(self._above()),
            least=least,
        )

    def _above(self) -> list[int]:
        return [member for member, load in enumerate(self.load) if load > self.bounds[member] + _EPSILON]

    def _relative(self, member: int) -> float:
        """The load for the member's weight; a member without weight has too much of any load."""
        return self.load[member] / self.weights[member] if self.weights[member] else float("inf")

    def _least(self) -> int:
        """A number of moves that no plan can go below: each member above its bound gives its largest slots."""
        moves = 0
        for member in self._above():
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
        idlest = self._idlest(member)
        steps = [step for slot in self._movable(member) if (step := self._fitting(slot, member, idlest))]
        enough = [step for step in steps if self.loads[step.slot] >= excess - _EPSILON]
        if enough:
            return min(enough, key=lambda step: (_far(step), self.loads[step.slot], step.slot))
        most = max((self.loads[step.slot] for step in steps), default=0.0)
        large = [step for step in steps if self.loads[step.slot] >= _ALIKE * most]
        return min(large, key=lambda step: (_far(step), -self.loads[step.slot], step.slot), default=None)

    def _idlest(self, member: int) -> list[int]:
        """The other members, those with the least load first."""
        others = [other for other, weight in enumerate(self.weights) if weight and other != member]
        return sorted(others, key=lambda other: (self._relative(other), other))

    def _fitting(self, slot: int, member: int, idlest: Sequence[int]) -> Step | None:
        """A move of a slot to its best target within bounds."""
        copies = self.orders[slot]
        for place in range(1, len(copies)):
            if copies[place] != member and self.weights[copies[place]] and self._fits(slot, copies[place]):
                return Step(slot, member, copies[place], place)
        if idlest and self._fits(slot, idlest[0]):
            return Step(slot, member, idlest[0], 0)
        found = next((other for other in idlest[1:] if self._fits(slot, other)), None) if self._uneven() else None
        return None if found is None else Step(slot, member, found, 0)

    def _uneven(self) -> bool:
        """Whether a member with more load may have more room than the idlest."""
        return len(set(self.weights)) > 1

    def _fits(self, slot: int, member: int) -> bool:
        return self.load[member] + self.loads[slot] <= self.bounds[member] + _EPSILON

    def _exchange(self, member: int) -> bool:
        """Give a slot for a smaller one, where none fits elsewhere without that; whether there was such a pair."""
        for other in self._idlest(member):
            room = self.bounds[other] - self.load[other]
            for slot in sorted(self._movable(member), key=lambda s: (-self.loads[s], s)):
                back = [
                    one
                    for one in self._movable(other)
                    if self.loads[slot] - self.loads[one] <= room + _EPSILON
                    and self.loads[one] < self.loads[slot] * _ALIKE
                    and one not in self.steps
                ]
                if back and slot not in self.steps:
                    smallest = min(back, key=lambda one: (self.loads[one], one))
                    self._take(Step(slot, member, other, self._copy(slot, other)))
                    self._take(Step(smallest, other, member, self._copy(smallest, member)))
                    return True
        return False

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
        self.load[now] -= self.loads[slot]
        self.held[member].add(slot)
        self.load[member] += self.loads[slot]
        self.at[slot] = member

    def _drop_needless(self) -> None:
        """Take moves back that the bounds do not need, the most expensive first."""
        for step in sorted(self.steps.values(), key=lambda one: (-_far(one), self.loads[one.slot], one.slot)):
            if self._fits(step.slot, step.source):
                self._put(step.slot, step.source)
                del self.steps[step.slot]


def _far(step: Step) -> int:
    """How much must be copied before the move: nothing to the standby or another copy, all to others."""
    return step.copy or 1_000
