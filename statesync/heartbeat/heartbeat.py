"""The heartbeats between a sidecar and a control server, as they are sent.

A sidecar opens one bidirectional gRPC stream to every control server (method :data:`METHOD`) and sends a
:class:`Beat` every ``BEAT_INTERVAL`` seconds and at once when something changes. The server sends a :class:`BeatAnswer`
every ``ANSWER_INTERVAL``. A killed process is noticed at once, since its kernel closes the socket.

While packets are lost, TCP waits longer and longer before it sends again. So either side ends a stream on which it has
received nothing for :data:`STREAM_SILENCE`, and the sidecar opens a new one on a new connection.

How long a member may be silent is computed in :mod:`understudy.statesync.heartbeat.adaptive_timeout`.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass

from understudy.statesync.heartbeat.load_report import LoadReport
from understudy.statesync.pool.records import MemberState, Record

SERVICE = "understudy.v1.Liveness"
METHOD = f"/{SERVICE}/Stream"
BEAT_INTERVAL = 0.1
ANSWER_INTERVAL = 0.5
STREAM_SILENCE = 3.0
"""Seconds after which a silent stream is ended: more than a busy process is late, less than TCP may wait."""
ANSWERS = "understudy-answers"
"""Initial metadata of a server that sends answers; a stream to any other is never ended for silence."""
PINGS = (
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
)
"""gRPC's own pings on a connection to a control server, which ends calls that are silent for another reason."""
MOST_CLAIMS = 32
"""Claims that one beat tells of at the most."""
MOST_PULSES = 256
"""Pulses that one beat tells of at the most."""
_MOVING = re.compile(rb'"stall":((?:0|[1-9]\d{0,5})\.\d{1,6}),"lacking":(0|[1-9]\d{0,8}),"sent":(0|[1-9]\d{0,17}),')
"""The numbers of a beat at rest that change, as :meth:`Beat.encode` writes them. ``sent`` has no more than 64 bits."""
MOST_STANDSTILLS = 4
"""Standstills that one beat tells of at the most."""


@dataclass(frozen=True, slots=True)
class ClaimReport(Record):
    """How far one claim of a takeover has come, as the member that made it tells. Times in ns on that member's clock.

    ``trace`` is the takeover's trace id in hex, ``slots`` how many slots the claim won. ``by_request``: a caller was
    the first witness, not the table. ``began`` is when the member had its witnesses, ``claimed`` when the transaction
    was through, ``opened`` when all its slots took calls, ``answered`` when the first call was answered well; 0: not
    yet. ``awaited``: that call had come before the slots were open. ``waiting``: calls wait in these slots and none was
    answered yet. ``request`` is the W3C traceparent of the call that was answered, if it carried one.
    """

    trace: str
    slots: int
    began: int
    claimed: int
    by_request: bool = False
    opened: int = 0
    answered: int = 0
    awaited: bool = False
    waiting: bool = False
    request: str = ""

    def __post_init__(self) -> None:
        for name in ("slots", "began", "claimed", "opened", "answered"):
            if type(getattr(self, name)) is not int:
                raise TypeError(f"ClaimReport: {name} is no whole number")
        for name in ("trace", "request"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"ClaimReport: {name} is no text")


