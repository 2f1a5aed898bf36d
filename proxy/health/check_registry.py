"""Checks: named reports of a member's health, each with a deadline. Pure; times are monotonic seconds.

A check that reports ``problem``, or nothing until its deadline, counts against its member at once. One that reports
``init`` keeps a member without slots from getting any. Who reports does not matter here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum


class CheckState(StrEnum):
    """What a check says."""

    OK = "ok"
    INIT = "init"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Check:
    """One check. ``deadline``: seconds in which the next report must come; 0: none. ``source``: who runs it."""

    name: str
    deadline: float
    source: str
    state: CheckState = CheckState.INIT
    reason: str = ""
    reported: float = 0.0

    def overdue(self, now: float) -> bool:
        """Whether a report is missing."""
        return bool(self.deadline) and now - self.reported > self.deadline

    def fault(self, now: float) -> str:
        """What it says against the member, '' for nothing."""
        if self.overdue(now):
            return f"check {self.name}: no report for {now - self.reported:.1f} s, its deadline is {self.deadline:g} s"
        if self.state is CheckState.PROBLEM:
            return f"check {self.name}: {self.reason or 'problem'}"
        return ""

    def view(self, now: float) -> dict[str, object]:
        """The check for people and tools."""
        return {
            "name": self.name,
            "state": CheckState.PROBLEM if self.overdue(now) else self.state,
            "reason": self.fault(now) if self.overdue(now) else self.reason,
            "deadline_seconds": self.deadline,
            "reported_seconds_ago": round(now - self.reported, 1),
            "source": self.source,
        }


class CheckRegistry:
    """The checks of one member, by name."""

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}

    @property
    def checks(self) -> Mapping[str, Check]:
        """All checks, by name."""
        return self._checks

    def register(self, name: str, deadline: float, source: str, now: float) -> Check:
        """Add a check; one that is there keeps what it reported, and its deadline begins again."""
        known = self._checks.get(name) or Check(name, deadline, source)
        self._checks[name] = replace(known, deadline=deadline, source=source, reported=now)
        return self._checks[name]

    def report(self, name: str, state: CheckState, reason: str, now: float) -> Check:
        """Take in a report. Raises ``KeyError`` if the check is not registered."""
        self._checks[name] = replace(self._checks[name], state=state, reason=reason, reported=now)
        return self._checks[name]

    def remove(self, name: str) -> None:
        """Forget a check. Raises ``KeyError`` if there is none."""
        del self._checks[name]

    def fault(self, now: float) -> str:
        """What counts against the member now: the first fault by name, '' for none."""
        return next((fault for _, check in sorted(self._checks.items()) if (fault := check.fault(now))), "")

    def starting(self, now: float) -> str:
        """Which check is not done yet, '' for none."""
        for name, check in sorted(self._checks.items()):
            if check.state is CheckState.INIT and not check.overdue(now):
                return f"check {name}: {check.reason or 'not reported yet'}"
        return ""
