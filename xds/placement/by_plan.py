"""How the solver follows an approved plan (:mod:`understudy.statesync.pool.rebalance`) instead of numbers of slots."""

from collections import Counter
from collections.abc import Mapping, Sequence

from understudy.statesync.pool.rebalance import Approved
from understudy.xds.placement.quotas import Quota, quota


class ByPlan:
    """The plan in force, with members as numbers.

    Each member that it names keeps the slots that it gives it, and those that it took over. So the weight of such a
    member is the number of its slots, and it has no quota. A member that the plan does not know gets its even share.
    """

    def __init__(self, approved: Approved, number: Mapping[str, int], weights: Sequence[int]) -> None:
        self._wanted = [number.get(member, -1) for member in approved.actives]
        self._known = frozenset(number[member] for member in approved.members if member in number)
        wanted = Counter(self._wanted)
        counts = [wanted[member] for member in range(len(weights))]
        all_counts, all_weights = sum(counts), sum(weights[member] for member in self._known)
        self.weights = [
            counts[member] * all_weights if member in self._known else weight * (all_counts or 1)
            for member, weight in enumerate(weights)
        ]
        if not any(self.weights):
            self.weights = list(weights)

    def actives(self, present: Sequence[int]) -> list[int]:
        """The active that each slot should keep; a member that the plan does not know keeps what it has."""
        return [
            wanted if wanted >= 0 and (member < 0 or member in self._known) else member
            for wanted, member in zip(self._wanted, present, strict=True)
        ]

    def quotas(self, slots: int) -> list[Quota]:
        """The fewest and the most slots of each member."""
        total = sum(self.weights)
        return [
            Quota(0, slots) if member in self._known else quota(slots, weight, total)
            for member, weight in enumerate(self.weights)
        ]
