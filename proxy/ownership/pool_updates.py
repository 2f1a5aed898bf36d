"""Takes in changes of the pool's records in etcd, and wakes who waits for them.

Receives the batches of the member's watch, and owner records that etcd showed when it refused something. Also notices
when others took this process for dead, since its next takeover is then another one (``incarnation``).
"""

import asyncio
import time
from collections.abc import Callable, Iterable

from understudy.proxy.events.incarnation import Incarnation
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.drain_reason import DrainState
from understudy.proxy.ownership.owned_slots import OwnedSlots
from understudy.statesync.etcd.client import Event, Kv
from understudy.statesync.etcd.informer import InformerBatch
from understudy.statesync.pool.ownership import is_handover
from understudy.statesync.pool.state import Changed
from understudy.telemetry.tracing.ids import takeover_seed


class PoolUpdates:
    """The receiver of the member's watch; one per process."""

    def __init__(
        self,
        pool: PoolView,
        owned: OwnedSlots,
        drain: DrainState,
        incarnation: Incarnation,
    ) -> None:
        self._pool = pool
        self._owned = owned
        self._drain = drain
        self._incarnation = incarnation
        self._changed = asyncio.Event()
        self.on_epoch: Callable[[int, int], None] = lambda _slot, _epoch: None
        """Called with each slot and the epoch of its owner record, when owner records have changed."""

        self.on_take_over: Callable[[], None] = lambda: None
        """Called when a site may have gone on with its part of etcd alone, once the records are those of this etcd."""

    def apply(self, batch: InformerBatch) -> Changed:
        """Take in a batch; returns what kinds of record changed."""
        state = self._pool.state
        changed = state.apply(batch)
        for slot, at in state.owners.items() if changed & Changed.OWNERS else ():
            self.on_epoch(slot, at.record.epoch)
        for slot in self._owned.slots if changed & Changed.OWNERS else ():
            found = state.owners.get(slot)
            if found is not None and self._owned.learn(slot, found.record, found.revision, self._pool.identity):
                self._note_takeover(not is_handover(found.record.cause))
        if changed & Changed.TAKE_OVER:
            self.on_take_over()
        me = self._pool.identity
        if changed & Changed.TABLE:
            self._note_takeover(self._pool.view().named_lost(me.me, me.boot))
        if changed & Changed.FAILOVERS:
            self._note_takeover(self._names_takeover_of_us(batch.events))
        if changed & Changed.INTENTS:
            self._drain.intents_changed = time.monotonic()
        for member in state.members if changed & Changed.MEMBERS else ():
            self._pool.remember(member)
        if changed & ~Changed.SYNC_SETS:  # nobody waits for those, and a death changes them in every slot
            self.wake()
        return changed

    def refused_by(self, slot: int, found: Kv) -> None:
        """Take in the owner record that etcd showed while it refused a write of ours."""
        owner = self._pool.state.read_owner(slot, found)
        if owner is not None:
            self._note_takeover(self._owned.learn(slot, owner, found.mod_revision, self._pool.identity))

    def _names_takeover_of_us(self, events: Iterable[Event]) -> bool:
        """Whether somebody has taken over from this process in its present life: each such claim writes a record.

        A takeover of slots that this process had lost already shows nowhere else, and the next one would count as the
        same takeover.
        """
        me = self._pool.identity
        life = takeover_seed(me.keys.pool, me.me, me.boot, self._incarnation.count)
        return any(event.kv.key.startswith(me.keys.parts_of_failover(life.hex)) for event in events)

    def _note_takeover(self, so: bool) -> None:
        """Somebody took this process for dead, if ``so``."""
        if so:
            self.taken_for_dead()

    def taken_for_dead(self) -> None:
        """Somebody took this process for dead, and it lives."""
        self._incarnation.taken(time.monotonic())

    # -- who waits for changes --

    def wake(self) -> None:
        """Something has changed: wake everybody who waits."""
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def changed(self) -> asyncio.Event:
        """An event that the next change sets. Take it first, then look at the pool, then wait for it."""
        return self._changed

    @staticmethod
    async def wait(seen: asyncio.Event, timeout: float) -> None:
        """Wait for a change since ``seen`` was taken, at most ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await seen.wait()
        except TimeoutError:
            return
