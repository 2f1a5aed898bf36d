"""How the last practices of a switch of sites ended: one record of the pool, which ``drill site-offline`` writes."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from understudy.statesync.parsing.stored import compact_json, read_object, typed

KEPT = 50
"""Practices that the record keeps, the newest last."""
PRACTISED_EVERY = 28 * 86400.0
"""How often a switch should be practised, in seconds, unless the command says otherwise."""


class Outcome(StrEnum):
    """How a practice ended.

    ``INTERRUPTED``: an objective broke, a member went, or the command was stopped; the site was brought back at once.
    ``FAILED``: the site was not empty in time, or not back in time, or an objective was missed as judged afterwards.
    """

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    INTERRUPTED = "INTERRUPTED"


class Practice(msgspec.Struct, frozen=True):
    """One practice: ``site`` was out of service from ``at`` (wall time) for ``seconds``; ``why`` it did not succeed.

    ``back_seconds``: from the end until the site served its share again, None if it did not.
    """

    site: str
    at: float
    seconds: float
    outcome: Outcome
    why: str = ""
    requests: int = 0
    failed: int = 0
    back_seconds: float | None = None

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> "Practice":
        """A record of parsed JSON; raises ``ValueError`` on anything that is not one."""
        back = raw.get("back_seconds")
        return cls(
            typed("site", str, raw.get("site")),
            typed("at", float, raw.get("at")),
            typed("seconds", float, raw.get("seconds", 0.0)),
            Outcome(typed("outcome", str, raw.get("outcome"))),
            typed("why", str, raw.get("why", "")),
            typed("requests", int, raw.get("requests", 0)),
            typed("failed", int, raw.get("failed", 0)),
            None if back is None else typed("back_seconds", float, back),
        )


class Practices(msgspec.Struct, frozen=True):
    """The practices of a pool, the newest last. ``every``: how often there is meant to be one, in seconds."""

    runs: tuple[Practice, ...] = ()
    every: float = PRACTISED_EVERY

    def encode(self) -> bytes:
        """The record as compact JSON."""
        return compact_json(self)

    @classmethod
    def decode(cls, value: bytes) -> "Practices":
        """Read a record; raises ``ValueError`` on anything that is not one."""
        raw = read_object(value)
        runs = typed("runs", list, raw.get("runs", []))
        if not all(isinstance(one, dict) for one in runs):
            raise ValueError("runs: expected objects")
        every = typed("every", float, raw.get("every", PRACTISED_EVERY))
        return cls(tuple(Practice.of(one) for one in runs), every)

    def with_run(self, run: Practice, every: float) -> "Practices":
        """The same with another practice at the end."""
        return Practices((*self.runs, run)[-KEPT:], every)

    def overdue(self, now: float) -> bool:
        """Whether the last practice that ran to its end is too long ago."""
        ended = [run.at for run in self.runs if run.outcome is not Outcome.INTERRUPTED]
        return now - max(ended, default=0.0) > self.every
