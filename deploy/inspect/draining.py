"""Why a member that is being drained still owns slots, and which of its slots were taken over. Pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from understudy.deploy.inspect.views import ranges
from understudy.statesync.pool.ownership import agreed_set
from understudy.statesync.pool.records import MemberState
from understudy.statesync.pool.state import PoolState
from understudy.statesync.replication.sync_set import Process


def leaving_members(state: PoolState, now: float) -> dict[str, str]:
    """The members that are going out of service at ``now`` (wall time), each with the command that brings it back."""
    remedies: dict[str, str] = {}
    offline = state.offline(now)
    for name, at in sorted(state.members.items()):
        intent = state.intents.get(name)
        if intent is not None and intent.record.holds(now):
            remedies[name] = f"'understudy undrain {name}'"
        elif at.record.site in offline:
            remedies[name] = f"'understudy site online {at.record.site}'"
        elif at.record.state is MemberState.DRAINING:
            remedies[name] = ""
    return remedies


def takers(state: PoolState, now: float) -> frozenset[str]:
    """The members that can take slots at ``now`` (wall time), without those that are going out of service."""
    from understudy.proxy.ownership.drain_reason import able_to_take  # brings the ownership protocol along

    return able_to_take(state, now) - leaving_members(state, now).keys()


def owned_by(state: PoolState, members: Collection[str]) -> list[int]:
    """The slots whose owner records name one of ``members``."""
    return sorted(slot for slot, at in state.owners.items() if at.record.active in members)


def counting_on(state: PoolState, members: Collection[str]) -> list[int]:
    """The slots of other members that count on a copy at one of ``members``: a sync set has a process of them."""
    processes = {Process(name, state.members[name].record.boot) for name in members if name in state.members}
    return sorted(
        slot
        for slot, at in state.owners.items()
        if at.record.active not in members and processes & agreed_set(at.record, state.sync_sets.get(slot)).members
    )


def obstacle(state: PoolState, members: Collection[str], now: float) -> str:
    """What prevents ``members`` from handing over their slots; '' if the records show nothing."""
    slots = owned_by(state, members)
    if not slots:
        return ""
    able = takers(state, now) - frozenset(members)
    if not able:
        return f"no other member can take {_slots(slots)}: {_others(state, members, now)}"
    gone = sorted({at.record.active for slot in slots if (at := state.owners[slot]) and not _is_alive(state, slot)})
    if gone:
        return f"{', '.join(gone)} ended without handing over {_slots(slots)}: other members must take them over"
    table = state.table.record if state.table else None
    if state.leader is None:
        stuck = [s for s in slots if table is None or not able & set(table.orders[s] if s < table.slots else ())]
        if stuck:
            return f"there is no leading control server, and no standby or backup of {_slots(stuck)} can take over"
    return ""


def blocked_drains(state: PoolState, now: float) -> list[str]:
    """A sentence for each member that is being drained and cannot hand over its slots."""
    leaving = {*leaving_members(state, now), *(name for name, at in state.intents.items() if at.record.holds(now))}
    reasons = {name: obstacle(state, {name}, now) for name in sorted(leaving)}
    return [f"{name} cannot hand over its slots: {why}" for name, why in reasons.items() if why]


def _is_alive(state: PoolState, slot: int) -> bool:
    owner = state.owners[slot].record
    at = state.members.get(owner.active)
    lost = state.table.record.lost.get(owner.active) if state.table else None
    return at is not None and at.record.boot == owner.boot and (lost is None or lost.boot != owner.boot)


def _others(state: PoolState, members: Collection[str], now: float) -> str:
    """Why each of the other members cannot take slots, and what would help."""
    remedies = leaving_members(state, now)
    found = []
    for name, at in sorted(state.members.items()):
        if name in members:
            continue
        if name in remedies:
            found.append(
                f"{name} is also going out of service" + (f" ({remedies[name]} stops that)" if remedies[name] else "")
            )
        else:
            found.append(f"{name} is {at.record.state}" + (f" ({at.record.reason})" if at.record.reason else ""))
    return "; ".join(found) or "there is no other member: start one"


@dataclass(frozen=True, slots=True)
class StillNeeded:
    """Why members that leave must not stop yet; false if they may.

    ``owned``: their slots, and the ``obstacle`` to their handover. ``counting``: slots of others that count on a copy
    at one of them.
    """

    owned: Sequence[int]
    counting: Sequence[int]
    obstacle: str
    led: bool

    def __bool__(self) -> bool:
        return bool(self.owned or self.counting)

    def lines(self, subject: str, *, obstacle: bool) -> list[str]:
        """What to show while they are waited for, with or without the obstacle."""
        copies = f"other members' slots still count on a copy at {subject}" if self.counting and not self.owned else ""
        why = f"{subject} cannot hand over its slots: {self.obstacle}" if self.obstacle and obstacle else ""
        return [line for line in (f"{subject} owns {len(self.owned)} slots", copies, why) if line]

    def error(self, subject: str, wait: float) -> str:
        """The error when they were waited for in vain."""
        if self.owned:
            why = self.obstacle or "see 'understudy status'"
            return f"{subject} still owns {len(self.owned)} slots after {wait:g} s: {why}"
        why = "see 'understudy status'" if self.led else "there is no leading control server"
        slots = _slots(self.counting)
        return f"after {wait:g} s {slots} still count on a copy at {subject}, so do not stop it yet: {why}"


def still_needed(state: PoolState, members: Collection[str], now: float) -> StillNeeded:
    """Why ``members`` must not stop at ``now`` (wall time)."""
    led = state.leader is not None
    return StillNeeded(owned_by(state, members), counting_on(state, members), obstacle(state, members, now), led)


@dataclass(frozen=True, slots=True)
class SlotsTakenOver:
    """The slots that had been taken over from some members before their drain began, by failover record."""

    taken: Mapping[str, frozenset[int]]

    @classmethod
    def of(cls, state: PoolState, members: Collection[str]) -> "SlotsTakenOver":
        """Those of ``members`` before their drain."""
        return cls(_taken(state, members))

    def since(self, state: PoolState, members: Collection[str]) -> list[int]:
        """The slots that other members have taken over from ``members`` since then, without a handover."""
        known = _taken(state, members)
        return sorted({slot for key, slots in known.items() for slot in slots - self.taken.get(key, frozenset())})


def _taken(state: PoolState, members: Collection[str]) -> dict[str, frozenset[int]]:
    return {
        key: frozenset(at.record.slots)
        for key, at in state.failovers.items()
        if at.record.source in members and not at.record.planned
    }


def not_handed_over(subject: str, taken: Collection[int]) -> str:
    """The error for members that did not hand over all their slots."""
    return f"{subject} did not hand over {_slots(taken)}: it ended or was lost, and other members took them over"


def _slots(slots: Collection[int]) -> str:
    return f"{len(slots)} slots ({ranges(slots)})" if len(slots) != 1 else f"slot {ranges(slots)}"
