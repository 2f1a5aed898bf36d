"""One timer for many waits with a time limit."""

import asyncio
import time

LATENESS = 0.02
"""Seconds by which a wait may end late."""


class SharedTimer:
    """Limits how long many futures are waited for; belongs to one event loop.

    Session writes come by the thousand and hardly any of them times out, so a timer for each would be a waste.
    """

    def __init__(self) -> None:
        self._deadlines: list[tuple[float, asyncio.Future[None]]] = []
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, waiter: asyncio.Future[None], timeout: float) -> None:
        """Wait until ``waiter`` is done, or for ``timeout`` seconds; then its result is set to None."""
        self._deadlines.append((time.monotonic() + timeout, waiter))
        if self._timer is None:
            self._start()
        await waiter

    def _start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LATENESS, self._expire)

    def _expire(self) -> None:
        """End the waits whose time is over; runs every :data:`LATENESS` seconds while there are any."""
        now = time.monotonic()
        waiting = [(at, waiter) for at, waiter in self._deadlines if not waiter.done()]
        for at, waiter in waiting:
            if at <= now:
                waiter.set_result(None)
        self._deadlines = [(at, waiter) for at, waiter in waiting if at > now]
        self._timer = None
        if self._deadlines:
            self._start()
