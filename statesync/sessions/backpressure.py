"""Which writes are accepted while commits are late: new sessions are refused first.

A user with a session loses work when a write is refused; a user without one only has to try again. So as soon as
commits are late, new sessions are refused. Writes to existing sessions are refused only when the number of waiting
writes reaches the pool's limit, which also bounds memory. Calls of priority ``low`` are refused long before that, and
critical ones a little later. Reads are never refused here.
"""

import msgspec

from understudy.statesync.pool.priority import Priority

NEW_SESSION_DELAY = 1.0
"""New sessions are accepted while the oldest write has waited for no more than these seconds. A commit takes a few ms;
with a slow etcd (0.2 s each way) a write waits for the batch before it and for its own, 0.8 s."""

NEW_SESSION_SHARE = 0.5
"""New sessions are accepted up to this share of the limit on waiting writes."""


class _Bounds(msgspec.Struct, frozen=True, gc=False):
    """Up to which delay and which shares of the limit on waiting writes new sessions, and writes, are accepted."""

    new_delay: float
    new_share: float
    write_share: float


_BOUNDS: dict[Priority, _Bounds] = {
    "low": _Bounds(NEW_SESSION_DELAY / 4, NEW_SESSION_SHARE / 4, 0.5),
    "normal": _Bounds(NEW_SESSION_DELAY, NEW_SESSION_SHARE, 1.0),
    "critical": _Bounds(NEW_SESSION_DELAY * 4, 1.25, 1.25),
}
"""Critical writes may exceed the limit by a quarter, so that normal ones are refused before them."""


class Backpressure(msgspec.Struct, frozen=True, gc=False):
    """How late commits are: the number of unresolved writes, and for how many seconds the oldest has waited."""

    writes: int
    delay: float

    def refusal(self, *, new: bool, bound: int, priority: Priority = "normal") -> str:
        """Why a write is refused, as text for its caller; '' if it is accepted.

        Args:
            new: whether the write would begin a session.
            bound: how many writes of this member may wait at once (``limits.queued_writes``).
            priority: that of the write.
        """
        bounds = _BOUNDS[priority]
        most = max(int(bound * bounds.write_share), 1)
        if self.writes >= most:
            return f"{self.writes} writes wait to be committed, and no more than {most} may"
        if not new:
            return ""
        if self.delay > bounds.new_delay:
            return f"writes have been waiting for {self.delay:.1f} s, so no session is begun here for now"
        if self.writes >= max(bound * bounds.new_share, 1):
            return f"{self.writes} writes wait to be committed, so no session is begun here for now"
        return ""
