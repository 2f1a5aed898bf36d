"""The attempts to answer one session call: how long they may take, and what they may have left behind.

A write that was forwarded and not answered may still be carried out by the peer, even minutes later if the peer was
stopped meanwhile. The request log (:mod:`understudy.statesync.sessions.request_log`) sees to it that the request has
its effect once, and that a refusal is final. But an answer that *this* copy of the request did nothing would then be
misleading, so it becomes ``outcome-unknown``. A peer that lost the slot with the write under way answers that it is not
the owner, and that it has a doubt (:data:`DOUBT_HEADER`).

Envoy's own retries and hedged requests are in :mod:`understudy.xds.envoy.routes`.
"""

import json
import time

import msgspec
from msgspec.structs import replace

from understudy.proxy.http.problems import Reply, problem

DOUBT_HEADER = "Understudy-Doubt"
"""In a peer's answer that it does not own the slot: why it may have carried the write out all the same."""
NOT_OWNER = 421


class CallAttempts(msgspec.Struct):
    """The state of one call. ``came`` and ``give_up`` are monotonic seconds.

    ``doubts`` has the error of each forwarded write that was not answered.
    """

    came: float
    give_up: float
    doubts: list[str] = msgspec.field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds until the call is given up; not below 0."""
        return max(self.give_up - time.monotonic(), 0.0)

    def final_reply(self, reply: Reply) -> Reply:
        """The reply, or ``outcome-unknown`` if it says that nothing was done although a peer may have done it."""
        if self.doubts and reply.status == NOT_OWNER:
            doubt = " ".join(self.doubts[0].split()).encode("ascii", "replace").decode()
            return replace(reply, headers={**reply.headers, DOUBT_HEADER: doubt})
        if not self.doubts or not _of_this_copy_alone(reply):
            return reply
        detail = f"{self.doubts[0]}; read the session, or repeat the request with its Idempotency-Key"
        return problem(503, "outcome-unknown", detail, retry_after=1)


def _of_this_copy_alone(reply: Reply) -> bool:
    """Whether the reply says nothing about other copies of the request: this copy was not decided on."""
    if reply.status == 503:
        return True
    return reply.status == 409 and str(json.loads(reply.body).get("type", "")).endswith("/request-expired")
