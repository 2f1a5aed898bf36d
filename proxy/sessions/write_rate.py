"""A token bucket for the writes of one member. Pure: the time is an argument."""


class WriteRate:
    """Admits writes at a rate that may change from one to the next; at rest it saves up one second's worth.

    A rate below one write a second saves up one write.
    """

    def __init__(self) -> None:
        self._tokens = float("inf")  # a process begins with a full bucket, whatever the rate is
        self._at = 0.0

    def take(self, rate: float, now: float) -> bool:
        """Whether one more write is admitted at ``now`` (monotonic seconds), at ``rate`` writes a second."""
        gained = max(now - self._at, 0.0) * rate
        self._at = now
        self._tokens = min(self._tokens + gained, max(rate, 1.0))
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
