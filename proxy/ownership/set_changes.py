"""Changes of sync sets by their actives: who has caught up joins, and who is silent, dead or not wanted leaves.

A change is a transaction that compares the owner record and the sync record. It is sent until its outcome is known;
meanwhile a write needs both sets (:mod:`understudy.statesync.replication.sync_set`). The changes of many slots go
together, because the death of one member is a change in every slot that it had a copy of. Those that something waits
for are made at once, the others are spread over a second or so.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from understudy.proxy.health.loop_lag import LoopLag
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.active_slot import ActiveSlot
from understudy.proxy.ownership.active_slots import ActiveSlots
from understudy.proxy.ownership.owned_slots import OwnedSlots
from understudy.proxy.ownership.pool_updates import PoolUpdates
from understudy.proxy.replication.copy_connections import CopyConnections
from understudy.proxy.replication.copy_pacing import CopyPacing
from understudy.statesync.etcd.client import (
    Compare,
    CreateRevision,
    Delete,
    EtcdClient,
    EtcdError,
    Get,
    Kv,
    ModRevision,
    Operation,
    OutcomeUnknown,
    Put,
)
from understudy.statesync.etcd.txn_retry import retry_txn
from understudy.statesync.pool.ownership import agreed_set, is_valid
from understudy.statesync.pool.records import Phase, SyncRecord
from understudy.statesync.process.ticks import until_tick
from understudy.statesync.replication import sync_set
from understudy.statesync.replication.sync_set import Process, SyncSet
from understudy.statesync.sessions.request_log import decode_entry, encode_entries

logger = logging.getLogger(__name__)

POLL_INTERVAL = 0.05
TOGETHER_MOST = 40
"""Changes in one transaction: two compares and two reads each, and their operations stay below etcd's 128."""
LOOK_ANYWAY_AFTER = 1.0
"""Seconds after which all slots are looked at, also those whose set is as it should be and that have no writes."""
SILENT_AFTER = 1.0
"""Seconds of silence after which a process leaves the sets in which no write waits for it. It speaks every 0.25 s."""
OUTCOME_TIMEOUT = 10.0
RETRY_INTERVAL = 0.2
MEMORY_FOR = 60.0
"""Seconds for which a slot of another class acknowledges from memory after a write that asked for it."""


@dataclass(frozen=True, slots=True)
class _Change:
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
        return self.active.stream.slot

    @property
    def record(self) -> SyncRecord:
        return SyncRecord.of_set(self.active.stream.epoch, self.wanted, self.before)


