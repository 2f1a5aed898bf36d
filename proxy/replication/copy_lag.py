"""How far copies are behind: how long writes take until they are confirmed, and how many are on their way. Pure.

One write at a time is followed on each connection, from the moment it is sent. The next one is followed after that is
confirmed. So it costs nothing for the other writes, and a time in which nothing is confirmed is not missed.
"""

import math
from typing import NamedTuple

from understudy.statesync.replication.messages import Writes
from understudy.telemetry.timing.recent_most import RecentMost


class Lag(NamedTuple):
    """The most of late: ms from sending a write until its confirmation, and writes on their way; 0: no write was."""

    ms: int
    writes: int


class _Followed(NamedTuple):
    slot: int
    version: int
    at: float
    sent_before: int


class CopyLag:
    """The lag of the copies of one process. Times are monotonic."""

    def __init__(self) -> None:
        self._sent = 0
        self._followed: _Followed | None = None
        self._seconds, self._writes = RecentMost(), RecentMost()

    @property
    def follows(self) -> bool:
        """Whether a write is followed, so that the next one is not."""
        return self._followed is not None

    def sent(self, message: Writes, now: float) -> None:
        """Writes are sent."""
        if self._followed is None and message.writes:
            last = message.first + len(message.writes) - 1
            self._followed = _Followed(message.slot, last, now, self._sent)
        self._sent += len(message.writes)

    def confirmed(self, slot: int, version: int, now: float) -> None:
        """The process has everything of a slot up to ``version``."""
        followed = self._followed
        if followed is not None and followed.slot == slot and followed.version <= version:
            self._note(followed, now)
            self._followed = None

    def forget(self, slot: int | None = None) -> None:
        """Nothing more of a slot will be confirmed, or of any slot: what is sent anew is followed anew."""
        if self._followed is not None and slot in (None, self._followed.slot):
            self._followed = None

    def most(self, now: float) -> Lag:
        """The most of late, with the write that is not confirmed yet."""
        if self._followed is not None:
            self._note(self._followed, now)
        return Lag(math.ceil(self._seconds.most(now) * 1000), int(self._writes.most(now)))

    def _note(self, followed: _Followed, now: float) -> None:
        self._seconds.note(now - followed.at, now)
        self._writes.note(self._sent - followed.sent_before, now)
