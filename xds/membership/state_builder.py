"""Builds the :class:`ClusterState` from the records that the etcd informer holds, and the failure detector.

Keeps two things that neither of them has: the spec in force (a spec that contradicts the running pool is refused and
reported, and the old spec stays), and the records of members whose lease ended although they still own slots, since a
vanished record alone is no death. There is no state before the informer has read etcd and a spec exists.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from understudy.statesync.etcd.informer import InformerBatch
from understudy.statesync.pool.home import Role
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.predicted import leaving_members
from understudy.statesync.pool.rebalance import Approved, in_force
from understudy.statesync.pool.records import NO_ETCD, NOBODY_ELSE, Leaving, Member, MemberState, Owner, Phase
from understudy.statesync.pool.site_records import PoolInGroup
from understudy.statesync.pool.spec import PoolSpec, SpecError, refuse_contradiction
from understudy.statesync.pool.state import At, PoolState
from understudy.xds.membership.cluster_state import ClusterState
from understudy.xds.membership.failure_detector import FailureDetector
from understudy.xds.membership.member_health import Death, MemberBoot

logger = logging.getLogger(__name__)


def nothing_known(_cluster: ClusterState, _member: str) -> str:
    """The default of ``too_busy``: the load of the members is not known."""
    return ""


UNKNOWN_ANSWER_MS = 1000
"""How long answers may take as long as front Envoys have not reported enough of them."""


class StateBuilder:
    """Follows one pool; :meth:`current` costs little while nothing has changed.

    Args:
        keys: key names of the pool.
        detector: must call :meth:`members_changed` with every change.
        wall: the time in seconds since 1970; operators' intents end by it.
        too_busy: why the other members cannot carry the slots of one, by their load; '' if they can, or nobody knows.
    """

    def __init__(
        self,
        keys: PoolKeys,
        detector: FailureDetector,
        wall: Callable[[], float] = time.time,
        too_busy: Callable[[ClusterState, str], str] = nothing_known,
    ) -> None:
        self.state = PoolState(keys)
        self.revision = 0
        self.spec: PoolSpec | None = None
        self.spec_fault = ""
        self._pool = keys.pool
        self._detector = detector
        self._wall = wall
        self._too_busy = too_busy
        self._remembered: dict[str, Member] = {}
        self._answer_ms = UNKNOWN_ANSWER_MS
        self._group: Mapping[str, PoolInGroup] | None = None
        self._built: ClusterState | None = None

    @property
    def members(self) -> list[Member]:
        """The registered members' records."""
        return [at.record for at in self.state.members.values()]

    @property
    def owning(self) -> set[MemberBoot]:
        """The members, with their boots, that owner records name."""
        return {(at.record.active, at.record.boot) for at in self.state.owners.values()}

    @property
    def table_revision(self) -> int:
        """The revision at which the table was last written; 0 when there is none."""
        return self.state.table.revision if self.state.table else 0

    @property
    def table_fence(self) -> int:
        """The revision that a new table must compare: that of the present value, even if it cannot be read."""
        return self.state.unreadable.get(self.state.keys.table, self.table_revision)

    def apply(self, batch: InformerBatch) -> None:
        """Take in a batch of changes from etcd."""
        before = {member.member: member for member in self.members}
        self.state.apply(batch)
        self.revision = max(self.revision, batch.revision)
        self._update_spec()
        owning = self.owning
        for name, member in (self._remembered | before).items():
            if name not in self.state.members and (name, member.boot) in owning:
                self._remembered[name] = member
            else:
                self._remembered.pop(name, None)
        self._built = None

    def members_changed(self) -> None:
        """The health of a member has changed: the next :meth:`current` builds the state anew."""
        self._built = None

    def answers_took(self, within_ms: int) -> bool:
        """Envoys reported that nearly all answers came within this time. Whether that is new."""
        if within_ms == self._answer_ms:
            return False
        self._answer_ms, self._built = within_ms, None
        return True

    def group_says(self, others: Mapping[str, PoolInGroup] | None) -> None:
        """What the other pools of the group say of their sites; None while that is not known."""
        self._group, self._built = others, None

    @property
    def group_known(self) -> bool:
        """Whether it is known what the other pools of the group say, if the pool is in one."""
        return self._group is not None or self.spec is None or not self.spec.group

    def complete(self) -> frozenset[MemberBoot]:
        """The processes whose beats arrive here, that know the table in force, and that lack none of its copies."""
        return frozenset(
            who
            for who, health in self._detector.members.items()
            if health.beating and not health.lacking and health.applied >= self.table_revision
        )

    def current(self) -> ClusterState | None:
        """The pool as it is now; None while there is no spec or the informer has brought nothing yet."""
        if self.spec is None or not self.revision:
            return None
        offline = self.state.offline(self._wall())
        if self._built is None or self._built.offline != offline:
            self._built = self._build(self.spec, offline)
        return self._built

    def seconds_until_site_returns(self) -> float | None:
        """Seconds until the first offline site comes back by itself; None if none will."""
        now = self._wall()
        ends = [at.record.until for at in self.state.sites.values() if at.record.until > now]
        return min(ends) - now if ends else None

    def _build(self, spec: PoolSpec, offline: frozenset[str]) -> ClusterState:
        registered = {member.member: member for member in self.members}
        vanished = {
            name: member
            for name, member in self._remembered.items()
            if name not in registered and not self._detector.death_of(name, member.boot)
        }
        members = {**vanished, **registered}
        cluster = ClusterState(
            spec=spec,
            members=members,
            states={name: self._detector.state_of(member) for name, member in members.items()},
            registered={name: member.boot for name, member in registered.items()},
            owners={s: at.record for s, at in self.state.owners.items() if s < spec.slots},
            table=self.state.table.record if self.state.table else None,
            deaths=self._deaths(registered),
            newer=frozenset(s for s, at in self.state.owners.items() if self._newer_than_table(at)),
            offline=offline,
            beating=frozenset(who for who, health in self._detector.members.items() if health.beating),
            cut_off=frozenset(name for name, member in members.items() if self._cut_off(member)),
            late=self._detector.most_late,
            answer_ms=self._answer_ms,
            approved=self._approved(spec),
            lacking=self.state.lacking(),
            ended_rests=self.state.ended_rests(),
            group=(self._group or {}) if spec.group else {},
            away=self.state.home is not None and self.state.home.record.role is not Role.HOME,
        )
        return replace(cluster, leaving=self._leaving(cluster)) if spec.predictive == "move" else cluster

    def _leaving(self, cluster: ClusterState) -> dict[str, Leaving]:
        members = {name: cluster.members[name] for name in cluster.registered}
        states = {name: cluster.reported_state(name) for name in members}
        before = cluster.table.leaving if cluster.table else {}
        return leaving_members(members, states, before, lambda name: self._too_busy(cluster, name))

    def _approved(self, spec: PoolSpec) -> Approved | None:
        plan, progress = self.state.move_plan, self.state.move_progress
        return in_force(spec, plan.record if plan else None, progress.record if progress else None)

    def _cut_off(self, member: Member) -> bool:
        health = self._detector.members.get((member.member, member.boot))
        reported = health if health is not None and health.streams and health.state is not None else member
        faulty = reported.state in (MemberState.DOWN, MemberState.ATTENTION)
        return faulty and reported.reason.removeprefix(NOBODY_ELSE).startswith(NO_ETCD)

    def _newer_than_table(self, at: At[Owner]) -> bool:
        return at.revision > self.table_revision and at.record.phase is Phase.STABLE

    def _deaths(self, registered: dict[str, Member]) -> dict[str, Death]:
        """Each member's death that still matters: of its registered boot, or else of one that owns slots."""
        owning = self.owning
        found: dict[str, Death] = {}
        for (name, boot), health in self._detector.members.items():
            current = name in registered and registered[name].boot == boot
            if health.death is None or not (current or (name, boot) in owning):
                continue
            if name not in found or current or health.death.found > found[name].found:
                found[name] = health.death
        return found

    def _update_spec(self) -> None:
        """Use the spec in etcd unless it contradicts the running pool."""
        if self.state.spec is None:
            unreadable = self.state.faults.get(self.state.keys.spec)
            missing = f"the spec cannot be read: {unreadable}" if unreadable else "the pool has no spec in etcd"
            self._report("the spec is gone from etcd; the old one stays in force" if self.spec else missing)
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
        self._report(fault)

    def _report(self, fault: str) -> None:
        if fault and fault != self.spec_fault:
            logger.warning("pool %s: %s", self._pool, fault)
        self.spec_fault = fault


def _refusal(running: PoolSpec, wanted: PoolSpec, pool: str) -> str:
    """Why ``wanted`` cannot follow ``running``; empty when it can."""
    if wanted.pool != pool:
        return f"pool: the spec in etcd is of pool {wanted.pool!r}, not {pool!r}"
    try:
        refuse_contradiction(running, wanted)
    except SpecError as error:
        return str(error)
    return ""
