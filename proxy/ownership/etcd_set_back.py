"""What a process does when a site went on with its part of etcd alone (``understudy site take-over``).

This etcd may lack the newest of what the one before had: sessions, and owner records. What is in memory here was
acknowledged, so nothing of it counts as saved any more: whoever is or becomes active of a slot saves all its sessions
again. A slot is kept only if its owner record is still the one that makes it ours.
"""

import logging

from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.active_slots import ActiveSlots
from understudy.proxy.ownership.owned_slots import OwnedSlots
from understudy.proxy.replication.copy_keeper import CopyKeeper
from understudy.statesync.pool.ownership import agreed_set
from understudy.statesync.sessions.replica import Replica

logger = logging.getLogger(__name__)


class EtcdSetBack:
    """Notices take-overs; one per process. A process knows of none before it has read the pool."""

    def __init__(
        self, pool: PoolView, replica: Replica, keeper: CopyKeeper, owned: OwnedSlots, active: ActiveSlots
    ) -> None:
        self._pool = pool
        self._replica = replica
        self._keeper = keeper
        self._owned = owned
        self._active = active
        self._known: int | None = None

    def look(self) -> None:
        """To be called after each change of the pool's records."""
        generation, before = self._pool.state.generation, self._known
        self._known = generation
        if before is not None and generation > before:
            logger.warning("etcd was taken over without its majority: all sessions in memory are saved again")
            self._save_all_again()

    def _save_all_again(self) -> None:
        state = self._pool.state
        mine = self._active.slots
        for one in mine:
            self._active.lost(one.stream.slot)  # what it has becomes a copy
        for slot, copy in self._keeper.copies.items():
            if copy.whole:
                sessions = self._replica.sessions_of(slot).items()
                copy.nothing_saved((session.version, key) for key, session in sessions)
        for slot in self._owned.slots:
            at = state.owners.get(slot)
            if at is None or at.revision != self._owned.fence_of(slot):
                self._owned.lose(slot)
        for one in mine:
            slot = one.stream.slot
            if self._owned.get(slot) is one.owned:
                self._active.begin_from_memory(
                    one.owned, agreed_set(state.owners[slot].record, state.sync_sets.get(slot))
                )
