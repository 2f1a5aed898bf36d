"""What state this member is in: a function of facts, and the little that has to be remembered besides."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from understudy.proxy.health.app_health_check import AppHealthCheck
from understudy.proxy.health.check_registry import CheckRegistry
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.read_deadline import ReadDeadline
from understudy.statesync.pool.records import NOBODY_ELSE, MemberState
from understudy.statesync.sessions.replica import Replica


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides about the state; texts are '' when there is nothing to say.

    ``draining``: why it hands its slots over. ``fault``: why it cannot serve well. ``own_fault``: the same without
    what lies in etcd. ``synced``: it has read the pool. ``owns``: it owns slots. ``has_roles``: it owns slots, or the
    table assigns some to it. ``others``: another member could serve. ``starting``: what a member without roles waits
    for. ``no_pool``: it is known that there is no such pool. ``away``: why nobody on this side may serve the pool.
    """

    draining: str = ""
    fault: str = ""
    own_fault: str = ""
    synced: bool = True
    owns: bool = False
    has_roles: bool = False
    others: bool = True
    starting: str = ""
    no_pool: str = ""
    away: str = ""


def state_of(facts: Facts, *, was_well: bool) -> tuple[MemberState, str]:
    """The member's state and, unless it is well, the reason.

    Without others who could serve, a member with a fault serves on: worse than a well one, better than none. One that
    was well since it started and has a fault of its own stays DOWN when its slots are gone.
    """
    if facts.draining:
        return MemberState.DRAINING, facts.draining
    if not facts.synced:
        return MemberState.INIT, facts.no_pool or "reading the pool from etcd"
    if facts.away and not facts.owns:
        return MemberState.INIT, facts.away
    fault = facts.fault
    if fault and facts.has_roles:
        return (MemberState.DOWN, fault) if facts.others else (MemberState.ATTENTION, f"{NOBODY_ELSE}{fault}")
    if not facts.has_roles and (fault or facts.starting):
        failed = was_well and bool(facts.own_fault)
        return (MemberState.DOWN if failed else MemberState.INIT), fault or facts.starting
    return (MemberState.UP if facts.has_roles else MemberState.READY), ""


def refusal_of(facts: Facts, state: MemberState, reason: str) -> str:
    """Why front Envoys should not send requests here, '' if they may.

    A fault of this member counts, but not that it cannot reach etcd. When etcd is away all members see that at once,
    and only the control servers can tell it from one member that is cut off.
    """
    match state:
        case MemberState.INIT:
            return reason
        case MemberState.DOWN:
            return facts.own_fault
        case MemberState.DRAINING:
            return facts.own_fault or ("" if facts.owns else reason)
        case _:
            return ""


class MemberStatus:
    """The state of this member, as of the last look.

    ``refusal``: why front Envoys should not send requests here, '' if they may. Another thread reads it.
    """

    def __init__(self, facts: Callable[[], Facts]) -> None:
        self._facts = facts
        self._was_well = False
        self.refusal = "starting"

    def look(self) -> tuple[MemberState, str]:
        """The state as it is now, and the reason unless the member is well."""
        facts = self._facts()
        state, reason = state_of(facts, was_well=self._was_well)
        self._was_well |= state.may_hold_slots
        self.refusal = refusal_of(facts, state, reason)
        return state, reason


@dataclass(frozen=True, slots=True)
class Faults:
    """What is wrong with this member, as its parts say."""

    check: AppHealthCheck
    checks: CheckRegistry
    reads: ReadDeadline
    replica: Replica

    def own(self) -> str:
        """What is wrong in this member itself, '' for nothing."""
        return self.check.reason or self.checks.fault(time.monotonic())

    def any(self) -> str:
        """What keeps this member from serving well, '' for nothing."""
        return self.own() or self.reads.fault or self.replica.fault


def fit_others(pool: PoolView) -> list[str]:
    """Who else could serve, by the member records."""
    return [name for name, member in pool.others().items() if member.state.may_hold_slots]


def lasting_others(pool: PoolView) -> list[str]:
    """Who else may be able to serve soon: also members that start or have a fault, but none that is draining."""
    return [name for name, member in pool.others().items() if member.state is not MemberState.DRAINING]
