"""Where a pool is at home, if two distant sites have an etcd each; what etcd has of it, and who may serve by it. Pure.

Each of the two etcds has a record that says what its side is (:class:`Home`). A pool without such a record is at home
in its only etcd. The *term* only grows: of two sides that both say that they are the home, the one with the higher term
is right, and the other one must be fenced.

A home beats: once it has asked the peer for its term, ``understudy mirror`` at its side writes ``home-beat`` each
second. A process that has just started, or was cut off from etcd, serves nothing until it sees a beat *arrive*. A
stored value proves nothing: an etcd that comes back from an outage has the values, and the leases, of the time before.
"""

import math
from enum import StrEnum
from typing import TypeVar

import msgspec

from understudy.statesync.parsing.stored import brief, compact_json, read_object

BEAT_INTERVAL = 1.0
"""Seconds between two beats of a home."""
SETTLED_AFTER = 0.5
"""Seconds after an outage of etcd in which what arrives may still be from before it: the watch goes on where it was."""
CONFIRM_WITHIN = 30.0
"""Seconds of silence after which a home must be confirmed again: of etcd, and with ``on_peer_lost: stop`` of its peer.
"""
STOP_MARGIN = 5.0
"""Seconds more for which a take-over waits with ``on_peer_lost: stop``: beats under way, and clocks that run apart."""
UNKNOWN = -1
EPOCHS_SKIPPED = 1000
"""By how much a take-over raises epochs above the highest that the mirror knows: the old home may have used more."""


T = TypeVar("T", bound=msgspec.Struct)


class Role(StrEnum):
    """What an etcd's side is for the pool.

    ``closing`` is a home that takes no calls any more and saves what is in memory alone. ``opening`` is a mirror that
    becomes the home. ``fenced`` is an old home.
    """

    HOME = "home"
    CLOSING = "closing"
    FENCED = "fenced"
    MIRROR = "mirror"
    OPENING = "opening"


class PeerLost(StrEnum):
    """What a home does while its peer does not answer."""

    CONTINUE = "continue"
    STOP = "stop"


class Tail(StrEnum):
    """What became of the writes that an old home has and the new home does not."""

    NONE = "none"
    PENDING = "pending"
    KEPT = "kept"


class Home(msgspec.Struct, frozen=True):
    """What one side of a pool is. ``since`` is wall time in seconds; ``by`` and ``why`` are for people.

    Attributes:
        site: the name of this side.
        peer: the name of the other side.
        term: grows with every change of home.
        applied: of a home that was a mirror: the revision of the peer's etcd up to which it has everything.
        planned: whether it became the home by a move, which loses nothing.
        tail: of an old home; ``file`` is where its tail is kept.
        lost_writes: writes in the tail; of a new home those of its peer's tail. :data:`UNKNOWN` until they are counted.
        lost_sessions: how many sessions these are about.
    """

    site: str
    role: Role
    peer: str
    term: int = 1
    since: float = 0.0
    by: str = ""
    why: str = ""
    on_peer_lost: PeerLost = PeerLost.CONTINUE
    applied: int = 0
    planned: bool = True
    tail: Tail = Tail.NONE
    file: str = ""
    lost_writes: int = 0
    lost_sessions: int = 0

    def encode(self) -> bytes:
        """The record as compact JSON."""
        return compact_json(self)

    @classmethod
    def decode(cls, value: bytes) -> "Home":
        """Read a record; raises ``ValueError`` on anything that is not one."""
        return _read(cls, value)


class Mirrored(msgspec.Struct, frozen=True):
    """How far a mirror has come.

    Attributes:
        revision: of the home's etcd; everything up to there is in the mirror, and nothing later.
        whole: it is so. False while everything is copied anew, which leaves sessions of several revisions side by side.
        epoch: the highest epoch of any owner record of the home so far.
        complete_at: the mirror has everything that was written until then (wall time of the mirror, in seconds).
        applied_at: when this was written, by the same clock.
        writes: writes to sessions that were applied since the process started.
        rate: the most writes within a second, of the last minute.
    """

    revision: int
    whole: bool = False
    epoch: int = 0
    complete_at: float = 0.0
    applied_at: float = 0.0
    writes: int = 0
    rate: int = 0

    def encode(self) -> bytes:
        """The record as compact JSON."""
        return compact_json(self)

    @classmethod
    def decode(cls, value: bytes) -> "Mirrored":
        """Read a record; raises ``ValueError`` on anything that is not one."""
        return _read(cls, value)


class Loss(msgspec.Struct, frozen=True):
    """What is lost if the home dies at some moment: at most so many writes, and those of the last ``seconds``."""

    writes: int
    seconds: float


def _read(kind: type[T], value: bytes) -> T:
    try:
        return msgspec.convert(read_object(value), kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{kind.__name__}: {brief(str(error))}") from None


def loss_now(mirrored: Mirrored, now: float) -> Loss:
    """What would be lost if the home had died at ``now`` (wall time of the mirror).

    An upper bound as long as no second has more writes than the worst one of the last minute.
    """
    seconds = max(now - mirrored.complete_at, 0.0)
    return Loss(mirrored.rate * math.ceil(seconds), seconds)


def absence(home: Home | None, *, confirmed: bool) -> str:
    """Why processes of this side must not serve the pool, '' if they may.

    ``confirmed``: the process knows that this side still is the home.
    """
    if home is None:
        return ""
    match home.role:
        case Role.HOME:
            waits = f"site {home.peer} has not confirmed yet that site {home.site} still is its home"
            return "" if confirmed else f"{waits}: 'understudy home status' says why"
        case Role.CLOSING:
            return f"its home moves from site {home.site} to site {home.peer}"
        case Role.OPENING:
            return f"its home moves from site {home.peer} to site {home.site}"
        case _:
            return f"it is at home on site {home.peer}"


def is_confirmed(home: Home, *, confirmed_at: float, well_since: float, silent_for: float, now: float) -> bool:
    """Whether a process of the home knows that it still is the home. Times are monotonic.

    Args:
        home: the record.
        confirmed_at: when the last beat arrived, or the record changed.
        well_since: when this process started, or its watch heard etcd again after an outage (2.5 s of silence).
        silent_for: for how long etcd has been silent.
        now: the time.
    """
    if confirmed_at < well_since + SETTLED_AFTER or silent_for > CONFIRM_WITHIN:
        return False
    return home.on_peer_lost is PeerLost.CONTINUE or now - confirmed_at <= CONFIRM_WITHIN


def may_beat(home: Home, *, asked_at: float, cut_off_until: float, now: float) -> bool:
    """Whether the guard of a home may say that it still is the home. Times are monotonic.

    ``asked_at``: when the peer, or an operator, last said so.
    """
    if asked_at < cut_off_until:
        return False
    return home.on_peer_lost is PeerLost.CONTINUE or now - asked_at <= 2 * BEAT_INTERVAL


def outranked(own: Home, peer: Home | None) -> bool:
    """Whether the peer has become the home of a later term, so that this side must be fenced."""
    return peer is not None and peer.term > own.term and peer.role in (Role.HOME, Role.OPENING)
