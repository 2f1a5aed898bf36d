"""Decides which sync sets change, and to what: who has caught up joins; who is silent, dead or not wanted leaves.

Nothing is sent here: :mod:`understudy.proxy.ownership.set_changes` carries the changes out. The changes that something
waits for are proposed at once, the others are spread over a second or so.
"""

import math
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from understudy.proxy.health.loop_lag import LoopLag
from understudy.proxy.member.home_watch import HomeWatch
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.active_slot import ActiveSlot
from understudy.proxy.ownership.active_slots import ActiveSlots
from understudy.proxy.ownership.owned_slots import OwnedSlots
from understudy.proxy.replication.copy_connections import CopyConnections
from understudy.proxy.replication.copy_pacing import CopyPacing
from understudy.statesync.etcd.client import Delete, Put
from understudy.statesync.pool.ownership import agreed_set, is_valid
from understudy.statesync.pool.records import Phase, SyncRecord
from understudy.statesync.replication import sync_set
from understudy.statesync.replication.sync_set import Process, SyncSet
from understudy.statesync.sessions.request_log import decode_entry, encode_entries

LOOK_ANYWAY_AFTER = 1.0
"""Seconds after which all slots are looked at, also those whose set is as it should be and that have no writes."""
SILENT_AFTER = 1.0
"""Seconds of silence after which a process leaves the sets in which no write waits for it. It speaks every 0.25 s."""
MEMORY_FOR = 60.0
"""Seconds for which a slot of another class acknowledges from memory after a write that asked for it."""


@dataclass(frozen=True, slots=True)
class Change:
    """The change of one slot's set: from what to what, and the records that it compares (0: none there)."""

    active: ActiveSlot
    wanted: SyncSet
    fence: int
    replaces: int
    before: SyncRecord
    learner: tuple[str, int] | None = None
    saves: tuple[Put | Delete, ...] = ()

    @property
    def slot(self) -> int:
        """The number of the slot."""
        return self.active.stream.slot

    @property
    def record(self) -> SyncRecord:
        """The sync record that the change writes."""
        return SyncRecord.of_set(self.active.stream.epoch, self.wanted, self.before)


