"""How the members of a pool are, as plain JSON data: roles, states, and why one is not as it should be. Pure.

Actives are told by owner records (the truth). What is heard of a member beside etcd counts for more than its record.
"""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from understudy.statesync.pool.records import Lost, Member, MemberState
from understudy.statesync.pool.state import PoolState

View = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Heard:
    """How one boot of a member is by the word of ``source``, a control server or itself, ``age`` seconds ago."""

    member: str
    boot: str
    state: MemberState
    reason: str
    source: str
    age: float


def order_of(state: PoolState, slot: int) -> tuple[str, ...]:
    """The members of a slot in order: the owner, then the others as the table has them."""
    table = state.table.record if state.table else None
    wanted = table.orders[slot] if table and slot < table.slots else ()
    owner = state.owners.get(slot)
    if owner is None:
        return wanted
    return (owner.record.active, *(member for member in wanted if member != owner.record.active))


def slots_of(state: PoolState) -> int:
    """How many slots the pool has: by its spec, or by what else is known while that cannot be read."""
    if state.spec:
        return state.spec.record.slots
    return state.table.record.slots if state.table else max(state.owners, default=-1) + 1


def member_views(
    state: PoolState, heard: Mapping[tuple[str, str], Heard] | None = None, silent: Mapping[str, str] | None = None
) -> list[View]:
    """Every member that is registered, owns a slot, stands in the table, is known to be lost, or is heard.

    What is ``heard`` of a member's process counts for more than its record, which it cannot change while it is cut off
    from etcd. ``silent`` are members that were asked and did not answer, and why.
    """
    roles = _roles(state)
    lost = state.table.record.lost if state.table else {}
    now = {one.member: one for one in (heard or {}).values() if _current(state, one)}
    return [
        _member_view(name, state, roles[name], now.get(name), (silent or {}).get(name, ""))
        for name in sorted(set(state.members) | set(roles) | set(lost) | set(now))
    ]


def _current(state: PoolState, one: Heard) -> bool:
    """Whether it is of the process that is registered; or of one that is not registered and lives."""
    at = state.members.get(one.member)
    return at.record.boot == one.boot if at else one.state is not MemberState.LOST


def _member_view(name: str, state: PoolState, roles: Counter[str], heard: Heard | None, silent: str) -> View:
    at = state.members.get(name)
    member = at.record if at else None
    lost = state.table.record.lost.get(name) if state.table else None
    if lost is not None and member is not None and member.boot != lost.boot:
        lost = None
    told = _told(member, lost, heard)
    idle = state.table is not None and not roles.total()
    return {
        "member": name,
        "state": str(told[0]),
        "site": member.site if member else "",
        "active": roles["active"],
        "standby": roles["standby"],
        "backup": roles["backup"],
        "boot": member.boot if member else (lost.boot if lost else heard.boot if heard else ""),
        "reason": _reason(*told, idle=idle, heard=heard, silent=silent),
        "since": lost.at if lost else (member.since if member else None),
        "late_seconds": 0.0 if lost or member is None else member.stall,
        "clock": "" if lost or member is None else member.clock,
        "app": member.app if member else "",
        "peer": member.peer if member else "",
        "weight": member.weight if member else None,
        "version": member.version if member else "",
        "node": member.node if member else "",
    }


def _told(member: Member | None, lost: Lost | None, heard: Heard | None) -> tuple[MemberState, str]:
    """A member's state, and the reason as whoever tells it has it."""
    if lost is not None:
        return MemberState.LOST, lost.cause
    if member is None:
        gone = "not registered"
        if heard is None:
            return MemberState.LOST, gone
        return heard.state, f"{heard.reason}; {gone}" if heard.reason else gone
    return (heard.state, heard.reason) if heard is not None else (member.state, member.reason)


def _reason(state: MemberState, reason: str, *, idle: bool, heard: Heard | None, silent: str) -> str:
    """Why a member is not as it should be; '' if it is. UP without a slot is a contradiction that wants a reason."""
    if silent:
        told = f"{reason}; " * bool(reason) + f"it does not answer: {silent}"
        beats = heard is not None and heard.state is not MemberState.LOST
        return told + (f"; {heard.source} heard it {heard.age:.1f} s ago" if heard and beats else "")
    if idle and state is MemberState.UP and not reason:
        return "it says UP and has no slot: it may be cut off from etcd"
    return reason


def _roles(state: PoolState) -> Mapping[str, Counter[str]]:
    roles: dict[str, Counter[str]] = defaultdict(Counter)
    for slot in range(slots_of(state)):
        order = order_of(state, slot)
        for position, member in enumerate(order):
            if position == 0 and slot not in state.owners:
                continue  # wanted as active, but not yet
            roles[member][("active", "standby", "backup")[min(position, 2)]] += 1
    return roles


def heard_by(statuses: Iterable[Any]) -> dict[tuple[str, str], Heard]:
    """What control servers hear of each (member, boot), from their answers of ``/v1/status``.

    Of several the newest counts, and LOST only if all say so.
    """
    found: dict[tuple[str, str], Heard] = {}
    for status in statuses:
        for row in status.get("heartbeats", ()) if isinstance(status, dict) else ():
            one = _heard_in(row, status)
            if one is not None:
                known = found.get((one.member, one.boot))
                found[one.member, one.boot] = one if known is None else min(known, one, key=_worth)
    return found


def _worth(one: Heard) -> tuple[bool, float]:
    return one.state is MemberState.LOST, one.age


def _heard_in(row: Any, answer: Mapping[str, Any]) -> Heard | None:  # noqa: ANN401 - JSON
    match row:
        case {"member": str(member), "boot": str(boot), "state": str(state), "reason": str(reason)}:
            with contextlib.suppress(ValueError):
                ago = row.get("heard_seconds_ago")
                age = float(ago) if isinstance(ago, int | float) else 0.0
                return Heard(member, boot, MemberState(state), reason, str(answer.get("control", "")), age)
    return None
