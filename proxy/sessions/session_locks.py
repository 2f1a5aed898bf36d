"""A lock for each session that is being written; ``owner_writes`` takes and releases them."""

import asyncio
from collections import deque


class SessionLocks:
    """One writer at a time per session, in the order of asking. Idle sessions cost nothing.

    ``waiting`` is how many wait for a lock.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, str], deque[asyncio.Future[None]] | None] = {}
        self.waiting = 0

    def locked(self, slot: int, key: str) -> bool:
        """Whether somebody has the lock."""
        return (slot, key) in self._waiting

    def take(self, slot: int, key: str) -> None:
        """Take a lock that nobody has; it must be released."""
        self._waiting[slot, key] = None

    async def acquire(self, slot: int, key: str) -> None:
        """Wait for the lock; it must be released."""
        if (slot, key) not in self._waiting:
            self.take(slot, key)
            return
        queue = self._waiting[slot, key]
        if queue is None:
            queue = self._waiting[slot, key] = deque()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        self.waiting += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(slot, key)
            raise
        finally:
            self.waiting -= 1

    def release(self, slot: int, key: str) -> None:
        """Pass the lock on to the caller that has waited longest."""
        queue = self._waiting.pop((slot, key))
        while queue:
            turn = queue.popleft()
            if not turn.done():
                self._waiting[slot, key] = queue
                turn.set_result(None)
                return
