"""Removes expired sessions of owned slots from etcd."""

import asyncio

from understudy.proxy.ownership.owned_slots import NotMine, OwnedSlots
from understudy.proxy.sessions.owner_writes import OwnerWrites
from understudy.statesync.pool.pool_clock import PoolClock
from understudy.statesync.sessions.replica import Replica

SWEEP_INTERVAL = 10.0
MAX_SWEPT = 500
"""Sessions that one round removes at most."""


class SessionSweep:
    """Sweeps; one per member."""

    def __init__(self, replica: Replica, owned: OwnedSlots, clock: PoolClock, writes: OwnerWrites) -> None:
        self._replica = replica
        self._owned = owned
        self._clock = clock
        self._writes = writes

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_INTERVAL)
            now_ms = self._clock.expiry_ms()
            dead = [
                (slot, key)
                for slot in self._owned.open_slots()
                for key, session in self._replica.sessions_of(slot).items()
                if now_ms >= session.expires
            ]
            for slot, key in dead[:MAX_SWEPT]:
                try:
                    owned = await self._owned.enter(slot)
                except NotMine:
                    continue
                await self._writes.remove_dead(key, owned)
