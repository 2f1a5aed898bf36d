"""When a drill may begin, when it is over, and what its result is worth. Pure: records in, reasons out.

A drill breaks something on purpose, so it asks for more than the pool itself would: every slot with a living, proven
standby, nothing on the move, nobody out of service. Breaking and mending is done by ``fault_injectors``, the course of
events by ``drill``.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from understudy.deploy.inspect.converged import not_converged
from understudy.deploy.inspect.member_views import order_of, slots_of
from understudy.statesync.etcd.client import EndpointStatus
from understudy.statesync.pool.records import MemberState
from understudy.statesync.pool.spec import Objectives
from understudy.statesync.pool.state import PoolState


class Kind(StrEnum):
    """What is done to the pool."""

    KILL = "kill"
    FREEZE = "freeze"
    DRAIN = "drain"
    ROLLING = "rolling"
    ETCD_LEADER = "etcd-leader"
    CONTROL = "control"

    @property
    def of_a_member(self) -> bool:
        """Whether it is about one member of the pool."""
        return self in (Kind.KILL, Kind.FREEZE, Kind.DRAIN)

    @property
    def of_a_leader(self) -> bool:
        """Whether it is about whoever leads the control servers, or etcd: then no slot need change its active."""
        return self in (Kind.CONTROL, Kind.ETCD_LEADER)


@dataclass(frozen=True, slots=True)
class Facts:
    """A pool before a drill. ``sync`` is the answer of ``status --sync``, ``brakes`` why ownership is held."""

    state: PoolState
    sync: Mapping[str, Any]
    brakes: Sequence[str] = ()
    etcd: Sequence[EndpointStatus] = ()
    now: float = 0.0


def refusals(facts: Facts, kind: Kind) -> list[str]:
    """Why the drill must not begin; empty when it may."""
    state = facts.state
    reasons = [*_absent(state, facts.now), *_unprotected(state)]
    moving = not_converged(state, [])
    if moving:
        reasons.append(f"a failover or handover is under way: {moving}")
    reasons += [f"ownership is held: {why}" for why in facts.brakes]
    rows = facts.sync["members"]
    reasons += [f"{row['member']} is not in sync: {row['reason']}" for row in rows if not row["in_sync"]]
    if state.leader is None:
        reasons.append("no control server leads")
    if kind is Kind.CONTROL and len(state.controls) < 2:
        reasons.append("only one control server is registered: start a second one ('understudy up --controls 2')")
    if kind is Kind.ETCD_LEADER:
        sound = [status for status in facts.etcd if not status.errors]
        if len(sound) < 3:
            reasons.append(
                f"{len(sound)} healthy etcd member(s) answer at the known endpoints and a quorum that survives a death "
                "needs 3 ('understudy up --etcds 3', or name all of them with --etcd)"
            )
    return reasons


def _absent(state: PoolState, now: float) -> list[str]:
    """Members that are not in service."""
    reasons = [
        f"{name} is {at.record.state}{f': {at.record.reason}' if at.record.reason else ''}"
        for name, at in sorted(state.members.items())
        if at.record.state is not MemberState.UP
    ]
    reasons += [f"{name} is drained" for name, at in sorted(state.intents.items()) if at.record.holds(now)]
    reasons += [f"site {site} is offline" for site in sorted(state.offline(now))]
    lost = state.table.record.lost if state.table else {}
    reasons += [
        f"{name} is lost: {lost[name].cause}"
        for name in sorted(lost)
        if name not in state.members or state.members[name].record.boot == lost[name].boot
    ]
    return reasons


def _unprotected(state: PoolState) -> list[str]:
    """Slots without a living standby: a drill there would be an outage."""
    up = {name for name, at in state.members.items() if at.record.state is MemberState.UP}
    bare = [slot for slot in range(slots_of(state)) if len(up.intersection(order_of(state, slot))) < 2]
    if not bare:
        return []
    return [f"{len(bare)} slots have no living standby: start another member, and see 'understudy table'"]


def held(state: PoolState) -> dict[str, int]:
    """How many slots each member is active for."""
    return dict(Counter(at.record.active for at in state.owners.values()))


def unfinished(state: PoolState, before: Mapping[str, int], boots: Mapping[str, str]) -> str:
    """Why the pool is not as it was before the drill; empty when it is.

    ``before`` is :func:`held` from then. ``boots`` are boot ids that must be gone: of members that were restarted.
    """
    for name in before:
        at = state.members.get(name)
        if at is None or at.record.boot == boots.get(name):
            return f"{name} is not back"
        if at.record.state is not MemberState.UP:
            return f"{name} is {at.record.state}"
    moving = not_converged(state, [])
    if moving:
        return moving
    # A fair share is one slot to either side of the exact one, before and now.
    now = held(state)
    poor = [name for name, count in before.items() if now.get(name, 0) < count - 2]
    return f"{', '.join(poor)} without a fair share" if poor else ""


def without_successor(before: PoolState, now: PoolState) -> str:
    """Why the killed leader of the control servers has no successor yet; empty when it has.

    What a dead one has written stands until its lease runs out, and looks as if it were there.
    """
    led, leads = before.leader, now.leader
    if led is None or (leads is not None and leads.revision > led.revision):
        return ""
    return f"nobody leads in the place of {led.record} yet: its lease has not run out"


@dataclass(frozen=True, slots=True)
class Seen:
    """What clients saw of one drill. None: could not be measured in this way. Times in ms.

    ``gap`` is how long touched sessions were without an answer beyond their pacing, ``wait`` the longest that each
    session waited for one request; both p50, p99 and max. ``took_ms`` is the slowest failover's trace.
    """

    requests: int
    failed: int
    gap: tuple[float, float, float] | None = None
    wait: tuple[float, float, float] | None = None
    touched: int | None = None
    lost_writes: int | None = None
    needless_moves: int | None = None
    took_ms: float | None = None
    failures: tuple[str, ...] = field(default=())

    @property
    def felt_ms(self) -> float | None:
        """The p99 by which the objective is judged: of the clients' gaps, else of their waits, else by the trace."""
        measured = self.gap or self.wait
        return measured[1] if measured else self.took_ms


def missed(seen: Seen, wanted: Objectives) -> list[str]:
    """The objectives that were not reached, in words."""
    found = []
    share = seen.failed / seen.requests if seen.requests else 0.0
    if share > wanted.failed_requests:
        found.append(f"failed_requests: {share:.3%} of {seen.requests} (objective {wanted.failed_requests:.3%})")
    if seen.felt_ms is not None and seen.felt_ms > wanted.rto.p99 * 1000:
        found.append(f"rto p99: {seen.felt_ms:.0f} ms (objective {wanted.rto.p99 * 1000:.0f} ms)")
    if (seen.lost_writes or 0) > wanted.rpo_sync_writes:
        found.append(f"rpo_sync_writes: {seen.lost_writes} lost (objective {wanted.rpo_sync_writes})")
    if (seen.needless_moves or 0) > wanted.needless_moves:
        found.append(f"needless_moves: {seen.needless_moves} (objective {wanted.needless_moves})")
    return found
