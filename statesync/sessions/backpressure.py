"""Which writes are taken in while commits lag behind: new sessions are refused first, established ones go on.

A user who already has a session loses work when a write is refused; one who is about to begin loses a second. So as
soon as commits take noticeably longer than they should, no session is begun any more, and only when the writes that
wait reach the pool's bound (which also bounds memory) are those of established sessions refused too. Reads never are.
"""

from dataclasses import dataclass

NEW_SESSION_DELAY = 1.0
"""Seconds for which the oldest write may have been waiting while new sessions are still begun. A commit takes some ms;
on an etcd that is slow but works (0.2 s each way) a write waits for the batch before it and for its own, 0.8 s."""

NEW_SESSION_SHARE = 0.5
"""The share of the bound on waiting writes up to which new sessions are begun."""


@dataclass(frozen=True, slots=True)
class Pressure:
    """How far commits lag behind: writes that are not resolved, and for how many seconds the oldest of them."""

    writes: int
    delay: float

    def refusal(self, *, new: bool, bound: int) -> str:
        """Why a write is not taken in, in words for its caller; '' if it is.

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
