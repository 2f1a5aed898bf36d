"""What a process does when a site went on with its part of etcd alone (``understudy site take-over``).

This etcd may lack the newest of what the one before had: sessions, removals of sessions, and owner records. What is in
memory here was acknowledged, so nothing of it counts as saved any more: whoever becomes active of a slot saves all its
sessions again. All owner records have other epochs, so every slot is lost. A process whose owner record still names it
takes the slot back from its memory (``SlotReconciler``).
"""

import logging

from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.owned_slots import OwnedSlots
from understudy.proxy.replication.copy_keeper import CopyKeeper
from understudy.statesync.sessions.replica import Replica

logger = logging.getLogger(__name__)


class EtcdSetBack:
    """Notices take-overs; one per process. A process knows of none before it has read the pool."""

    def __init__(self, pool: PoolView, replica: Replica, keeper: CopyKeeper, owned: OwnedSlots) -> None:
        self._pool = pool
        self._replica = replica
        self._keeper = keeper
        self._owned = owned
        self._known: int | None = None

    def look(self) -> None:
        """To be called after each change of the pool's records."""
        generation, before = self._pool.state.generation, self._known
        self._known = generation
        if before is not None and generation > before:
            logger.warning("etcd was taken over without its majority: all sessions in memory are saved again")
            self._save_all_again()

    def _save_all_again(self) -> None:
        for slot in self._owned.slots:
            self._owned.lose(slot)  # what it has becomes a copy
        for slot, copy in self._keeper.copies.items():
            if copy.whole:
                copy.nothing_saved(self._replica.versions(slot))
