"""Services that look at something every few milliseconds, and wake together: one wake-up of the process for all."""

import random
import time

_PHASE = random.random()  # noqa: S311 - so that the processes of a machine do not wake together


def until_tick(interval: float) -> float:
    """Seconds to sleep until the next tick of ``interval`` seconds, but at least a quarter of it.

    Ticks are the same for all services of a process.
    """
    rest = interval - (time.monotonic() + _PHASE) % interval
    return rest if rest >= interval / 4 else rest + interval
