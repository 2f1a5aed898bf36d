"""How long to rest between handovers, so that a planned change slows requests down as little as possible.

Sixty slots that are handed over as fast as possible take a third of a second, in which four busy cores have no time
left: all requests wait then, not only those at a closed gate. Spread over two seconds, the same work is hardly noticed.
Nobody waits for the end of a planned change except an operator who stops a member, and a stop may take seconds anyway.
"""

from dataclasses import dataclass
from typing import Self

SPREAD = 2.0
"""Seconds over which the handovers of a member are spread, if it has enough time to drain."""
OF_THE_TIME = 0.25
"""The part of the time for draining that may be spent on rests, where that is less."""
REST_MOST = 0.3
"""The longest rest in seconds, so that few slots take less time than many."""
SERIES_ENDS = 1.0
"""Seconds without a handover after which the next one begins a new series; so it does when none was left."""


@dataclass(slots=True)
class HandoverPacing:
    """Spreads series of handovers over ``spread`` seconds each. Times are seconds of one monotonic clock."""

    spread: float = SPREAD
    _last: float = float("-inf")
    _over_by: float = 0.0
    _left: int = 0

    @classmethod
    def within(cls, seconds: float) -> Self:
        """For a member that has so many seconds to drain."""
        return cls(min(SPREAD, OF_THE_TIME * seconds))

    def rest(self, now: float, left: int) -> float:
        """Seconds to wait after a handover that has just ended, when ``left`` more are to come.

        All rests of a series together last at most ``spread`` seconds, however many there are.
        """
        if now - self._last > SERIES_ENDS or not self._left:
            self._over_by = now + self.spread
        self._left = left
        rest = min(max(self._over_by - now, 0.0) / left, REST_MOST) if left else 0.0
        self._last = now + rest
        return rest
