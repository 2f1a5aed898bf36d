"""The highest value of the last seconds. Pure.

What a moment says of something that rises and falls all the time is little. The most of late is a bound for the next
moments, as long as the load does not grow.
"""

import math

SECONDS = 10.0


class RecentMost:
    """The highest value of the last :data:`SECONDS`, and of up to as long before. Times are monotonic."""

    def __init__(self) -> None:
        self._since = -math.inf
        self._before = self._highest = 0.0

    def note(self, value: float, now: float) -> None:
        """The value is this now."""
        self._go_on(now)
        self._highest = max(self._highest, value)

    def most(self, now: float) -> float:
        """The highest value; 0 if none was noted for so long."""
        self._go_on(now)
        return max(self._before, self._highest)

    def _go_on(self, now: float) -> None:
        passed = now - self._since
        if passed >= SECONDS:
            self._before = self._highest if passed < 2 * SECONDS else 0.0
            self._highest, self._since = 0.0, now
