"""Spreads work that nothing waits for over time, so that it does not hold up requests right after a failure."""

PER_SECOND = 160
"""Slots a second, of one process: few enough that requests hardly notice them."""
MOSTLY_WITHIN = 2.0
"""Seconds in which most of the work is done, however many slots there are."""
GROUP = 16
"""Slots for which the work is done together: a transaction for each slot would cost several times as much."""


class CopyPacing:
    """How many of the slots that are left may be worked on now."""

    def __init__(self) -> None:
        self._saved_up = 0.0
        self._looked_at = 0.0

    def allowed(self, now: float, left: int) -> int:
        """The number for a look at ``now`` (monotonic), with ``left`` slots to go; :meth:`took` counts them."""
        rate = max(PER_SECOND, left / MOSTLY_WITHIN)
        most = max(GROUP, rate * 0.1)
        self._saved_up = min(self._saved_up + (now - self._looked_at) * rate, most)
        self._looked_at = now
        allowed = int(self._saved_up)
        return allowed if allowed >= min(left, GROUP) else 0

    def took(self, slots: int) -> None:
        """So many slots were worked on."""
        self._saved_up -= slots