@dataclass(frozen=True, slots=True)
class Beat(Record):
    """A sign of life. ``applied`` is the etcd revision that the member's replica has reached.

    ``stall``: the longest time in seconds that the sidecar's event loop was late within the last ``LOAD_WINDOW``.
    ``pulses`` tells, of every (member, boot) whose pulse the member takes, whether it runs; see
    :mod:`understudy.statesync.heartbeat.pulse`. ``lacking`` is how many slots it should hold by the table and does not
    hold in full. ``sent`` is the time in ns, on the sender's clock, of this beat (0: not told), ``claims`` what its
    claims of late have come to, and ``request`` the W3C traceparent of the newest call that it answered as owner, if it
    carried one. ``answers``: the sender reads answers; one that does not would let them pile up. ``stood`` tells of the
    times of late in which its process stood still (it neither ran nor waited for a CPU): for how many seconds, and how
    many seconds ago that ended. ``load`` is the member's load, in one beat of many.
    """

    pool: str
    member: str
    boot: str
    state: MemberState
    applied: int
    reason: str = ""
    stall: float = 0.0
    lacking: int = 0
    sent: int = 0
    claims: Sequence[ClaimReport] = ()
    request: str = ""
    pulses: Sequence[tuple[str, str, bool]] = ()
    answers: bool = False
    stood: Sequence[tuple[float, float]] = ()
    load: LoadReport | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", MemberState(self.state))
        object.__setattr__(self, "pulses", _pulses(self.pulses))
        object.__setattr__(self, "stood", _stood(self.stood))
        object.__setattr__(self, "load", _load(self.load))
        if not isinstance(self.claims, list | tuple):
            raise TypeError("Beat: claims is a list")
        told = [one if isinstance(one, ClaimReport) else ClaimReport.of(one) for one in self.claims[:MOST_CLAIMS]]
        object.__setattr__(self, "claims", tuple(told))
        if type(self.sent) is not int or not isinstance(self.request, str):
            raise TypeError("Beat: sent is a whole number, request a text")


class BeatReader:
    """Reads the beats of one stream.

    A member at rest says the same in every beat but for the numbers ``sent`` and, on a busy machine, ``stall``. Parsing
    it again was a quarter of the CPU time of a control server at rest, so only those numbers are read again. Any other
    beat is parsed as usual.
    """

    __slots__ = ("_around", "_last")

    def __init__(self) -> None:
        self._around: tuple[bytes, bytes] | None = None
        self._last: Beat | None = None

    def read(self, raw: bytes) -> Beat:
        """The beat in ``raw``. Raises ``ValueError`` or ``TypeError`` on anything that is not one."""
        around, numbers = _around_moving(raw)
        if self._last is not None and around is not None and around == self._around:
            beat = copy.copy(self._last)
            for name, number in zip(("stall", "lacking", "sent"), numbers, strict=True):
                object.__setattr__(beat, name, number)
            return beat
        self._around = None
        beat = Beat.decode(raw)
        if around is not None:
            self._around, self._last = around, beat
        return beat


def _around_moving(raw: bytes) -> tuple[tuple[bytes, bytes] | None, tuple[float, int, int]]:
    """What stands before and behind the numbers that change, and these; nothing unless they are there once, and plain.

    Their names with a colon occur in no text: JSON escapes quotation marks there.
    """
    parts = _MOVING.split(raw)
    if len(parts) != 5 or any(b'"sent":' in part or b'"stall":' in part for part in (parts[0], parts[4])):
        return None, (0.0, 0, 0)
    return (parts[0], parts[4]), (float(parts[1]), int(parts[2]), int(parts[3]))


@dataclass(frozen=True, slots=True)
class BeatAnswer(Record):
    """What a control server says to a beat: the beat's ``sent``, and its own wall clock in ms."""

    sent: int
    clock: int

    def __post_init__(self) -> None:
        if type(self.sent) is not int or type(self.clock) is not int:
            raise TypeError("BeatAnswer: sent and clock are whole numbers")


def _load(raw: object) -> LoadReport | None:
    return raw if raw is None or isinstance(raw, LoadReport) else LoadReport.of(raw)


def _pulses(raw: object) -> tuple[tuple[str, str, bool], ...]:
    if not isinstance(raw, list | tuple):
        raise TypeError("Beat: pulses is a list")
    told = [tuple(one) if isinstance(one, list | tuple) else () for one in raw[:MOST_PULSES]]
    if any([type(part) for part in one] != [str, str, bool] for one in told):
        raise TypeError("Beat: pulses is a list of members, their boots, and whether they run")
    return tuple((member, boot, runs) for member, boot, runs in told)


def _stood(raw: object) -> tuple[tuple[float, float], ...]:
    if not isinstance(raw, list | tuple):
        raise TypeError("Beat: stood is a list")
    told = [tuple(one) if isinstance(one, list | tuple) else () for one in raw[:MOST_STANDSTILLS]]
    if any(len(one) != 2 or not all(type(part) in (int, float) and 0 <= part <= 1e9 for part in one) for one in told):
        raise TypeError("Beat: stood is a list of seconds, and of how long ago that ended")
    return tuple((float(seconds), float(ago)) for seconds, ago in told)
