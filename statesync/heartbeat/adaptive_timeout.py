"""Timeouts that grow with the load of the process that is asked, since a busy process is not a dead one. Pure."""

from collections import deque

LOAD_FACTOR = 3.0
"""How many times the worst delay of the last seconds is granted on top: a delay seldom triples from one second to the
next while its cause stays the same."""
LOAD_WINDOW = 10.0
"""Seconds for which a delay is remembered."""
LONGEST_LOAD = 1.5
"""A longer delay, in seconds, says nothing of load: the process was frozen, or its machine was."""
STALL_STEPS = (0.0, 0.1, 0.25, 0.5, 1.0)
"""What a member's record may say of its delays, in seconds: coarse, so that it seldom has to be written anew."""
NOT_WORTH_TELLING = 0.05


class Delays:
    """The delays of one process within the last :data:`LOAD_WINDOW` seconds. Times and delays in seconds."""

    def __init__(self) -> None:
        self._noted: deque[tuple[float, float]] = deque()

    @property
    def worst(self) -> float:
        """The longest of them."""
        return self._noted[0][1] if self._noted else 0.0

    def note(self, late: float, now: float) -> None:
        """Take in a delay. What is older, or earlier and shorter, can no longer be the worst."""
        while self._noted and self._noted[0][0] < now - LOAD_WINDOW:
            self._noted.popleft()
        if late > LONGEST_LOAD:
            return
        while self._noted and self._noted[-1][1] <= late:
            self._noted.pop()
        self._noted.append((now, late))


def stall_step(delay: float) -> float:
    """A delay as a member's record tells it: the least step above it, 0 while it is not worth telling."""
    return min((step for step in STALL_STEPS if delay <= step + NOT_WORTH_TELLING), default=STALL_STEPS[-1])


def adaptive_timeout(usual: float, delay: float, cap: float, *, factor: float = LOAD_FACTOR) -> float:
    """The timeout of a process whose timeout without load is ``usual`` and that was ``delay`` late; all in seconds.

    ``factor`` times the delay is added, at most ``cap``.
    """
    return usual + min(cap, factor * max(delay, 0.0))
