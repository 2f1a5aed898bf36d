"""How late this process's event loop is: the measure of CPU load that heartbeats carry, and a check of its own.

A task that wants to wake every :data:`TICK` and notes how late it was. Other threads may ask how long ago it last ran.
"""

import asyncio
import time

from statesync.beat import Delays

TICK = 0.05
STALLED_AFTER = 1.0
"""Seconds without a turn of the event loop after which this member is no use to anybody, though it lives."""


class StallWatch:
    """The event loop's delays of the last :data:`statesync.beat.LOAD_WINDOW` seconds, as :meth:`run` sees them."""

    def __init__(self) -> None:
        self._ran_at = time.monotonic()
        self._delays = Delays()

    @property
    def worst(self) -> float:
        """The longest delay of late, in seconds."""
        return self._delays.worst

    @property
    def now(self) -> float:
        """How late the event loop is at this moment, in seconds; for other threads."""
        return max(time.monotonic() - self._ran_at - TICK, 0.0)

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            self._ran_at = time.monotonic()
            await asyncio.sleep(TICK)
            now = time.monotonic()
            self._delays.note(now - self._ran_at - TICK, now)
