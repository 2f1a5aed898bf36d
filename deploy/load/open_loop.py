"""The steady pace of a load: clients take turns, and each request is due by the clock whatever the answers do.

Request ``k`` is due at ``k / rate`` (open loop), and each client has at most one request on its way, as a person would.
What a request is, and what becomes of it, is the load's business (:mod:`understudy.deploy.load.http_load`,
:mod:`understudy.deploy.load.tcp_load`).
"""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable


class Pace:
    """The turns of ``clients`` clients, numbered from 0, which make ``rate`` requests a second together.

    ``clock`` gives monotonic seconds. ``late`` is how late a request began at the worst, in seconds: a machine where
    that is much is too busy to judge others.
    """

    def __init__(self, clients: int, rate: float, clock: Callable[[], float]) -> None:
        self.late = 0.0
        self._clients = clients
        self._rate = rate
        self._clock = clock
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def between(self) -> float:
        """Seconds between two requests of one client."""
        return self._clients / self._rate

    def start(self, ask: Callable[[int, bool], Awaitable[object]]) -> None:
        """Begin: ``ask(number, writes)`` is one request of a client. A third of them write."""
        begin = self._clock()
        self._tasks = [asyncio.create_task(self._turns(number, begin, ask)) for number in range(self._clients)]

    async def stop(self) -> None:
        """Begin nothing new and wait for the answers still to come."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)

    async def cancel(self) -> None:
        """End whatever still runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _turns(self, number: int, begin: float, ask: Callable[[int, bool], Awaitable[object]]) -> None:
        for turn in itertools.count():
            due = begin + (turn * self._clients + number) / self._rate
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), max(0.0, due - self._clock()))
            if self._stopping.is_set():
                return
            self.late = max(self.late, self._clock() - due)
            # A third of each client's requests are writes, and of each moment's as well.
            await ask(number, (turn + number) % 3 == 0)
