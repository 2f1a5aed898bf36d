"""One session call's way to the owner of its slot: how long it may take, and what it may have left behind.

A write that was sent to a peer and not answered may still be carried out there: minutes later, if the peer was stopped
in between. The outcome of the request is kept (:mod:`understudy.statesync.sessions.request_log`), so an effect is had
once, and a refusal that is told is final. Only an answer that says that *this* copy did nothing tells too little then.
"""

import json
import time
from dataclasses import dataclass, field

from understudy.proxy.sessions.problems import Reply, problem


@dataclass(slots=True)
class CallAttempts:
    """The state of one call. ``came`` and ``give_up`` are monotonic seconds.

    ``doubts`` tells of each forwarded write that was not answered.
    """

    came: float
    give_up: float
    doubts: list[str] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds until the call is given up; not below 0."""
        return max(self.give_up - time.monotonic(), 0.0)

    def final_reply(self, reply: Reply) -> Reply:
        """The reply, unless it says that nothing was done while a peer may have done it, or may do it yet."""
        if not self.doubts or not _of_this_copy_alone(reply):
            return reply
        detail = f"{self.doubts[0]}; read the session, or repeat the request with its Idempotency-Key"
        return problem(503, "outcome-unknown", detail, retry_after=1)


def _of_this_copy_alone(reply: Reply) -> bool:
    """Whether the reply tells nothing of other copies of the request: it was not decided on."""
    if reply.status == 503:
        return True
    return reply.status == 409 and str(json.loads(reply.body).get("type", "")).endswith("/request-expired")
