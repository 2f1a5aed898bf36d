"""The findings of a preflight: what was checked, the result, and what to do about it. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """The severity of a finding."""

    OK = "ok"
    WARN = "warn"
    """It works, but not as well as it could, or it could not be checked."""
    FAIL = "fail"
    """It will not work, or it is not safe."""
    SKIPPED = "skipped"
    """It was not checked; the detail says why."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check in an ``area`` (manifests, etcd, cluster)."""

    level: Level
    area: str
    what: str
    detail: str = ""
    remedy: str = ""


def judged(area: str, what: str, faults: Iterable[str], remedy: str, level: Level = Level.FAIL) -> list[Finding]:
    """A finding for each fault, or one OK finding if there is none."""
    found = [Finding(level, area, what, fault, remedy) for fault in faults]
    return found or [Finding(Level.OK, area, what)]


def is_fine(findings: Iterable[Finding]) -> bool:
    """Whether there is no failure. Warnings are allowed."""
    return all(one.level is not Level.FAIL for one in findings)


def findings_view(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings as JSON data, with the number of each level."""
    return {
        "fine": is_fine(findings),
        "count": {str(level): sum(1 for one in findings if one.level is level) for level in Level},
        "findings": [asdict(one) for one in findings],
    }
