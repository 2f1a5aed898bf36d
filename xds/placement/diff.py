"""The differences between a slot table and the one before it, each with its reason as text.

For operators, logs and failover records. No decision depends on it.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Literal, Protocol

import msgspec

from understudy.statesync.pool.records import MemberState

Role = Literal["active", "standby", "backup"]


class Move(msgspec.Struct, frozen=True):
    """One role of one slot that moves from ``source`` to ``target``; None stands for no member."""

    slot: int
    role: Role
    source: str | None
    target: str | None
    reason: str


class KnownMember(Protocol):
    """The part of a candidate that is needed here."""

    @property
    def member(self) -> str:
        """Its name."""

    @property
    def state(self) -> MemberState:
        """Its state."""


class Share(msgspec.Struct, frozen=True):
    """A member's even share of the actives, rounded, and the most that it may have."""

    even: int
    most: int


class MoveInputs(msgspec.Struct, frozen=True):
    """The inputs of a decision. ``shares`` is empty in a mode without shares (active_standby).

    ``approved`` has the active of each slot by the plan in force, if there is one, and ``plan`` names that plan.
    ``preferred`` are the members that may hold slots and that the spec prefers.
    """

    known: Sequence[KnownMember]
    before: Sequence[tuple[str, ...]]
    after: Sequence[tuple[str, ...]]
    current: Mapping[int, str] = msgspec.field(default_factory=dict)
    shares: Mapping[str, Share] = msgspec.field(default_factory=dict)
    approved: Sequence[str] = ()
    plan: str = ""
    preferred: Collection[str] = ()


def explain(facts: MoveInputs) -> tuple[Move, ...]:
    """Every difference between two tables, by slot and role. Backups that only change their order do not count."""
    return tuple(_Explanation(facts).moves())


class _Explanation:
    def __init__(self, facts: MoveInputs) -> None:
        self._inputs = facts
        self._states = {candidate.member: candidate.state for candidate in facts.known}
        self._seen = {member for order in facts.before for member in order}
        owners = {slot: member for slot, member in facts.current.items() if self._serves(member)}
        self._owners = [owners.get(slot, order[0] if order else "") for slot, order in enumerate(facts.before)]
        self._kept = Counter(self._owners)

    def moves(self) -> Iterator[Move]:
        for slot, (before, after) in enumerate(zip(self._inputs.before, self._inputs.after, strict=True)):
            if before == after:
                continue
            source, target = _at(before, 0), _at(after, 0)
            if source != target:
                yield Move(slot, "active", source, target, self._why_active(slot, source, target))
            source, target = _at(before, 1), _at(after, 1)
            if source != target:
                yield Move(slot, "standby", source, target, self._why_copy("standby", source, target, after))
            gone = [member for member in before[2:] if member not in after[2:]]
            come = [member for member in after[2:] if member not in before[2:]]
            for source, target in zip_longest(gone, come):
                yield Move(slot, "backup", source, target, self._why_copy("backup", source, target, after))

    def _serves(self, member: str) -> bool:
        return member in self._states and self._states[member].may_hold_slots

    def _absence(self, member: str) -> str:
        state = self._states.get(member)
        return f"{member} is gone" if state is None else f"{member} is {state}"

    def _why_active(self, slot: int, source: str | None, target: str | None) -> str:
        owner = self._owners[slot]
        if source is None:
            return "the slot had no active"
        if not self._serves(source) or target is None:
            return self._absence(source)
        if target == owner:
            return f"{target} owns the slot"
        if self._inputs.approved and self._inputs.approved[slot] == target:
            return self._inputs.plan
        if target in self._inputs.preferred and owner not in self._inputs.preferred:
            return f"the spec prefers {target}"
        return self._why_share(owner, target) if self._inputs.shares else f"{target} is first in line"

    def _why_share(self, owner: str, target: str) -> str:
        shares = self._inputs.shares
        if self._kept[owner] > shares[owner].most:
            return f"{owner} is over its share ({self._kept[owner]} of {shares[owner].even})"
        if target not in self._seen:
            return f"new member {target} has too few"
        return f"{target} has too few ({self._kept[target]} of {shares[target].even})"

    def _why_copy(self, role: Role, source: str | None, target: str | None, after: tuple[str, ...]) -> str:
        if source is None:
            return f"the slot had no {role}" if role == "standby" else "the slot had too few backups"
        if not self._serves(source):
            return self._absence(source)
        if source in after:
            return f"{source} is the slot's {('active', 'standby', 'backup')[min(after.index(source), 2)]} now"
        if target is None:
            return "the pool keeps fewer copies"
        if not self._inputs.shares:
            return f"{target} is next in line"
        if target not in self._seen:
            return f"new member {target} has too few {role} slots"
        return f"{role} slots are spread evenly"


def _at(order: tuple[str, ...], place: int) -> str | None:
    return order[place] if place < len(order) else None