class SetDecisions:
    """Proposes the changes of the sets of all slots in which this process is active.

    Attributes:
        frozen: slots on their way to another active: their sets stay as they are.
        awaited: for each slot, how many callers wait for a change of its set.
        ending: this process is about to end with slots, so nothing is acknowledged from memory any more. The same holds
            while the pool's home moves to another etcd.
    """

    def __init__(
        self,
        pool: PoolView,
        owned: OwnedSlots,
        active: ActiveSlots,
        connections: CopyConnections,
        loop_lag: LoopLag,
        home: HomeWatch,
    ) -> None:
        self._pool = pool
        self._home = home
        self._keys = pool.identity.keys
        self._me = Process(pool.identity.me, pool.identity.boot)
        self._owned = owned
        self._active = active
        self._connections = connections
        self._loop_lag = loop_lag
        self._last_seen: object = None
        self._looked_at = -math.inf
        self._unsettled: set[ActiveSlot] = set()
        self._pacing = CopyPacing()
        self._wanted_of: dict[tuple[str, ...], frozenset[Process]] = {}
        self.frozen: set[int] = set()
        self.awaited: Counter[int] = Counter()
        self.ending = False

    def proposals(self) -> list[Change]:
        """The changes to make now. A slot has at most one change at a time."""
        now, before = time.monotonic(), self._last_seen
        seen = self._seen(now)
        looked_at: Iterable[ActiveSlot] = {*self._unsettled, *self._active.unfinished}
        if seen is not before or now - self._looked_at > LOOK_ANYWAY_AFTER:
            self._looked_at, looked_at = now, self._active.slots
        self._wanted_of.clear()
        unsettled = [one for one in looked_at if self._active.stands(one) and not self._fine(one, now, seen)]
        self._unsettled = set(unsettled)
        urgent = [one for one in unsettled if self._is_urgent(one)]
        found = [self._proposal(active, now, seen) for active in urgent]
        return [change for change in found if change is not None] + self._unhurried(unsettled, urgent, now, seen)

    def _is_urgent(self, active: ActiveSlot) -> bool:
        """Whether something waits for a change of the set, or there is only one copy."""
        alone = len(active.stream.agreed.members) == 1
        return (
            alone
            or self._saves_all
            or active.clearing
            or active.oldest() is not None
            or self.awaited[active.stream.slot] > 0
        )

    def _unhurried(
        self, unsettled: Sequence[ActiveSlot], urgent: Collection[ActiveSlot], now: float, seen: object
    ) -> list[Change]:
        """As many changes as may be made now that nothing waits for."""
        rest = set(unsettled).difference(urgent)
        allowed = self._pacing.allowed(now, len(rest))
        changes: list[Change] = []
        for active in rest:
            if len(changes) == allowed:
                break
            change = self._proposal(active, now, seen)
            if change is not None:
                changes.append(change)
        self._pacing.took(len(changes))
        return changes

    @property
    def _saves_all(self) -> bool:
        """Whether nothing may stay in memory alone."""
        return self.ending or self._home.closing

    def _seen(self, now: float) -> object:
        """What decides who should be in the sets, beside what copies confirm; another object if it has changed."""
        state = self._pool.state
        table = state.table.revision if state.table is not None else 0
        spec = state.spec.revision if state.spec is not None else 0
        members = [(name, at.revision) for name, at in state.members.items()]
        seen = (table, spec, members, self._connections.state(now - SILENT_AFTER), self._active.begun, self._saves_all)
        if seen != self._last_seen:
            self._last_seen = seen
        return self._last_seen

    def _fine(self, active: ActiveSlot, now: float, seen: object) -> bool:
        """Whether nothing has to be looked at: the set is as it should be, and no write waits for long."""
        if active.checked is not seen:
            return False
        agreed = active.stream.agreed
        if active.asked_at is not None and agreed.memory != (len(agreed.members) > 1 and self._memory(active)):
            return False
        oldest = active.oldest()
        return oldest is None or now - oldest[1] <= self._patience

    @property
    def _patience(self) -> float:
        """Seconds for which a write waits for a copy."""
        spec = self._pool.spec
        return spec.replication.patience_ms / 1000 if spec is not None else 0.3

    def _proposal(self, active: ActiveSlot, now: float, seen: object) -> Change | None:
        stream, held_back = active.stream, active.clearing
        if held_back:
            active.clearing, stream.change = False, None
        change = self._decision(active, now, seen)
        if held_back and change is None and not active.clearing:
            self._active.advance(stream.slot)
        return change

    def _decision(self, active: ActiveSlot, now: float, seen: object) -> Change | None:
        stream, owned = active.stream, active.owned
        slot = stream.slot
        if (
            stream.change is not None
            or slot in self.frozen
            or owned.owner.phase is not Phase.STABLE
            or self._owned.get(slot) is not owned
        ):
            return None
        agreed, me = stream.agreed, self._me
        wanted = self._wanted(slot)
        lost = {one for one in agreed.members if one != me and self._is_lost(active, one, now)}
        unwanted = agreed.members - wanted - {me} - lost
        if len(agreed.members - lost - unwanted) > 1 or not wanted:
            lost |= unwanted
        if lost:
            return self._removal(active, lost)
        for learner in wanted - agreed.members:
            change = self._growth(active, learner)
            if change is not None:
                return change
        better = self._announced(active)
        if better != agreed:
            return self._change(active, better)
        if agreed.memory and not self._memory(active):
            self._stop_using_memory(active)
        if wanted | {me} == agreed.members and agreed.memory == (len(agreed.members) > 1 and self._memory(active)):
            active.checked = seen
        return None

    def _growth(self, active: ActiveSlot, learner: Process) -> Change | None:
        """The change by which a process joins that has caught up."""
        stream = active.stream
        at = self._pool.state.members.get(learner.member)
        if at is None or at.record.boot != learner.boot or not stream.follows(learner):
            return None
        grown = sync_set.with_learner(stream.agreed, learner, stream.progress)
        if grown is None:
            return None
        if self._memory(active, grown.members):
            grown = sync_set.announced(grown) or grown
        return self._change(active, grown, learner=(self._keys.member(learner.member), at.revision))

    def _memory(self, active: ActiveSlot, members: Collection[Process] | None = None) -> bool:
        """Whether writes of a slot are to be acknowledged from memory: by the pool's spec, or by single writes.

        With ``replication.spread: site`` only while ``members``, the set, are on two sites at least. So the loss of a
        site takes no write that was acknowledged since.
        """
        if self._saves_all:
            return False
        spec = self._pool.spec
        if spec is not None and spec.replication.spread == "site":
            known = self._pool.state.members
            there = active.stream.agreed.members if members is None else members
            if len({known[one.member].record.site for one in there if one.member in known}) < 2:
                return False
        by_spec = spec is not None and spec.from_memory
        return by_spec or (active.asked_at is not None and time.monotonic() - active.asked_at < MEMORY_FOR)

    def _announced(self, active: ActiveSlot) -> SyncSet:
        """The set with ``memory`` as the pool's spec wants it, as far as that is possible now."""
        agreed = active.stream.agreed
        if self._memory(active):
            return sync_set.announced(agreed) or agreed
        return sync_set.all_saved(agreed, active.stream.progress) or agreed

    def _stop_using_memory(self, active: ActiveSlot) -> None:
        """Acknowledge nothing more from memory, so that all of it is saved at some time, however much is written."""
        active.clearing = True
        active.stream.change = SyncSet(active.stream.agreed.members)
        self._active.save_now(active.stream.slot)

    def _wanted(self, slot: int) -> frozenset[Process]:
        """The processes that are to have a copy of a slot, beside this one."""
        table, members = self._pool.state.table, self._pool.state.members
        order = table.record.orders[slot] if table is not None and slot < table.record.slots else ()
        wanted = self._wanted_of.get(order)
        if wanted is None:
            wanted = self._wanted_of[order] = frozenset(
                Process(name, members[name].record.boot)
                for name in order
                if name != self._me.member and name in members
            )
        return wanted

    def _is_lost(self, active: ActiveSlot, process: Process, now: float) -> bool:
        """Whether a process of the set is gone or silent, or keeps a write waiting for too long."""
        stream = active.stream
        at = self._pool.state.members.get(process.member)
        if (at is not None and at.record.boot != process.boot) or self._connections.refused(process):
            return True
        if process in stream.stuck:
            return True
        late = max(at.record.stall if at is not None else 0.0, self._loop_lag.worst)
        heard = max(self._connections.heard_at(process), active.since)
        if now - heard > max(SILENT_AFTER, self._patience) + late:
            return True
        oldest = active.oldest()
        if oldest is None or stream.progress.confirmed.get(process, 0) >= oldest[0]:
            return False
        return now - oldest[1] > self._patience + late

    def _removal(self, active: ActiveSlot, lost: Collection[Process]) -> Change | None:
        stream = active.stream
        removal = sync_set.without(stream.agreed, lost, self._me, stream.progress)
        if removal is None or (removal.saves and (active.saves.due or active.saves.under_way)):
            self._active.save_now(stream.slot)  # the removal saves only what this cannot save
            return None
        return self._change(active, removal.sync, saves=self._inherited(active) if removal.saves else ())

    def _inherited(self, active: ActiveSlot) -> tuple[Put | Delete, ...]:
        """The puts that save what this process had as a copy and does not know to be acknowledged."""
        stream = active.stream
        newest: dict[str, bytes | None] = {}
        entries = [decode_entry(outcome) for outcome in active.saves.outcomes]
        for entry in stream.between(stream.saved, stream.acknowledged):
            if entry.write.key:
                newest[entry.write.key] = entry.write.value
            if entry.write.outcome:
                entries.append(decode_entry(entry.write.outcome))
        puts: list[Put | Delete] = []
        for key, value in newest.items():
            name = self._keys.session(stream.slot, key)
            puts.append(Delete(name) if value is None else Put(name, value))
        if entries:
            me = self._me
            name = f"{self._keys.requests}{me.member}/{me.boot}/s{stream.slot:05d}-{stream.last:016x}"
            puts.append(Put(name, encode_entries(entries)))
        return tuple(puts)

    def _change(
        self,
        active: ActiveSlot,
        wanted: SyncSet,
        *,
        learner: tuple[str, int] | None = None,
        saves: tuple[Put | Delete, ...] = (),
    ) -> Change | None:
        slot, owned = active.stream.slot, active.owned
        at = self._pool.state.sync_sets.get(slot)
        if at is None or not is_valid(owned.owner, at):
            return None  # the watch has not brought the record of our own claim yet
        if agreed_set(owned.owner, at) != active.stream.agreed:
            return None
        active.checked = None  # the new set may not be as it should be, although nothing else changes
        return Change(active, wanted, owned.fence, at.revision, at.record, learner, saves)
