"""One clock per process: wall time that never jumps.

The wall clock is read once; from then on the monotonic clock counts. So the phases that one process records have their
true durations, even if NTP or an operator sets the wall clock. The clocks of two machines may still differ.
"""

import time
from collections.abc import Callable


class Clock:
    """Nanoseconds since the Unix epoch, counted by the monotonic clock from one reading of the wall clock."""

    def __init__(
        self,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._monotonic_ns = monotonic_ns
        before = monotonic_ns()
        wall = wall_ns()
        # The middle of the two readings: a pause between them is an error of half its length at most.
        self._offset = wall - (before + monotonic_ns()) // 2

    def now_ns(self) -> int:
        """Now, in ns since the epoch; never runs backwards."""
        return self._offset + self._monotonic_ns()

    def at_ns(self, monotonic: float) -> int:
        """The time in ns of an earlier reading, in seconds, of ``time.monotonic()`` or ``loop.time()``."""
        return self._offset + int(monotonic * 1e9)
