"""One session call's way to the owner of its slot: how long it may take, and what it may have left behind.

A write that was sent to a peer and not answered may still be carried out there: minutes later, if the peer was stopped
in between. So each forwarded write names the last epoch of its slot under which it may be carried out. Once the slot
has a later epoch it is dead, by the peer's own check and by the fence of the transaction. That makes a *refusal* under
a later epoch final; a refusal under the same epoch is none, and the caller hears that the outcome is unknown.
"""

import time
from dataclasses import dataclass, field

from proxy.problems import Reply, problem


@dataclass(frozen=True, slots=True)
class Doubt:
    """A forwarded write that was not answered; it may be carried out while the slot's epoch is at most ``until``."""

    detail: str
    until: int


@dataclass(slots=True)
class Errand:
    """The state of one call. ``came`` and ``give_up`` are monotonic seconds.

    ``heard`` is the slot's latest epoch that a peer has named.
    """

    came: float
    give_up: float
    heard: int = 0
    doubts: list[Doubt] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds until the call is given up; not below 0."""
        return max(self.give_up - time.monotonic(), 0.0)

    def honest(self, reply: Reply) -> Reply:
        """The reply, unless it says that nothing was done, or nothing to do, while a peer may still do it.

        What is malformed (400) is so everywhere. A reply that tells of an effect needs no care: the write's id, kept
        with the session, lets it have its effect once.
        """
        if reply.status < 400 or reply.status == 400 or not self.doubts:
            return reply
        epoch = int(reply.headers.get("Understudy-Epoch", 0))
        open_doubts = [doubt for doubt in self.doubts if doubt.until >= epoch]
        if not open_doubts and reply.status != 503:
            return reply
        detail = f"{self.doubts[0].detail}; read the session, or repeat the request with its Idempotency-Key"
        return problem(503, "outcome-unknown", detail, retry_after=1)
