"""How well this member reaches etcd, by its regular reads ("looks"). Pure: times are monotonic seconds.

It answers two questions. For how long has etcd been silent towards this member? And has etcd answered this member
steadily for so long that another member, which does not reach etcd, must be cut off alone? After an outage of etcd some
members find it again before others. A member that has just found it knows from its own pause how long to wait for them.
"""

from collections import deque

LATE = 0.5
"""Seconds after which a look that is not answered counts as a pause of etcd."""
GRACE = 5.0
"""Seconds after a long pause in which no member counts as cut off alone.

When etcd comes back after an outage, members find it again up to 2.5 s apart: a connection attempt that began during
the outage may take 2 s to fail. After a short pause they find it sooner: TCP repeats at intervals that double, so
another member may be as late as the pause was long.
"""
LOOKS_KEPT = 8
"""Answered looks, those of three seconds, that show how long etcd usually takes to answer this member."""
PAUSES_KEPT = 32
"""Pauses of etcd that are remembered."""
SLOW_MOST = 1.0
"""Seconds that one look counts for at most, so that etcd does not count as slow after an outage."""


class EtcdContact:
    """The looks of one member. All methods take the time; none reads a clock."""

    def __init__(self) -> None:
        self._unanswered_since: float | None = None
        self._steady_from: float | None = None
        self._took: deque[float] = deque(maxlen=LOOKS_KEPT)
        self._pauses: deque[tuple[float, float]] = deque(maxlen=PAUSES_KEPT)

    def sent(self, now: float) -> None:
        """A look is sent. A look that fails is not answered, and silence begins when the first of them was sent."""
        if self._unanswered_since is None:
            self._unanswered_since = now

    def answered(self, now: float) -> None:
        """The look under way is answered."""
        pause = self.silent_for(now)
        if pause > LATE:
            self._pauses.append((now, pause))
        self._took.append(min(pause, SLOW_MOST))
        if self._steady_from is None:
            self._steady_from = now + GRACE
        elif pause > LATE:
            self._steady_from = max(self._steady_from, now + min(2 * pause, GRACE))
        self._unanswered_since = None

    def silent_for(self, now: float) -> float:
        """Seconds since the first of the looks was sent that were not answered; 0 if none waits."""
        return 0.0 if self._unanswered_since is None else now - self._unanswered_since

    def longest_silence(self, now: float, within: float) -> float:
        """The longest time for which etcd was silent, of those that ended in the last ``within`` seconds; in seconds.

        What usually passes until an answer counts as silence too.
        """
        pauses = [pause for ended, pause in self._pauses if now - ended <= within]
        return max(self.silent_for(now), self.slowest, *pauses)

    @property
    def slowest(self) -> float:
        """Seconds that the slowest of the last looks took: a member with a slow way to etcd is not cut off."""
        return max(self._took, default=0.0)

    def steady(self, now: float) -> bool:
        """Whether another member that does not reach etcd may count as cut off alone."""
        return self._steady_from is not None and now >= self._steady_from and self.silent_for(now) <= LATE
