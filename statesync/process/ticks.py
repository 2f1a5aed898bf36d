"""Services that look at something every few milliseconds, and wake together: one wake-up of the process for all."""

import asyncio
import random
import time
from weakref import WeakKeyDictionary

_PHASE = random.random()  # noqa: S311 - so that the processes of a machine do not wake together
_TICKS: "WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, list[asyncio.Future[None]]]]" = WeakKeyDictionary()
_MICROSECONDS = 1_000_000


def until_tick(interval: float) -> float:
    """Seconds to sleep until the next tick of ``interval`` seconds, but at least a quarter of it.

    Ticks are the same for all services of a process.
    """
    rest = interval - (time.monotonic() + _PHASE) % interval
    return rest if rest >= interval / 4 else rest + interval


def tick(interval: float) -> "asyncio.Future[None]":
    """A future that is done at the next tick of ``interval`` seconds, but a quarter of it from now at the earliest.

    All futures of one tick share a timer. The caller may end its future before.
    """
    loop = asyncio.get_running_loop()
    rest = until_tick(interval)
    ticks = _TICKS.get(loop)
    if ticks is None:
        ticks = _TICKS[loop] = {}
    at = round((time.monotonic() + rest + _PHASE) / interval) * round(interval * _MICROSECONDS)
    waiting = ticks.get(at)
    if waiting is None:
        waiting = ticks[at] = []
        loop.call_later(rest, _end, ticks, at)
    future = loop.create_future()
    waiting.append(future)
    return future


def _end(ticks: "dict[int, list[asyncio.Future[None]]]", at: int) -> None:
    for future in ticks.pop(at):
        if not future.done():
            future.set_result(None)


class Alarm:
    """Something that a service waits for until the next tick at the most. For one waiter."""

    def __init__(self) -> None:
        self._set = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        """End the wait that is under way, or the next one."""
        self._set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def is_set(self) -> bool:
        """Whether it was set since the last wait."""
        return self._set

    async def wait(self, interval: float) -> None:
        """Wait until it is set, or until the next tick of ``interval`` seconds."""
        if not self._set:
            self._waiter = tick(interval)
            await self._waiter
        self._set = False
