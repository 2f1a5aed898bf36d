"""What a preflight finds: what was looked at, whether it will do, and what to do if not. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """It works, with less than it could have, or nobody can tell from here."""
    FAIL = "fail"
    """It will not work, or not safely."""
    SKIPPED = "skipped"
    """It was not looked at; the detail says why."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, in an ``area`` (manifests, etcd, cluster)."""

    level: Level
    area: str
    what: str
    detail: str = ""
    remedy: str = ""


def judged(area: str, what: str, faults: Iterable[str], remedy: str, level: Level = Level.FAIL) -> list[Finding]:
    """A finding for each fault, or one that says that there is none."""
    found = [Finding(level, area, what, fault, remedy) for fault in faults]
    return found or [Finding(Level.OK, area, what)]


def is_fine(findings: Iterable[Finding]) -> bool:
    """Whether nothing stands in the way. Warnings don't."""
    return all(one.level is not Level.FAIL for one in findings)


def findings_view(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings as JSON data, and how many there are of each level."""
    return {
        "fine": is_fine(findings),
        "count": {str(level): sum(1 for one in findings if one.level is level) for level in Level},
        "findings": [asdict(one) for one in findings],
    }
