"""What this member's looks at etcd have shown, and what may be concluded from that. Pure: times are monotonic seconds.

Two questions are answered. For how long has etcd been silent towards this member? And is it so long since etcd paused
for this member that another one which does not reach etcd must be cut off alone? When etcd was away for everybody, some
find it again before others: a member that has just found it knows from its own pause how long to wait for them.
"""

from collections import deque

LATE = 0.5
"""Seconds after which a look that is not answered counts as a pause of etcd."""
GRACE = 5.0
"""Seconds after a long pause within which nobody is held for cut off alone.

When etcd comes back after an outage, members find it again up to 2.5 s apart: a connection attempt that was begun
during the outage may take 2 s to fail. After a short pause they do so sooner: TCP sends again at intervals that
double, so that another member may be as late as the pause was long.
"""


LOOKS_KEPT = 8
"""Answered looks by which it is judged how long etcd usually takes to answer this member: those of three seconds."""
SLOW_MOST = 1.0
"""Seconds that one look counts for at the most, so that an outage that is over does not make etcd look slow."""


class EtcdContact:
    """The looks of one member. All methods take the time, and none of them looks at a clock."""

    def __init__(self) -> None:
        self._unanswered_since: float | None = None
        self._steady_from: float | None = None
        self._took: deque[float] = deque(maxlen=LOOKS_KEPT)

    def sent(self, now: float) -> None:
        """A look is sent. One that fails is not answered: silence is counted from when the first of them was sent."""
        if self._unanswered_since is None:
            self._unanswered_since = now

    def answered(self, now: float) -> None:
        """The look under way is answered."""
        pause = self.silent_for(now)
        self._took.append(min(pause, SLOW_MOST))
        if self._steady_from is None:
            self._steady_from = now + GRACE
        elif pause > LATE:
            self._steady_from = max(self._steady_from, now + min(2 * pause, GRACE))
        self._unanswered_since = None

    def silent_for(self, now: float) -> float:
        """Seconds since the first of the looks was sent that were not answered; 0 if none waits."""
        return 0.0 if self._unanswered_since is None else now - self._unanswered_since

    @property
    def slowest(self) -> float:
        """Seconds that the slowest of the last looks took: a member whose way to etcd is slow is not cut off."""
        return max(self._took, default=0.0)

    def steady(self, now: float) -> bool:
        """Whether another member that does not reach etcd may be held for cut off alone."""
        return self._steady_from is not None and now >= self._steady_from and self.silent_for(now) <= LATE
