"""What would be lost if this process and all who have copies died: what etcd lacked of late. Pure.

What etcd lacks at the moment of a question says little: it is nothing after each save, and grows until the next one. So
the most of the last :data:`SECONDS` is told. It is a bound for the next moments as long as the load does not grow.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from understudy.proxy.ownership.active_slot import ActiveSlot

SECONDS = 10.0
LOOKED_EVERY = 0.05
"""Seconds between two looks; a save that takes less may be seen by none."""


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


class MostUnsaved(NamedTuple):
    """The most that etcd lacked: saves of sessions, and for how many ms the first of their writes had been so."""

    sessions: int
    ms: int


class Exposure:
    """What etcd lacks of the slots in which this process is active. ``bytes``: the size as of the last look."""

    def __init__(self) -> None:
        self._sessions, self._waits, self._delays = RecentMost(), RecentMost(), RecentMost()
        self.bytes = 0

    def look(self, slots: Iterable[ActiveSlot], delay: float, now: float) -> None:
        """Look at all slots with something unsaved, before more of it is saved.

        ``delay`` is how long the first save that etcd has not confirmed is under way, in seconds.
        """
        self.bytes = sessions = 0
        waits = 0.0
        for one in slots:
            self.bytes += one.saves.bytes
            sessions += len(one.saves)
            if one.saves.due and one.from_memory:
                waits = max(waits, now - one.due_since)
        self._sessions.note(sessions, now)
        self._waits.note(waits, now)
        self._delays.note(delay, now)

    def most(self, now: float) -> MostUnsaved:
        """The most of the last :data:`SECONDS`: a write waits until it is due, and then for etcd."""
        sessions = int(self._sessions.most(now))
        seconds = self._waits.most(now) + self._delays.most(now) + LOOKED_EVERY
        return MostUnsaved(sessions, math.ceil(seconds * 1000) if sessions else 0)
