"""What a browser asks for when an operator acts, and the command line that does the same. Pure."""

import shlex
from typing import Any

import msgspec

from understudy.statesync.audit.entry import TEXT_MOST
from understudy.statesync.pool.rebalance import RATE_MOST
from understudy.telemetry.timing.duration import parse_duration

WHO_MOST = 60
DRILL = "drill drain"
LIMITED = ("drain", "site offline", DRILL)
"""Acts that may end by themselves."""
MOVING = ("rebalance apply", "rebalance undo")
"""Acts that move slots, so many a second."""
_KINDS = ("drain", "undrain", "site offline", "site online", DRILL, *MOVING, "rebalance abort")


class ShownPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The plan that a page shows, as short as it can be.

    Attributes:
        generation: the slot table that it was made for.
        by: what it balances.
        members: those in the moves.
        moves: the slot, and the places in ``members`` of its active now and then.
        asked: the options of ``understudy rebalance plan`` that make it.
    """

    generation: int
    by: str
    members: tuple[str, ...]
    moves: tuple[tuple[int, int, int], ...]
    asked: tuple[str, ...] = ()

    def fault(self) -> str:
        """Why it is no plan; '' if it is one."""
        if any(len(text) > WHO_MOST for text in (self.by, *self.asked)):
            return f"plan: a text is longer than {WHO_MOST} characters"
        places = range(len(self.members))
        known = all(source in places and target in places for _, source, target in self.moves)
        return "" if known else "plan: a move names a member that the plan does not have"

    def file(self, pool: str) -> dict[str, Any]:
        """The same as a plan file has it (``understudy rebalance plan --save``)."""
        moves = [
            {"slot": slot, "source": self.members[source], "target": self.members[target]}
            for slot, source, target in self.moves
        ]
        return {"pool": pool, "generation": self.generation, "by": self.by, "moves": moves}


class Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a browser asks for.

    Attributes:
        act: the words of the command.
        target: the member or the site; '' for a rebalance.
        duration: how long, such as ``10m``; '' for what the command does without ``--for``.
        reason: why, for the audit log.
        who: the operator's name, as they say.
        rate: moves a second; '' for what the command does without ``--rate``.
        plan: what ``rebalance apply`` is to make.
    """

    act: str
    target: str = ""
    duration: str = ""
    reason: str = ""
    who: str = ""
    rate: str = ""
    plan: ShownPlan | None = None

    def fault(self) -> str:
        """Why the wish cannot be understood; '' if it can."""
        if self.act not in _KINDS:
            return f"act: one of {', '.join(_KINDS)}"
        if self.duration and (self.act not in LIMITED or not self.seconds):
            return f"duration: {self.duration!r} is not a duration; examples: 90s, 10m, 2h, 1d"
        if len(self.reason) > TEXT_MOST:
            return f"reason: longer than {TEXT_MOST} characters"
        if len(self.who) > WHO_MOST:
            return f"who: longer than {WHO_MOST} characters"
        return self._plan_fault()

    def _plan_fault(self) -> str:
        if self.rate and (self.act not in MOVING or self.moves_a_second is None):
            return f"rate: {self.rate!r} is not a number above 0, up to {RATE_MOST:g}"
        if (self.plan is not None) != (self.act == "rebalance apply"):
            return "plan: needed for 'rebalance apply', and for no other act"
        return self.plan.fault() if self.plan is not None else ""

    @property
    def limited(self) -> bool:
        """Whether the act may end by itself."""
        return self.act in LIMITED

    @property
    def seconds(self) -> float | None:
        """The duration in seconds."""
        return parse_duration(self.duration, ("s", "m", "h", "d")) if self.duration else None

    @property
    def moves_a_second(self) -> float | None:
        """The rate; None if it is none."""
        try:
            rate = float(self.rate or 1)
        except ValueError:
            return None
        return rate if 0 < rate <= RATE_MOST else None

    def command(self, pool: str) -> str:
        """The command line that does the same."""
        named = ["--member", self.target] if self.act == DRILL else [self.target]
        words = ["understudy", *self.act.split(), *(named if self.target else [])]
        words += self.plan.asked if self.plan is not None else ()
        words += ["--for", self.duration] if self.duration else []
        words += ["--rate", self.rate] if self.rate else []
        words += ["--reason", self.reason.strip()] if self.reason.strip() else []
        return shlex.join([*words, "--pool", pool])
