"""How long to rest between handovers, so that a planned change takes little time from anybody's requests.

Sixty slots handed over as fast as it goes take a third of a second, in which four busy cores have no time left: all
requests wait then, not only those at a closed gate. Spread over two seconds the same work goes nearly unnoticed. Nobody
waits for a planned change to end, except who wants to stop a member, and such a one grants it seconds anyway.
"""

from dataclasses import dataclass
from typing import Self

SPREAD = 2.0
"""Seconds over which the handovers of a member are spread, if it is given enough time to leave."""
OF_THE_TIME = 0.25
"""The part of the time for leaving that may go into rests, where that is less."""
REST_MOST = 0.3
"""Seconds of rest at the most: a few slots need not take as long as many."""
SERIES_ENDS = 1.0
"""Seconds without a handover after which the next one begins a new series; so does one after which none was left."""


@dataclass(slots=True)
class HandoverPacing:
    """Spreads series of handovers over ``spread`` seconds each. Times are seconds of one monotonic clock."""

    spread: float = SPREAD
    _last: float = float("-inf")
    _over_by: float = 0.0
    _left: int = 0

    @classmethod
    def within(cls, seconds: float) -> Self:
        """For a member that has so many seconds to leave."""
        return cls(min(SPREAD, OF_THE_TIME * seconds))

    def rest(self, now: float, left: int) -> float:
        """Seconds to wait after a handover that has just ended, when ``left`` more are to come.

        However many they are, all rests of a series together last ``spread`` at the most.
        """
        if now - self._last > SERIES_ENDS or not self._left:
            self._over_by = now + self.spread
        self._left = left
        rest = min(max(self._over_by - now, 0.0) / left, REST_MOST) if left else 0.0
        self._last = now + rest
        return rest
