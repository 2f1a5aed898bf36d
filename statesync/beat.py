"""The heartbeat between a sidecar and a control server, as both put it on the wire.

A sidecar opens one bidirectional gRPC stream to every control server (method :data:`METHOD`) and sends a
:class:`Beat` every ``BEAT_INTERVAL`` seconds and at once when something changes. The server answers nothing; the open
stream is the answer. A killed process is seen at once, since its kernel closes the socket.

Silence is judged by :func:`patience`, here and beside the application: busy is not dead.
"""

from collections import deque
from dataclasses import dataclass

from statesync.pool import MemberState, Record

SERVICE = "understudy.v1.Liveness"
METHOD = f"/{SERVICE}/Stream"
BEAT_INTERVAL = 0.1
LOAD_FACTOR = 3.0
"""How many times the worst delay of the last seconds is granted on top: a delay seldom triples from one second to the
next while its cause stays the same."""
LOAD_WINDOW = 10.0
"""Seconds for which a delay is remembered."""


@dataclass(frozen=True, slots=True)
class Beat(Record):
    """A sign of life. ``applied`` is the etcd revision that the member's replica has reached.

    ``stall``: the longest time in seconds that the sidecar's event loop was late within the last :data:`LOAD_WINDOW`.
    ``lacking`` is how many slots it should hold by the table and does not hold in full.
    """

    pool: str
    member: str
    boot: str
    state: MemberState
    applied: int
    reason: str = ""
    stall: float = 0.0
    lacking: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", MemberState(self.state))


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
        while self._noted and self._noted[-1][1] <= late:
            self._noted.pop()
        self._noted.append((now, late))


def stall_step(delay: float) -> float:
    """A delay as a member's record tells it: the least step above it, 0 while it is not worth telling."""
    return min((step for step in STALL_STEPS if delay <= step + NOT_WORTH_TELLING), default=STALL_STEPS[-1])


def patience(usual: float, delay: float, cap: float) -> float:
    """How long somebody may be silent who is usually given ``usual``, and was ``delay`` late of late; in seconds.

    At most ``cap`` is granted on top.
    """
    return usual + min(cap, LOAD_FACTOR * max(delay, 0.0))
