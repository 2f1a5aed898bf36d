"""Writes that were answered before others had them (``durability: async``)."""

import asyncio
import logging
from collections.abc import Callable

ASYNC_TIMEOUT = 1.0
logger = logging.getLogger(__name__)


class AsyncWrites:
    """The ``async`` writes that are not acknowledged yet; ``lost`` counts those that may be lost."""

    def __init__(self, on_lost: Callable[[int], None]) -> None:
        """``on_lost`` is called with the slot of each write that may be lost."""
        self.lost = 0
        self._on_lost = on_lost
        self._waiting: dict[tuple[int, str], asyncio.Future[int]] = {}

    def waiting(self, slot: int, key: str) -> bool:
        """Whether a write to this session was answered and is not visible yet."""
        return (slot, key) in self._waiting

    async def settled(self, slot: int, key: str) -> None:
        """Wait until such a write is visible or lost, for :data:`ASYNC_TIMEOUT` at the most."""
        pending = self._waiting.get((slot, key))
        if pending is not None:
            await asyncio.wait((pending,), timeout=ASYNC_TIMEOUT)

    def follow(self, slot: int, key: str, write: "asyncio.Future[int]") -> None:
        """A write is answered before others have it: reads wait for it, and its loss is counted."""
        self._waiting[slot, key] = write

        def settled(done: "asyncio.Future[int]") -> None:
            self._waiting.pop((slot, key), None)
            if done.cancelled() or done.exception() is not None:
                self.lost += 1
                self._on_lost(slot)
                error = None if done.cancelled() else done.exception()
                logger.warning("an async write in slot %d may be lost: %s", slot, error or "it was cancelled")

        write.add_done_callback(settled)
