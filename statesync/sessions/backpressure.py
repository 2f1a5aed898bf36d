"""Which writes are accepted while commits are late: new sessions are refused first.

A user with a session loses work when a write is refused; a user without one only has to try again. So as soon as
commits are late, new sessions are refused. Writes to existing sessions are refused only when the number of waiting
writes reaches the pool's limit, which also bounds memory. Reads are never refused.
"""

import msgspec

NEW_SESSION_DELAY = 1.0
"""New sessions are accepted while the oldest write has waited for no more than these seconds. A commit takes a few ms;
with a slow etcd (0.2 s each way) a write waits for the batch before it and for its own, 0.8 s."""

NEW_SESSION_SHARE = 0.5
"""New sessions are accepted up to this share of the limit on waiting writes."""


class Backpressure(msgspec.Struct, frozen=True, gc=False):
    """How late commits are: the number of unresolved writes, and for how many seconds the oldest has waited."""

    writes: int
    delay: float

    def refusal(self, *, new: bool, bound: int) -> str:
        """Why a write is refused, as text for its caller; '' if it is accepted.

        Args:
            new: whether the write would begin a session.
            bound: how many writes of this member may wait at once (``limits.queued_writes``).
        """
        if self.writes >= bound:
            return f"{self.writes} writes wait to be committed, and no more than {bound} may"
        if not new:
            return ""
        if self.delay > NEW_SESSION_DELAY:
            return f"writes have been waiting for {self.delay:.1f} s, so no session is begun here for now"
        if self.writes >= max(bound * NEW_SESSION_SHARE, 1):
            return f"{self.writes} writes wait to be committed, so no session is begun here for now"
        return ""
