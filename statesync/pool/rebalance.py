"""A rebalance in etcd: the plan that an operator or the leader approved, and how far it is carried out.

The plan never changes. The progress is small, since it is written again with every step. Together they say which member
should be active for which slot (:class:`Approved`). That stays so when the plan is done: it is what the slot table
follows in a pool that balances by load, instead of even numbers of slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from understudy.statesync.pool.records import Record
from understudy.statesync.pool.slots import MAX_SLOTS
from understudy.statesync.pool.spec import PoolSpec

RATE_MOST = 1000.0
"""The most moves a second that a plan may ask for."""


class PlanState(StrEnum):
    """How a plan stands."""

    RUNNING = "running"
    DONE = "done"
    ABORTED = "aborted"


class SlotMove(msgspec.Struct, frozen=True):
    """One slot gets another active."""

    slot: int
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class MovePlan(Record):
    """Which slots are to move, in which order.

    ``plan`` is its name. ``generation`` is that of the slot table for which it was made. ``members`` are those that it
    knows; ``before`` has the active of each slot when the plan was approved, as a position in ``members``. ``moves``:
    per move a slot and the position of the member that gets it. ``rate``: moves a second, at the most. ``by``: what it
    balances. ``who`` approved it, at ``at`` (wall time in seconds). ``automatic``: the leader did, by the spec.
    """

    plan: str
    generation: int
    members: tuple[str, ...]
    before: tuple[int, ...]
    moves: Sequence[tuple[int, int]] = ()
    rate: float = 1.0
    by: str = ""
    who: str = ""
    at: float = 0.0
    automatic: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "moves", _moves(self.moves))

    def fault(self) -> str:
        """See :meth:`Record.fault`."""
        known = range(len(self.members))
        if len(set(self.members)) < len(self.members) or len(self.before) > MAX_SLOTS:
            return f"members: each once; before: up to {MAX_SLOTS} slots"
        if not all(member in known for member in self.before):
            return "before: a position that is not in members"
        if not all(slot < len(self.before) and member in known for slot, member in self.moves):
            return "moves: a slot or a member that the plan does not know"
        if len({slot for slot, _ in self.moves}) < len(self.moves):
            return "moves: a slot stands there twice"
        return "" if 0 < self.rate <= RATE_MOST else f"rate: above 0, up to {RATE_MOST:g} moves a second"

    def steps(self) -> list[SlotMove]:
        """The moves with the names of their members."""
        return [SlotMove(slot, self.members[self.before[slot]], self.members[member]) for slot, member in self.moves]

    @classmethod
    def of_moves(
        cls, plan: str, generation: int, actives: Sequence[str], moves: Sequence[SlotMove], **rest: object
    ) -> "MovePlan":
        """A plan for slots whose actives are ``actives`` now. Raises ``ValueError`` on moves that make no plan."""
        names = sorted({*actives, *(move.target for move in moves)})
        place = {name: position for position, name in enumerate(names)}
        made = cls(
            plan,
            generation,
            tuple(names),
            tuple(place[name] for name in actives),
            [(move.slot, place[move.target]) for move in moves],
            **rest,  # type: ignore[arg-type]
        )
        if fault := made.fault():
            raise ValueError(fault)
        return made


def _moves(raw: object) -> tuple[tuple[int, int], ...]:
    if not isinstance(raw, list | tuple):
        raise TypeError("MovePlan: moves is a list")
    found = []
    for one in raw:
        if (
            not isinstance(one, list | tuple)
            or len(one) != 2
            or not all(type(part) is int and part >= 0 for part in one)
        ):
            raise TypeError("MovePlan: a move has a slot and the position of a member")
        found.append((one[0], one[1]))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class MoveProgress(Record):
    """How far a plan is carried out: so many of its moves are in the slot table.

    ``why`` says who ended it early. ``spent`` are the automatic moves of the last hour: when (wall time in seconds) and
    how many; every record takes them over.
    """

    plan: str
    state: str
    released: int = 0
    why: str = ""
    spent: Sequence[tuple[float, int]] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", PlanState(self.state))
        object.__setattr__(self, "spent", _spent(self.spent))

    @property
    def running(self) -> bool:
        """Whether moves are still to be made."""
        return self.state is PlanState.RUNNING

    def fault(self) -> str:
        """See :meth:`Record.fault`."""
        return "" if self.released >= 0 else "released: less than none"


def _spent(raw: object) -> tuple[tuple[float, int], ...]:
    if not isinstance(raw, list | tuple):
        raise TypeError("MoveProgress: spent is a list")
    told = [tuple(one) if isinstance(one, list | tuple) else () for one in raw]
    if any(len(one) != 2 or type(one[0]) not in (int, float) or type(one[1]) is not int for one in told):
        raise TypeError("MoveProgress: spent is a list of times, and of how many moves")
    return tuple((float(at), count) for at, count in told)


class Approved(msgspec.Struct, frozen=True):
    """Who should be active for each slot by the plan in force, as far as it is carried out; ``why`` names the plan."""

    actives: tuple[str, ...]
    members: frozenset[str]
    why: str = ""


def approved(plan: MovePlan, progress: MoveProgress) -> Approved:
    """What a plan says when so much of it is carried out."""
    actives = [plan.members[member] for member in plan.before]
    for slot, member in plan.moves[: progress.released]:
        actives[slot] = plan.members[member]
    kind = "automatic plan" if plan.automatic else "plan"
    return Approved(tuple(actives), frozenset(plan.members), f"{kind} {plan.plan} by {plan.by or 'an operator'}")


def in_force(spec: PoolSpec, plan: MovePlan | None, progress: MoveProgress | None) -> Approved | None:
    """What the slot table follows: the last plan, in a pool whose spec balances by load; else None."""
    if plan is None or progress is None or plan.plan != progress.plan or not spec.balances_by_load:
        return None
    return approved(plan, progress) if len(plan.before) == spec.slots else None
