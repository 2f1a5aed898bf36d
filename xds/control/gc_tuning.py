"""Keeps Python's cycle collector away from changes, in a process that serves many streams.

A change wakes every stream at once. The objects that this makes start the collector in the middle of the change, again
and again, and sometimes over all objects: 100 ms with 1,000 streams. So young objects are collected less often, and old
objects only when nothing has been sent for a while. This affects the whole process.
"""

import asyncio
import gc
from collections.abc import Callable

YOUNG_THRESHOLD = 200_000
MIDDLE_THRESHOLD = 20
NEVER = 1_000_000
COLLECT_INTERVAL = 300.0
IDLE_SECONDS = 1.0


def defer_collection() -> None:
    """From now on automatic collection leaves out all present objects, and all that grow old."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_THRESHOLD, MIDDLE_THRESHOLD, NEVER)


def collect_now() -> None:
    """Collect among all objects once."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


async def collect_when_idle(
    activity: Callable[[], int], *, interval: float = COLLECT_INTERVAL, idle: float = IDLE_SECONDS
) -> None:
    """Defer collection until cancelled, and collect among all objects every so often.

    Args:
        activity: a number that changes with everything that must not be delayed.
        interval: seconds between two collections.
        idle: a collection waits until ``activity`` has not changed for this many seconds.
    """
    before = gc.get_threshold()
    defer_collection()
    try:
        while True:
            await asyncio.sleep(interval)
            seen = None
            while seen != (seen := activity()):  # noqa: ASYNC110 - an event per push would cost what this saves
                await asyncio.sleep(idle)
            collect_now()
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
