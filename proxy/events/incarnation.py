"""How often this process was taken for dead although it lived. Pure.

A takeover's trace is named after the dead process (docs/telemetry.md). A process that was only frozen can be taken over
from again, so its member record counts its lives. The count rises once the others have surely finished the takeover.
"""

SETTLED_AFTER = 0.4
"""Seconds after the first sign of a takeover. By then nobody claims any more from a member that answers, and nobody
has given it slots: it must send beats for a second first (``Rules.revival`` of the failure detector)."""


class Incarnation:
    """Counts the takeovers that this process has survived."""

    def __init__(self) -> None:
        self.count = 0
        self._taken_at: float | None = None

    def taken(self, now: float) -> None:
        """Somebody takes this process for dead, or has claimed a slot of it; ``now`` is monotonic."""
        if self._taken_at is None:
            self._taken_at = now

    def settle(self, now: float) -> bool:
        """Whether a new life has just begun."""
        if self._taken_at is None or now - self._taken_at < SETTLED_AFTER:
            return False
        self._taken_at = None
        self.count += 1
        return True
