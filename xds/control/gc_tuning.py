"""Keeps Python's cycle collector out of the way of changes, in a process that serves many streams.

A change wakes every stream at once; the objects of that moment make the collector run in the middle of it, again and
again, and sometimes over everything there is: 100 ms with 1,000 streams. So young objects are collected less often,
and old ones only when nothing has been sent for a while. Process-wide, so only for who owns the process.
"""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

YOUNG = 200_000
MIDDLE = 20
NEVER = 1_000_000
EVERY = 300.0
CALM = 1.0


def defer_collection() -> None:
    """From now on no automatic collection looks at what is there now, nor at anything that has grown old."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, NEVER)


def collect_now() -> None:
    """Look at everything once."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@asynccontextmanager
async def collecting_when_calm(
    activity: Callable[[], int], *, every: float = EVERY, calm: float = CALM
) -> AsyncIterator[None]:
    """Defer collection inside the block, and catch up every so often.

    Args:
        activity: a number that changes with whatever must not be held up.
        every: seconds between looks at everything.
        calm: such a look waits until ``activity`` has not changed for this many seconds.
    """
    before = gc.get_threshold()
    defer_collection()
    task = asyncio.create_task(_catch_up(activity, every, calm), name="garbage collection")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        gc.set_threshold(*before)
        gc.unfreeze()


async def _catch_up(activity: Callable[[], int], every: float, calm: float) -> None:
    while True:
        await asyncio.sleep(every)
        seen = None
        while seen != (seen := activity()):  # noqa: ASYNC110 - an event per push would cost what this is to save
            await asyncio.sleep(calm)
        collect_now()
