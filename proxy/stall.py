"""How late this process's event loop is: the measure of CPU load that heartbeats carry, and a check of its own.

A task that wants to wake every :data:`TICK` and notes how late it was. Other threads may ask how long ago it last ran.
"""

import asyncio
import time
from collections import deque

from statesync.beat import LOAD_WINDOW

TICK = 0.05
STALLED_AFTER = 1.0
"""Seconds without a turn of the event loop after which this member is no use to anybody, though it lives."""


class StallWatch:
    """The event loop's delays of the last :data:`statesync.beat.LOAD_WINDOW` seconds, as :meth:`run` sees them."""

    def __init__(self) -> None:
        self._ran_at = time.monotonic()
        self._late: deque[tuple[float, float]] = deque()

    @property
    def worst(self) -> float:
        """The longest delay of late, in seconds."""
        return self._late[0][1] if self._late else 0.0

    @property
    def now(self) -> float:
        """How late the event loop is at this moment, in seconds; for other threads."""
        return max(time.monotonic() - self._ran_at - TICK, 0.0)

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            self._ran_at = time.monotonic()
            await asyncio.sleep(TICK)
            self.note(time.monotonic() - self._ran_at - TICK, time.monotonic())

    def note(self, late: float, now: float) -> None:
        """Take in a delay. What is older, or earlier and shorter, can no longer be the worst."""
        while self._late and self._late[0][0] < now - LOAD_WINDOW:
            self._late.popleft()
        while self._late and self._late[-1][1] <= late:
            self._late.pop()
        self._late.append((now, late))
