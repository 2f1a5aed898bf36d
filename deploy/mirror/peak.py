"""The most writes that came within a second, of the last minute. Pure."""

from collections import deque

PARTS = 10
"""A second is counted in so many parts."""
KEPT_SECONDS = 60
FRESH_SECONDS = 0.25
"""For so long the highest number is not looked for again."""


class Peak:
    """Counts writes. Times are wall time in seconds, and do not go back far."""

    def __init__(self) -> None:
        self._parts: deque[tuple[int, int]] = deque()
        self._windows: deque[tuple[int, int]] = deque()
        self._highest = (0, -KEPT_SECONDS * 1.0)

    def add(self, now: float, writes: int) -> None:
        """So many writes were seen now."""
        part = int(now * PARTS)
        self._parts.append((part, writes))
        while self._parts[0][0] < part - PARTS:
            self._parts.popleft()
        within = sum(count for _, count in self._parts)
        if self._windows and self._windows[-1][0] == part:
            within = max(within, self._windows.pop()[1])
        self._windows.append((part, within))
        while self._windows[0][0] < part - KEPT_SECONDS * PARTS:
            self._windows.popleft()
        self._highest = (max(self._highest[0], within), self._highest[1])

    def highest(self, now: float) -> int:
        """The most writes within a second that ended in the last :data:`KEPT_SECONDS`."""
        if abs(now - self._highest[1]) > FRESH_SECONDS:
            first = int((now - KEPT_SECONDS) * PARTS)
            self._highest = (max((count for part, count in self._windows if part >= first), default=0), now)
        return self._highest[0]
