"""How far apart the copies of a pool's slots are, from the pool's records. Pure."""

import time
from collections.abc import Iterable

from understudy.deploy.inspect.member_views import View, order_of, slots_of
from understudy.statesync.pool.separation import Spot, separation, together
from understudy.statesync.pool.state import PoolState


def preference(state: PoolState) -> str:
    """Which members are active because the spec prefers them, and why others are; '' if it prefers nobody."""
    spec = state.spec.record if state.spec else None
    if spec is None or spec.prefer is None:
        return ""
    places = Distances(state)
    named = {name: why for name, place in places.places.items() if (why := spec.prefer.why(name, place))}
    able = sorted(named.keys() & set(places.able))
    if able:
        what = ", ".join(f"{name} ({named[name]})" for name in able)
        return f"the spec prefers {what}: no other member is active while one of them may have slots"
    missing = f"{', '.join(sorted(named))} may have none" if named else "there is none"
    return f"the slots are with members that the spec does not prefer, since of those that it prefers {missing}"


class Distances:
    """How far apart copies are in one pool: :meth:`of` one slot, and :meth:`warnings` for all.

    ``places``: where each registered member runs. ``able``: the members that may hold slots.
    """

    def __init__(self, state: PoolState) -> None:
        self._state = state
        members = {name: at.record for name, at in state.members.items()}
        self.places = {name: Spot(member.site, member.zone, member.node) for name, member in members.items()}
        offline, lost = state.offline(time.time()), state.table.record.lost if state.table else {}
        self.able = [
            name
            for name, member in members.items()
            if member.state.may_hold_slots
            and member.site not in offline
            and not (name in lost and lost[name].boot == member.boot)
        ]
        self._by_line = state.spec is not None and state.spec.record.mode == "active_standby"

    def of(self, slot: int) -> View:
        """The level at which the copies of a slot are apart, and why it is not a higher one."""
        found = separation(order_of(self._state, slot), self.places, self.able, by_line=self._by_line)
        return {"level": found.level, "why": found.why}

    def warnings(self) -> Iterable[str]:
        """A line for each level at which slots have all their copies in one domain although there are others."""
        orders = [order_of(self._state, slot) for slot in range(slots_of(self._state))]
        for level, slots in together(orders, self.places, self.able).items():
            if slots:
                where = "in one zone" if level == "zone" else "on one host"
                yield (
                    f"{len(slots)} slots, such as {slots[0]}, have all their copies {where} although other {level}s "
                    f"have members: 'understudy table' says why"
                )
