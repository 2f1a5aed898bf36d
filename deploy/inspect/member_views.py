"""The members of a pool as JSON data: roles, states, and the reasons for states. Pure.

Owner records decide which member is active. A report about a member that does not come from etcd wins over its record.
"""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from understudy.statesync.pool.predicted import obstacle
from understudy.statesync.pool.records import ForecastLevel, Lost, Member, MemberState
from understudy.statesync.pool.state import PoolState

View = dict[str, Any]


@dataclass(frozen=True, slots=True)
class MemberReport:
    """The state of one boot of a member, reported ``age`` seconds ago by ``source``: a control server or itself."""

    member: str
    boot: str
    state: MemberState
    reason: str
    source: str
    age: float


def order_of(state: PoolState, slot: int) -> tuple[str, ...]:
    """The members of a slot in order: the owner, then the others in the order of the table."""
    table = state.table.record if state.table else None
    wanted = table.orders[slot] if table and slot < table.slots else ()
    owner = state.owners.get(slot)
    if owner is None:
        return wanted
    return (owner.record.active, *(member for member in wanted if member != owner.record.active))


def slots_of(state: PoolState) -> int:
    """The number of slots of the pool, from its spec, or from other records if the spec cannot be read."""
    if state.spec:
        return state.spec.record.slots
    return state.table.record.slots if state.table else max(state.owners, default=-1) + 1


def member_views(
    state: PoolState,
    heard: Mapping[tuple[str, str], MemberReport] | None = None,
    silent: Mapping[str, str] | None = None,
) -> list[View]:
    """Every member that is registered, owns a slot, is in the table, is lost, or was reported.

    A report in ``heard`` wins over the member's record, because a member that is cut off from etcd cannot change its
    record. ``silent`` has the errors of members that did not answer.
    """
    roles = _roles(state)
    lost = state.table.record.lost if state.table else {}
    now = {one.member: one for one in (heard or {}).values() if _current(state, one)}
    return [
        _member_view(name, state, roles[name], now.get(name), (silent or {}).get(name, ""))
        for name in sorted(set(state.members) | set(roles) | set(lost) | set(now))
    ]


def _current(state: PoolState, one: MemberReport) -> bool:
    """Whether the report is about the registered process, or about one that lives and is not registered."""
    at = state.members.get(one.member)
    return at.record.boot == one.boot if at else one.state is not MemberState.LOST


def _member_view(name: str, state: PoolState, roles: Counter[str], heard: MemberReport | None, silent: str) -> View:
    at = state.members.get(name)
    member = at.record if at else None
    lost = state.table.record.lost.get(name) if state.table else None
    if lost is not None and member is not None and member.boot != lost.boot:
        lost = None
    reported = _state_and_reason(member, lost, heard)
    idle = state.table is not None and not roles.total()
    return {
        "member": name,
        "state": str(reported[0]),
        "site": member.site if member else "",
        "zone": member.zone if member else "",
        "active": roles["active"],
        "standby": roles["standby"],
        "backup": roles["backup"],
        "boot": member.boot if member else (lost.boot if lost else heard.boot if heard else ""),
        "reason": _reason(*reported, idle=idle, heard=heard, silent=silent),
        "since": lost.at if lost else (member.since if member else None),
        "late_seconds": 0.0 if lost or member is None else member.stall,
        "clock": "" if lost or member is None else member.clock,
        "forecast": "" if lost or member is None else member.forecast,
        "forecast_level": str(ForecastLevel.OK if lost or member is None else member.expected),
        "app": member.app if member else "",
        "peer": member.peer if member else "",
        "weight": member.weight if member else None,
        "version": member.version if member else "",
        "app_version": member.app_version if member else "",
        "node": member.node if member else "",
    }


def _state_and_reason(member: Member | None, lost: Lost | None, heard: MemberReport | None) -> tuple[MemberState, str]:
    """The state of a member, with the reason for it."""
    if lost is not None:
        return MemberState.LOST, lost.cause
    if member is None:
        gone = "not registered"
        if heard is None:
            return MemberState.LOST, gone
        return heard.state, f"{heard.reason}; {gone}" if heard.reason else gone
    return (heard.state, heard.reason) if heard is not None else (member.state, member.reason)


def _reason(state: MemberState, reason: str, *, idle: bool, heard: MemberReport | None, silent: str) -> str:
    """The reason shown for a member's state; '' for none. UP without a slot is a contradiction, so it gets a reason."""
    if silent:
        text = f"{reason}; " * bool(reason) + f"it does not answer: {silent}"
        beats = heard is not None and heard.state is not MemberState.LOST
        return text + (f"; {heard.source} got a heartbeat {heard.age:.1f} s ago" if heard and beats else "")
    if idle and state is MemberState.UP and not reason:
        return "it reports UP and has no slot: it may be cut off from etcd"
    return reason


def forecast_warnings(state: PoolState) -> list[str]:
    """A sentence for each member that is going to run out of something, and what is done about it."""
    return [
        f"{name} may fail soon: {at.record.forecast}{_done_about(state, name)}"
        for name, at in sorted(state.members.items())
        if at.record.expected.rank
    ]


def _done_about(state: PoolState, name: str) -> str:
    """What is done about a member that may fail soon, with ``predictive: move``."""
    record = state.members[name].record
    leaving = state.table.record.leaving if state.table else {}
    if name in leaving and leaving[name].boot == record.boot:
        return "; it hands its slots over until it is well again: restart its application"
    if state.spec is None or state.spec.record.predictive != "move" or record.expected is not ForecastLevel.CRITICAL:
        return ""
    members = {one: at.record for one, at in state.members.items()}
    why = obstacle(members, {one: member.state for one, member in members.items()}, name, leaving)
    return f"; it keeps its slots: {why}" if why else ""


def _roles(state: PoolState) -> Mapping[str, Counter[str]]:
    roles: dict[str, Counter[str]] = defaultdict(Counter)
    for slot in range(slots_of(state)):
        order = order_of(state, slot)
        for position, member in enumerate(order):
            if position == 0 and slot not in state.owners:
                continue  # wanted as active, but not yet
            roles[member][("active", "standby", "backup")[min(position, 2)]] += 1
    return roles


def heard_by(statuses: Iterable[Any]) -> dict[tuple[str, str], MemberReport]:
    """The reports of control servers about each (member, boot), from their answers of ``/v1/status``.

    The newest report wins. LOST counts only if all control servers report it.
    """
    found: dict[tuple[str, str], MemberReport] = {}
    for status in statuses:
        for row in status.get("heartbeats", ()) if isinstance(status, dict) else ():
            one = _heard_in(row, status)
            if one is not None:
                known = found.get((one.member, one.boot))
                found[one.member, one.boot] = one if known is None else min(known, one, key=_lost_and_age)
    return found


def _lost_and_age(one: MemberReport) -> tuple[bool, float]:
    return one.state is MemberState.LOST, one.age


def _heard_in(row: Any, answer: Mapping[str, Any]) -> MemberReport | None:  # noqa: ANN401 - JSON
    match row:
        case {"member": str(member), "boot": str(boot), "state": str(state), "reason": str(reason)}:
            with contextlib.suppress(ValueError):
                ago = row.get("heard_seconds_ago")
                age = float(ago) if isinstance(ago, int | float) else 0.0
                return MemberReport(member, boot, MemberState(state), reason, str(answer.get("control", "")), age)
    return None
