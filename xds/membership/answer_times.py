"""How long the pool's answers take, from the histograms of its front Envoys. Pure.

Front Envoys report every few seconds how many answers took how long, in fixed buckets. The control server has them
hedge only requests that take longer than nearly all others did (:mod:`understudy.xds.envoy.resources`).

A member that dies or freezes holds requests up, and they say nothing of the application: if they counted, hedges would
wait longer after each freeze. So reports are left out until the requests that it held must have ended.
"""

from collections import Counter, deque
from collections.abc import Mapping

WINDOW_SECONDS = 60.0
LONG_WINDOW_SECONDS = 600.0
"""Looked at where the last minute has too few answers."""
LEAST_ANSWERS = 100
SHARE = 0.99
SHARE_TO_FALL = 0.995
"""More answers must be quick for the value to fall than for it to stay, so that it does not go up and down."""
_SLOT_SECONDS = 5.0
_MOST_BUCKETS = 64


class AnswerTimes:
    """The answers of the last minutes by how long they took."""

    def __init__(self) -> None:
        self.within_ms: int | None = None
        """99 % of the answers took no longer than this, rounded up to a bucket; None: too few answers were reported."""
        self._ignored_until = float("-inf")
        self._slots: deque[tuple[float, Counter[float]]] = deque()

    def ignore_until(self, end: float) -> None:
        """Leave out what is reported before ``end`` (monotonic)."""
        self._ignored_until = max(self._ignored_until, end)

    def add(self, durations: Mapping[float, int], now: float) -> None:
        """An Envoy reported answers: how many, by the upper bound of their bucket in ms. ``now`` is monotonic."""
        if now < self._ignored_until:
            return
        if not self._slots or now - self._slots[-1][0] >= _SLOT_SECONDS:
            self._slots.append((now, Counter()))
        latest = self._slots[-1][1]
        for bound, count in durations.items():
            if bound in latest or len(latest) < _MOST_BUCKETS:
                latest[bound] += count
        while self._slots[0][0] < now - LONG_WINDOW_SECONDS:
            self._slots.popleft()
        self._update(now)

    def _update(self, now: float) -> None:
        for window in (WINDOW_SECONDS, LONG_WINDOW_SECONDS):
            answers = sum((counted for at, counted in self._slots if at >= now - window), Counter[float]())
            if answers.total() >= LEAST_ANSWERS:
                within = _quantile(answers, SHARE)
                if self.within_ms is not None and within < self.within_ms:
                    within = min(self.within_ms, _quantile(answers, SHARE_TO_FALL))
                self.within_ms = within
                return


def _quantile(answers: Counter[float], share: float) -> int:
    """The least bound within which this share of the answers came, in ms."""
    wanted, seen = share * answers.total(), 0
    for bound in sorted(answers):
        seen += answers[bound]
        if seen >= wanted:
            break
    return round(bound)
