"""An open-loop load: requests start at a constant rate, whatever the answers do.

Request ``k`` starts at ``k / rate``. Clients take turns, and each has at most one request at a time.
:mod:`understudy.deploy.load.http_load` and :mod:`understudy.deploy.load.tcp_load` make the requests.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable

from understudy.statesync.process.services import set_within


class OpenLoop:
    """``clients`` clients, numbered from 0, that make ``rate`` requests per second in total.

    ``clock`` gives monotonic seconds. ``late`` is the largest delay of the start of a request, in seconds. If it is
    large, this machine is too busy and the results mean little.
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
        """Start the load: ``ask(number, writes)`` makes one request of a client. One third of the requests write."""
        begin = self._clock()
        self._tasks = [asyncio.create_task(self._turns(number, begin, ask)) for number in range(self._clients)]

    async def stop(self) -> None:
        """Start no new requests, and wait for the answers to the others."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)

    async def cancel(self) -> None:
        """Cancel all requests."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _turns(self, number: int, begin: float, ask: Callable[[int, bool], Awaitable[object]]) -> None:
        for turn in itertools.count():
            due = begin + (turn * self._clients + number) / self._rate
            if await set_within(self._stopping, max(0.0, due - self._clock())):
                return
            self.late = max(self.late, self._clock() - due)
            # One third of each client's requests are writes, and one third at any moment.
            await ask(number, (turn + number) % 3 == 0)
