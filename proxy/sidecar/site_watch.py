"""Watches which slots that this member is active for have current copies on one site only, and since when."""

import asyncio
import time

from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.owned_slots import OwnedSlots
from understudy.statesync.pool.site_copies import SiteExposure, lagging_slots

POLL_INTERVAL = 1.0
TOLERATED_SECONDS = 30.0
"""After a move the new copy of a slot should be current within this time; ``verify`` names slots beyond it."""


class SiteWatch:
    """Looks once a second; one per process."""

    def __init__(self, pool: PoolView, owned: OwnedSlots) -> None:
        self._pool = pool
        self._owned = owned
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
