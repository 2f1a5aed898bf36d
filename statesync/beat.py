"""The heartbeat between a sidecar and a control server, as both put it on the wire.

A sidecar opens one bidirectional gRPC stream to every control server (method :data:`METHOD`) and sends a
:class:`Beat` every ``BEAT_INTERVAL`` seconds and at once when something changes. The server answers nothing; the open
stream is the answer. A killed process is seen at once, since its kernel closes the socket.
"""

from dataclasses import dataclass

from statesync.pool import MemberState, Record

SERVICE = "understudy.v1.Liveness"
METHOD = f"/{SERVICE}/Stream"
BEAT_INTERVAL = 0.1


@dataclass(frozen=True, slots=True)
class Beat(Record):
    """A sign of life. ``applied`` is the etcd revision that the member's replica has reached."""

    pool: str
    member: str
    boot: str
    state: MemberState
    applied: int
    reason: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", MemberState(self.state))
