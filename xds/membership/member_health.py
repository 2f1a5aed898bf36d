"""What a control server knows of the health of one boot of a member: plain data for the failure detector.

A member that restarts has a new boot id. Everything here is therefore about one *(member, boot)*.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from understudy.statesync.heartbeat.heartbeat import BEAT_INTERVAL
from understudy.statesync.pool.records import MemberState

SECOND = 1_000_000_000

LATE = 150 * SECOND // 1000
"""A member whose event loop was this late (in ns) within ``LOAD_WINDOW`` counts as late.

By default Envoy asks another member after twice this time. Measured at 800 requests a second on four cores: below 50 ms
in normal operation, up to 110 ms while a member is frozen, 250 to 1,300 ms in overload."""

MemberBoot = tuple[str, str]
"""A member and its boot id."""


class LivenessState(StrEnum):
    """What this server holds of one boot of a member."""

    TRUSTED = "trusted"
    """Registered, but this server has never had a beat from it."""
    ALIVE = "alive"
    """Its beats arrive."""
    SUSPECT = "suspect"
    """Its stream closed or fell silent, or its record vanished. It is probed until a beat arrives."""
    LOST = "lost"
    """Proven dead, or silent in every way."""


@dataclass(frozen=True, slots=True)
class DetectorTimeouts:
    """The times of the failure detector, in nanoseconds.

    The controller sets them from ``liveness`` of the pool's spec; what is written here holds until it has read that.

    Attributes:
        silence: a stream without a beat for this long makes its member a suspect.
        unanswered: a suspect that answers no probe for this long is lost.
        running: the same, if another member reports that the suspect's process runs.
        site_patience: a suspect whose whole site is silent is lost if it does not answer through etcd for this long.
        load_cap: the most that load of the member, or of this process, adds to each of the three.
        probe_interval: between two probes of one suspect.
        unheard: a registered member that opens no stream for this long is probed.
        vanished: a member whose record is gone, and whose address was never known, is lost after this time.
        revival: a lost boot must beat without a gap for this long to count as alive again.
        pause: if a tick is later than this, this process itself stood still. Silence is then counted anew.
    """

    silence: int = int(3 * BEAT_INTERVAL * SECOND)
    unanswered: int = SECOND // 2
    running: int = 2 * SECOND
    site_patience: int = 600 * SECOND // 1000
    load_cap: int = 2 * SECOND
    probe_interval: int = 1 * SECOND
    unheard: int = 2 * SECOND
    vanished: int = 5 * SECOND
    revival: int = 1 * SECOND
    pause: int = SECOND // 4


class Probe(msgspec.Struct, frozen=True):
    """A probe to carry out: does this boot of the member still answer at ``peer`` (``host:port``)?

    ``timeout``: how long it may take to answer, in ns. ``etcd_timeout``: how long it may take to answer through etcd if
    it does not answer there; 0 not to ask that way.
    """

    member: str
    boot: str
    peer: str
    timeout: int = DetectorTimeouts().unanswered
    etcd_timeout: int = 0


class ProbeOutcome(StrEnum):
    """The result of a probe."""

    ANSWERED = "answered"
    THROUGH_ETCD = "answered through etcd only"
    REFUSED = "refused"
    SILENT = "silent"
    VOID = "void"
    """The probe proves nothing: this process stood still meanwhile, or the certificates are at fault."""


@dataclass(frozen=True, slots=True)
class Death:
    """The death of one boot of a member, as this server found it. Times in ns.

    Attributes:
        boot: the boot id.
        cause: why it counts as dead.
        last_sign: its last sign of life.
        found: when it was found dead.
        closed: when its connection ended while it was alive; 0 if that is not how the death was noticed.
        doubt: for how long after the last sign it may have lived, if ``closed`` is 0.
        site: the member's site, if known.
    """

    boot: str
    cause: str
    last_sign: int
    found: int
    closed: int = 0
    doubt: int = 0
    site: str = ""


@dataclass(frozen=True, slots=True)
class MemberHealth:
    """What is known of one boot of a member. Times in ns; 0 means never.

    Attributes:
        peer: address of its peer port, from its record.
        site: its site, from its record.
        recorded: whether it has a record in etcd.
        streams: the heartbeat streams that it holds open.
        state: what its newest beat said; so ``reason``, ``applied``, ``stall``, ``lacking`` and ``pulses``.
        pulses: whose pulse it takes, and whether that process runs.
        last_sign: the newest proof of life: a beat, an answered probe, or the moment its record was first seen.
        unlinked: since when it answers through etcd only; 0 if it is heard, or does not answer.
        closed_at: when its last stream ended while it was alive. Its process ran until then.
        death: its death, if it is lost.
    """

    member: str
    boot: str
    liveness: LivenessState = LivenessState.TRUSTED
    peer: str = ""
    site: str = ""
    recorded: bool = False
    streams: frozenset[int] = frozenset()
    state: MemberState | None = None
    reason: str = ""
    applied: int = 0
    stall: int = 0
    lacking: int = 0
    pulses: Mapping[MemberBoot, bool] = field(default_factory=dict)
    last_sign: int = 0
    unlinked: int = 0
    closed_at: int = 0
    first_seen: int = 0
    vanished_at: int = 0
    beating_since: int = 0
    next_probe: int = 0
    probing: bool = False
    death: Death | None = None

    @property
    def heard(self) -> bool:
        """Whether this server ever had a beat from it."""
        return self.beating_since != 0

    @property
    def beating(self) -> bool:
        """Whether its beats arrive here now."""
        return self.liveness is LivenessState.ALIVE and bool(self.streams)

    @property
    def unknown_since(self) -> int:
        """Since when nothing is known of it: neither a record nor a sign of life."""
        return max(self.first_seen, self.last_sign, self.vanished_at)

    @property
    def explanation(self) -> str:
        """Why it is lost or, while it lives, the reason that its newest beat gave for its state."""
        if self.death:
            return self.death.cause
        return "it answers through etcd only: is the link to its site cut?" if self.unlinked else self.reason


class MemberChange(msgspec.Struct, frozen=True):
    """A change of one boot of a member that others act on: death, return, another state, late or in time again."""

    before: MemberHealth | None
    after: MemberHealth

    @property
    def death(self) -> Death | None:
        """The death, if the change is one."""
        already_dead = self.before is not None and self.before.death is not None
        return None if already_dead else self.after.death

    @property
    def goes_down(self) -> bool:
        """Whether the member began to report that it cannot serve."""
        down_before = self.before is not None and self.before.state is MemberState.DOWN
        return self.after.state is MemberState.DOWN and not down_before
