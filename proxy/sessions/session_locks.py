"""Whose turn it is to write a session. Turns are taken and given back by ``owner_calls``."""

import asyncio
from collections import deque


class SessionLocks:
    """Who may write a session now: one at a time per session, in order of asking. Idle sessions cost nothing.

    ``waiting`` is how many wait for their turn.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, str], deque[asyncio.Future[None]]] = {}
        self.waiting = 0

    def taken(self, slot: int, key: str) -> bool:
        """Whether somebody has the turn."""
        return (slot, key) in self._waiting

    async def take(self, slot: int, key: str) -> None:
        """Wait for the turn; it must be given back."""
        queue = self._waiting.get((slot, key))
        if queue is None:
            self._waiting[slot, key] = deque()
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        self.waiting += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(slot, key)
            raise
        finally:
            self.waiting -= 1

    def give_back(self, slot: int, key: str) -> None:
        """Pass the turn on to whoever has waited longest."""
        queue = self._waiting[slot, key]
        while queue:
            turn = queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._waiting[slot, key]
