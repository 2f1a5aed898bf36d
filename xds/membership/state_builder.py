"""What this control server sees: joins the mirrored records and the book of life into one :class:`World`.

Holds the little memory that neither of them has: the spec in force (a spec that contradicts the running pool
is refused and named, the pool keeps what it has), and the records of members whose lease went although they
still own slots, since a vanished record alone is no death. Nothing can be seen before the mirror is in step
and a spec exists.
"""

import logging
import time
from collections.abc import Callable

from understudy.statesync.etcd.informer import InformerBatch
from understudy.statesync.heartbeat.heartbeat import BEAT_INTERVAL
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import NO_ETCD, Member, MemberState, Owner, Phase
from understudy.statesync.pool.spec import PoolSpec, SpecError, refuse_contradiction
from understudy.statesync.pool.state import At, PoolState
from understudy.xds.membership.cluster_state import Death, World
from understudy.xds.membership.failure_detector import SECOND, LivenessBook, Pulse, Standing

logger = logging.getLogger(__name__)


class Observer:
    """Follows one pool; :meth:`world` is cheap to call again while nothing has changed."""

    def __init__(self, keys: PoolKeys, book: LivenessBook, wall: Callable[[], float] = time.time) -> None:
        """``wall`` tells the time in seconds: the operators' intents have their ends by it."""
        self.state = PoolState(keys)
        self.revision = 0
        self.spec: PoolSpec | None = None
        self.spec_fault = ""
        self._pool = keys.pool
        self._book = book
        self._wall = wall
        self._remembered: dict[str, Member] = {}
        self._seen: tuple[tuple[int, int, frozenset[str]] | None, World | None] = (None, None)

    @property
    def members(self) -> list[Member]:
        """The registered members' records."""
        return [at.record for at in self.state.members.values()]

    @property
    def owning(self) -> set[tuple[str, str]]:
        """The members, with their boots, that owner records name."""
        return {(at.record.active, at.record.boot) for at in self.state.owners.values()}

    @property
    def table_revision(self) -> int:
        """The revision at which the table was last written; 0 when there is none."""
        return self.state.table.revision if self.state.table else 0

    @property
    def table_fence(self) -> int:
        """The revision that a new table must compare: that of what stands there, even if it cannot be read."""
        return self.state.unreadable.get(self.state.keys.table, self.table_revision)

    def apply(self, batch: InformerBatch) -> None:
        """Take in what the mirror brings."""
        before = {member.member: member for member in self.members}
        self.state.apply(batch)
        self.revision = max(self.revision, batch.revision)
        self._follow_spec()
        owning = self.owning
        for name, member in (self._remembered | before).items():
            if name not in self.state.members and (name, member.boot) in owning:
                self._remembered[name] = member
            else:
                self._remembered.pop(name, None)
        self._seen = (None, None)

    def world(self) -> World | None:
        """The pool as it is now; None while there is no spec or the mirror has brought nothing yet."""
        if self.spec is None or not self.revision:
            return None
        offline = self.state.offline(self._wall())
        key = (self.revision, self._book.version, offline)
        if self._seen[0] != key:
            self._seen = (key, self._look(self.spec, offline))
        return self._seen[1]

    def look_again(self) -> float | None:
        """Seconds until a site comes back by itself; None if none will."""
        now = self._wall()
        ends = [at.record.until for at in self.state.sites.values() if at.record.until > now]
        return min(ends) - now if ends else None

    def _look(self, spec: PoolSpec, offline: frozenset[str]) -> World:
        registered = {member.member: member for member in self.members}
        vanished = {
            name: member
            for name, member in self._remembered.items()
            if name not in registered and not self._book.lost(name, member.boot)
        }
        members = {**vanished, **registered}
        pulses = self._book.pulses
        return World(
            spec=spec,
            members=members,
            states={name: self._book.state_of(member) for name, member in members.items()},
            registered={name: member.boot for name, member in registered.items()},
            owners={s: at.record for s, at in self.state.owners.items() if s < spec.slots},
            table=self.state.table.record if self.state.table else None,
            deaths=self._deaths(registered),
            newer=frozenset(s for s, at in self.state.owners.items() if self._newer_than_table(at)),
            offline=offline,
            beating=frozenset(who for who, p in pulses.items() if p.standing is Standing.ALIVE and p.streams),
            cut_off=frozenset(name for name, member in members.items() if self._cut_off(member)),
            late=self._book.late,
        )

    def _cut_off(self, member: Member) -> bool:
        pulse = self._book.pulses.get((member.member, member.boot))
        heard = pulse if pulse is not None and pulse.streams and pulse.state is not None else member
        return heard.state is MemberState.DOWN and heard.reason.startswith(NO_ETCD)

    def _newer_than_table(self, at: At[Owner]) -> bool:
        return at.revision > self.table_revision and at.record.phase is Phase.STABLE

    def _deaths(self, registered: dict[str, Member]) -> dict[str, Death]:
        """Each member's death that still matters: of its registered boot, or else of one that owns slots."""
        owning = self.owning
        found: dict[str, Pulse] = {}
        for (name, boot), pulse in self._book.pulses.items():
            current = name in registered and registered[name].boot == boot
            if pulse.standing is not Standing.LOST or not (current or (name, boot) in owning):
                continue
            if name not in found or current or pulse.lost_at > found[name].lost_at:
                found[name] = pulse
        known = self._remembered | registered
        return {name: death_of(pulse, known[name].site if name in known else "") for name, pulse in found.items()}

    def _follow_spec(self) -> None:
        """Take over the spec in etcd unless it contradicts the pool that runs."""
        if self.state.spec is None:
            unreadable = self.state.faults.get(self.state.keys.spec)
            missing = f"the spec cannot be read: {unreadable}" if unreadable else "the pool has no spec in etcd"
            self._note("the spec is gone from etcd; the old one is kept" if self.spec else missing)
            return
        wanted = self.state.spec.record
        slots = self.state.table.record.slots if self.state.table else wanted.slots
        in_force = self.spec if self.spec is not None and self.spec.slots == slots else None
        running = in_force or wanted.model_copy(update={"slots": slots})
        fault = _refusal(running, wanted, self._pool)
        if not fault:
            self.spec = wanted
        elif running.pool == self._pool:
            self.spec = running
        self._note(fault)

    def _note(self, fault: str) -> None:
        if fault and fault != self.spec_fault:
            logger.warning("pool %s: %s", self._pool, fault)
        self.spec_fault = fault


def death_of(pulse: Pulse, site: str = "") -> Death:
    """When the life of a lost boot ended, as far as this server can tell. ``site`` is the member's.

    One that falls silent may have lived until its next beat was due; of one that was only probed nothing is known from
    its last sign of life until it was found dead.
    """
    closed = pulse.closed_at if pulse.last_sign <= pulse.closed_at <= pulse.lost_at else 0
    unknown = pulse.lost_at - pulse.last_sign
    if pulse.streams:
        unknown = min(unknown, int(BEAT_INTERVAL * SECOND) + pulse.stall)
    return Death(pulse.boot, pulse.cause, pulse.last_sign, pulse.lost_at, closed, unknown, site)


def _refusal(running: PoolSpec, wanted: PoolSpec, pool: str) -> str:
    """Why ``wanted`` cannot follow ``running``; empty when it can."""
    if wanted.pool != pool:
        return f"pool: the spec in etcd is of pool {wanted.pool!r}, not {pool!r}"
    try:
        refuse_contradiction(running, wanted)
    except SpecError as error:
        return str(error)
    return ""
