"""Which sites have a current copy of which slot, and since when slots have been on one site only. Pure.

A site *has a copy* of a slot if a process of the slot's sync set runs there: it has every acknowledged write of the
slot in memory (docs/ownership.md). Members, commands and drills use the same functions.
"""

from collections.abc import Collection, Iterable

from understudy.statesync.pool.ownership import agreed_set
from understudy.statesync.pool.state import PoolState


def copies_by_slot(state: PoolState, slots: Collection[int] | None = None) -> dict[int, frozenset[str]]:
    """The sites that have a copy of each slot that is owned; of all slots, or of some."""
    sites = {name: at.record.site for name, at in state.members.items()}
    boots = {name: at.record.boot for name, at in state.members.items()}
    found = {}
    for slot in state.owners if slots is None else slots:
        if slot not in state.owners:
            continue
        processes = agreed_set(state.owners[slot].record, state.sync_sets.get(slot)).members
        found[slot] = frozenset(sites[member] for member, boot in processes if boots.get(member) == boot)
    return found


def lagging_slots(state: PoolState, away: Iterable[str] = (), slots: Collection[int] | None = None) -> list[int]:
    """The slots that should have copies on two sites or more by the table, and have them on one site at the most.

    Sites in ``away`` do not count.
    """
    out = frozenset(away)
    sites = {
        name: at.record.site
        for name, at in state.members.items()
        if at.record.state.may_hold_slots and at.record.site not in out
    }
    if len(set(sites.values())) < 2:
        return []
    return [
        slot
        for slot, there in sorted(copies_by_slot(state, slots).items())
        if len(there - out) < 2 <= len({sites[member] for member in _members_of(state, slot) if member in sites})
    ]


def _members_of(state: PoolState, slot: int) -> tuple[str, ...]:
    """The owner of a slot, and the members that the table gives it."""
    table = state.table.record if state.table else None
    wanted = table.orders[slot] if table and slot < table.slots else ()
    return (state.owners[slot].record.active, *wanted)


class SiteExposure:
    """Since when slots have had current copies on one site only; time is whatever clock the caller uses."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def look(self, slots: Iterable[int], now: float) -> None:
        """Take in which slots are on one site now."""
        self._since = {slot: self._since.get(slot, now) for slot in slots}

    @property
    def slots(self) -> int:
        """How many slots are on one site."""
        return len(self._since)

    def oldest(self, now: float) -> float:
        """For how many seconds the first of them has been; 0 if there is none."""
        return now - min(self._since.values(), default=now)

    def older_than(self, seconds: float, now: float) -> list[int]:
        """Those that have been for longer than so many seconds."""
        return sorted(slot for slot, since in self._since.items() if now - since > seconds)
