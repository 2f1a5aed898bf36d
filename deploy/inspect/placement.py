"""How far apart the copies of a pool's slots are, from the pool's records. Pure."""

import time
from collections.abc import Iterable

from understudy.deploy.inspect.member_views import View, order_of, slots_of
from understudy.statesync.pool.separation import Spot, separation, together
from understudy.statesync.pool.state import PoolState


class Distances:
    """How far apart copies are in one pool: :meth:`of` one slot, and :meth:`warnings` for all."""

    def __init__(self, state: PoolState) -> None:
        self._state = state
        members = {name: at.record for name, at in state.members.items()}
        self._places = {name: Spot(member.site, member.zone, member.node) for name, member in members.items()}
        offline, lost = state.offline(time.time()), state.table.record.lost if state.table else {}
        self._able = [
            name
            for name, member in members.items()
            if member.state.may_hold_slots
            and member.site not in offline
            and not (name in lost and lost[name].boot == member.boot)
        ]
        self._by_line = state.spec is not None and state.spec.record.mode == "active_standby"

    def of(self, slot: int) -> View:
        """The level at which the copies of a slot are apart, and why it is not a higher one."""
        found = separation(order_of(self._state, slot), self._places, self._able, by_line=self._by_line)
        return {"level": found.level, "why": found.why}

    def warnings(self) -> Iterable[str]:
        """A line for each level at which slots have all their copies in one domain although there are others."""
        orders = [order_of(self._state, slot) for slot in range(slots_of(self._state))]
        for level, slots in together(orders, self._places, self._able).items():
            if slots:
                where = "in one zone" if level == "zone" else "on one host"
                yield (
                    f"{len(slots)} slots, such as {slots[0]}, have all their copies {where} although other {level}s "
                    f"have members: 'understudy table' says why"
                )
