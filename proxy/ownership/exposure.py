"""What would be lost if this process and all who have copies died: what etcd lacked of late. Pure.

What etcd lacks at the moment of a question says little: it is nothing after each save, and grows until the next one. So
the most of late is told (:mod:`~understudy.telemetry.timing.recent_most`).
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from understudy.proxy.ownership.active_slot import ActiveSlot
from understudy.telemetry.timing.recent_most import RecentMost

LOOKED_EVERY = 0.05
"""Seconds between two looks; a save that takes less may be seen by none."""


class MostUnsaved(NamedTuple):
    """The most that etcd lacked: sessions, for how many ms the first of their writes had been so, and writes."""

    sessions: int
    ms: int
    writes: int


class Exposure:
    """What etcd lacks of the slots in which this process is active. ``bytes``: the size as of the last look."""

    def __init__(self) -> None:
        self._sessions, self._writes = RecentMost(), RecentMost()
        self._waits, self._delays = RecentMost(), RecentMost()
        self.bytes = 0

    def look(self, slots: Iterable[ActiveSlot], delay: float, now: float) -> None:
        """Look at all slots with something unsaved, before more of it is saved.

        ``delay`` is how long the first save that etcd has not confirmed is under way, in seconds.
        """
        self.bytes = sessions = writes = 0
        waits = 0.0
        for one in slots:
            self.bytes += one.saves.bytes
            sessions += len(one.saves)
            writes += one.saves.writes
            if one.saves.due and one.from_memory:
                waits = max(waits, now - one.due_since)
        self._sessions.note(sessions, now)
        self._writes.note(writes, now)
        self._waits.note(waits, now)
        self._delays.note(delay, now)

    def most(self, now: float) -> MostUnsaved:
        """The most of late: a write waits until it is due, and then for etcd."""
        sessions = int(self._sessions.most(now))
        seconds = self._waits.most(now) + self._delays.most(now) + LOOKED_EVERY
        return MostUnsaved(sessions, math.ceil(seconds * 1000) if sessions else 0, int(self._writes.most(now)))