class SetChanges:
    """Proposes and carries out the changes of all slots in which this process is active."""

    def __init__(
        self,
        pool: PoolView,
        etcd: EtcdClient,
        owned: OwnedSlots,
        active: ActiveSlots,
        connections: CopyConnections,
        updates: PoolUpdates,
        loop_lag: LoopLag,
    ) -> None:
        self._pool = pool
        self._keys = pool.identity.keys
        self._me = Process(pool.identity.me, pool.identity.boot)
        self._etcd = etcd
        self._owned = owned
        self._active = active
        self._connections = connections
        self._updates = updates
        self._loop_lag = loop_lag
        self._wake = asyncio.Event()
        self._decided = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._alone: set[int] = set()
        self._last_seen: object = None
        self._looked_at = -math.inf
        self._unsettled: set[ActiveSlot] = set()
        self._pacing = CopyPacing()
        self._awaited: Counter[int] = Counter()
        self._wanted_of: dict[tuple[str, ...], frozenset[Process]] = {}
        self.frozen: set[int] = set()
        """Slots on their way to another active: their sets stay as they are."""

    def wake(self) -> None:
        """Something waits that a change may help."""
        self._wake.set()

    async def until_in(self, slots: Collection[int], process: Process, timeout: float) -> frozenset[int]:
        """Wait until a process is in the sets of ``slots``, at most ``timeout`` seconds; those in whose set it is."""
        give_up = time.monotonic() + timeout
        self._awaited.update(slots)
        try:
            while True:
                found = frozenset(slot for slot in slots if self._has(slot, process))
                left = give_up - time.monotonic()
                if len(found) == len(slots) or left <= 0:
                    return found
                self._decided.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, POLL_INTERVAL)):
                        await self._decided.wait()
        finally:
            self._awaited.subtract(slots)

    def _has(self, slot: int, process: Process) -> bool:
        active = self._active.get(slot)
        return active is not None and process in active.stream.agreed.members and active.stream.change is None

    async def run(self) -> None:
        """Change sets until cancelled."""
        try:
            while True:
                await self._active.some()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(until_tick(POLL_INTERVAL)):
                        await self._wake.wait()
                self._wake.clear()
                self._begin(self._proposals())
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- what to change --

    def _proposals(self) -> list[_Change]:
        now, before = time.monotonic(), self._last_seen
        seen = self._seen(now)
        looked_at: Iterable[ActiveSlot] = {*self._unsettled, *self._active.unfinished}
        if seen is not before or now - self._looked_at > LOOK_ANYWAY_AFTER:
            self._looked_at, looked_at = now, self._active.slots
        self._wanted_of.clear()
        unsettled = [one for one in looked_at if self._stands(one) and not self._fine(one, now, seen)]
        self._unsettled = set(unsettled)
        urgent = [one for one in unsettled if self._is_urgent(one)]
        found = [self._proposal(active, now, seen) for active in urgent]
        return [change for change in found if change is not None] + self._unhurried(unsettled, urgent, now, seen)

    def _is_urgent(self, active: ActiveSlot) -> bool:
        """Whether something waits for a change of the set, or there is only one copy."""
        alone = len(active.stream.agreed.members) == 1
        return alone or active.clearing or active.oldest() is not None or self._awaited[active.stream.slot] > 0

    def _unhurried(
        self, unsettled: Sequence[ActiveSlot], urgent: Collection[ActiveSlot], now: float, seen: object
    ) -> list[_Change]:
        """As many changes as may be made now that nothing waits for."""
        rest = set(unsettled).difference(urgent)
        allowed = self._pacing.allowed(now, len(rest))
        changes: list[_Change] = []
        for active in rest:
            if len(changes) == allowed:
                break
            change = self._proposal(active, now, seen)
            if change is not None:
                changes.append(change)
        self._pacing.took(len(changes))
        return changes

    def _seen(self, now: float) -> object:
        """What decides who should be in the sets, beside what copies confirm; another object if it has changed."""
        state = self._pool.state
        table = state.table.revision if state.table is not None else 0
        spec = state.spec.revision if state.spec is not None else 0
        members = [(name, at.revision) for name, at in state.members.items()]
        seen = (table, spec, members, self._connections.state(now - SILENT_AFTER), self._active.begun)
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

    def _proposal(self, active: ActiveSlot, now: float, seen: object) -> _Change | None:
        stream, held_back = active.stream, active.clearing
        if held_back:
            active.clearing, stream.change = False, None
        change = self._decision(active, now, seen)
        if held_back and change is None and not active.clearing:
            self._active.advance(stream.slot)
        return change

    def _decision(self, active: ActiveSlot, now: float, seen: object) -> _Change | None:
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

    def _growth(self, active: ActiveSlot, learner: Process) -> _Change | None:
        """The change by which a process joins that has caught up."""
        stream = active.stream
        at = self._pool.state.members.get(learner.member)
        if at is None or at.record.boot != learner.boot or not stream.follows(learner):
            return None
        grown = sync_set.with_learner(stream.agreed, learner, stream.progress)
        if grown is None:
            return None
        if self._memory(active):
            grown = sync_set.announced(grown) or grown
        return self._change(active, grown, learner=(self._keys.member(learner.member), at.revision))

    def _memory(self, active: ActiveSlot) -> bool:
        """Whether writes of a slot are to be acknowledged from memory: by the pool's spec, or by single writes."""
        spec = self._pool.spec
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

    def _removal(self, active: ActiveSlot, lost: Collection[Process]) -> _Change | None:
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
    ) -> _Change | None:
        slot, owned = active.stream.slot, active.owned
        at = self._pool.state.sync_sets.get(slot)
        if at is None or not is_valid(owned.owner, at):
            return None  # the watch has not brought the record of our own claim yet
        if agreed_set(owned.owner, at) != active.stream.agreed:
            return None
        return _Change(active, wanted, owned.fence, at.revision, at.record, learner, saves)

    # -- changing --

    def _begin(self, changes: Sequence[_Change]) -> None:
        together: list[_Change] = []
        size = 0
        for change in changes:
            change.active.stream.change = change.wanted
            change.active.removing = bool(change.saves)
            if change.slot in self._alone:
                self._alone.discard(change.slot)
                self._start([change])
                continue
            if together and (len(together) == TOGETHER_MOST or size + len(change.saves) > TOGETHER_MOST):
                self._start(together)
                together, size = [], 0
            together.append(change)
            size += len(change.saves)
        if together:
            self._start(together)

    def _start(self, changes: Sequence[_Change]) -> None:
        task = asyncio.create_task(self._carry_out(list(changes)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, changes: list[_Change]) -> None:
        """Send a transaction until its outcome is known, or all of its slots are lost."""
        keys = self._keys
        compares: list[Compare] = []
        success: list[Operation] = []
        failure: list[Operation] = []
        for change in changes:
            owner, sync = keys.owner(change.slot), keys.sync_set(change.slot)
            compares.append(ModRevision(owner, change.fence))
            compares.append(ModRevision(sync, change.replaces) if change.replaces else CreateRevision(sync, 0))
            if change.learner is not None:
                compares.append(ModRevision(*change.learner))
            success.append(Put(sync, change.record.encode()))
            success.extend(change.saves)
            failure.append(Get(owner))
            failure.append(Get(sync))
        unknown = False
        while any(self._stands(change.active) for change in changes):
            try:
                result, _ = await retry_txn(self._etcd, compares, success, failure, patience=OUTCOME_TIMEOUT)
            except OutcomeUnknown as error:
                logger.warning("whether sync sets have changed is not known yet: %s", error)
                unknown = True
                continue
            except EtcdError as error:
                logger.info("sync sets cannot be changed now: %s", error)
                await asyncio.sleep(RETRY_INTERVAL)
                if unknown:
                    continue  # this try had no effect, but an earlier one may have had it
                self._end(changes, {})
                return
            if result.succeeded:
                self._end(changes, {change.slot: result.revision for change in changes})
            else:
                self._sort_out(changes, result.answers)
            return

    def _stands(self, active: ActiveSlot) -> bool:
        return self._active.get(active.stream.slot) is active

    def _sort_out(self, changes: Sequence[_Change], answers: Sequence[Sequence[Kv]]) -> None:
        """A compare has failed: find which, and whether an earlier try was applied after all."""
        applied: dict[int, int] = {}
        for change, owners, syncs in zip(changes, answers[::2], answers[1::2], strict=True):
            self._alone.add(change.slot)
            if syncs:
                self._pool.state.read_sync_set(change.slot, syncs[0])
                if syncs[0].value == change.record.encode() and syncs[0].mod_revision > change.replaces:
                    applied[change.slot] = syncs[0].mod_revision
            if owners and owners[0].mod_revision != change.fence:
                self._updates.refused_by(change.slot, owners[0])
        self._end(changes, applied)

    def _end(self, changes: Sequence[_Change], applied: dict[int, int]) -> None:
        """The outcome of each change is known: the revisions of those that took effect."""
        removed: dict[str, list[int]] = {}
        for change in changes:
            if not self._stands(change.active):
                continue
            stream = change.active.stream
            change.active.removing = False
            revision = applied.get(change.slot)
            if revision is None:
                stream.decided(stream.agreed)
            else:
                self._pool.state.note_sync_set(change.slot, change.record, revision)
                for gone in stream.agreed.members - change.wanted.members:
                    removed.setdefault(gone.member, []).append(change.slot)
                for joined in change.wanted.members - stream.agreed.members:
                    self._connections.joined(change.slot, joined)
                stream.decided(change.wanted)
                if change.saves:
                    self._active.all_saved(change.slot, stream.acknowledged)
            self._active.advance(change.slot)
            self._connections.send(change.slot)
        for member, slots in removed.items():
            logger.info("%s is out of the sync sets of %d slots: %s", member, len(slots), ", ".join(map(str, slots)))
        self._decided.set()
