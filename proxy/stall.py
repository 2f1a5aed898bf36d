"""How late this process's event loop is: the measure of CPU load that heartbeats carry, and a check of its own.

A task that wants to wake every :data:`TICK` and notes how late it was. Other threads may ask how long ago it last ran.
"""

import asyncio
import time

from statesync.beat import Delays

TICK = 0.05
STALLED_AFTER = 1.0
"""Seconds without a turn of the event loop after which this member is no use to anybody, though it lives."""
STALLED_WITHOUT_ETCD = 5.0
"""The same while etcd keeps everybody waiting for a leader, and for as long after that. Then what has waited comes all
at once, to every member; nobody else could serve instead, since nobody can claim; and who catches up is better left
alone. A process that stands still for good does not hear of etcd any more either, so this lasts no longer."""
STOOD_STILL = 0.5
"""Seconds by which the event loop must be late for the process to have stood still."""
WAKING = 1.0
"""Seconds after a standstill in which a call that is read may have waited in a socket all the while."""


def bearable(now: float, wanting_at: float) -> float:
    """Seconds for which the event loop may stand still at ``now`` before front Envoys had better go elsewhere.

    ``wanting_at`` is when etcd was last seen to keep callers waiting for a leader; both monotonic.
    """
    return STALLED_WITHOUT_ETCD if now - wanting_at < STALLED_WITHOUT_ETCD else STALLED_AFTER


class StallWatch:
    """The event loop's delays of the last :data:`statesync.beat.LOAD_WINDOW` seconds, as :meth:`run` sees them."""

    def __init__(self) -> None:
        self._ran_at = time.monotonic()
        self._delays = Delays()
        self._stood = 0.0
        self._woke_at = -WAKING

    def standstill(self) -> float:
        """Seconds for which a call that is read now may have waited in its socket because this process stood still."""
        now = time.monotonic()
        late = now - self._ran_at - TICK
        stood = self._stood if now - self._woke_at < WAKING else 0.0
        return max(late if late > STOOD_STILL else 0.0, stood)

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
            late = now - self._ran_at - TICK
            self._delays.note(late, now)
            if late > STOOD_STILL:
                self._stood, self._woke_at = late, now
