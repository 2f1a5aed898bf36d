"""Watches what other sites lack of the slots that this member is active for: current copies, since when, and writes."""

import asyncio
import time
from collections.abc import Callable, Mapping

from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.owned_slots import OwnedSlots
from understudy.proxy.replication.copy_lag import Lag
from understudy.statesync.pool.site_copies import SiteExposure, lagging_slots

POLL_INTERVAL = 1.0
TOLERATED_SECONDS = 30.0
"""After a move the new copy of a slot should be current within this time; ``verify`` names slots beyond it."""


class SiteWatch:
    """Looks once a second; one per process. ``copy_lag``: how far the copies on other sites are behind."""

    def __init__(self, pool: PoolView, owned: OwnedSlots, copy_lag: Callable[[float], Mapping[str, Lag]]) -> None:
        self._pool = pool
        self._owned = owned
        self.copy_lag = copy_lag
        self.exposure = SiteExposure()

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            state = self._pool.state
            away = state.offline(time.time())
            self.exposure.look(lagging_slots(state, away, tuple(self._owned.slots)), time.monotonic())
            await asyncio.sleep(POLL_INTERVAL)

    def view(self) -> dict[str, object]:
        """For ``/v1/status``. ``late``: the slots that are on one site for longer than is tolerated."""
        now = time.monotonic()
        return {
            "slots": self.exposure.slots,
            "seconds": round(self.exposure.oldest(now), 1),
            "late": self.exposure.older_than(TOLERATED_SECONDS, now),
        }
