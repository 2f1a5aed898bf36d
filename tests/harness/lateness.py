"""How late this machine runs what is due: the difference between a process at fault and a machine without CPU."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

INTERVAL = 0.02
BUSY = 0.1
"""Seconds. A machine that was this late may let a process of the test stand still for longer than a pool is patient."""


@dataclass
class Lateness:
    """The longest time, in seconds, by which a thread woke too late."""

    worst: float = 0.0

    @property
    def busy(self) -> bool:
        """Whether silence of a process may be the machine's doing."""
        return self.worst > BUSY


@contextlib.contextmanager
def lateness() -> Iterator[Lateness]:
    """Measure during the block."""
    found, over = Lateness(), threading.Event()

    def measure() -> None:
        while not over.is_set():
            due = time.monotonic() + INTERVAL
            over.wait(INTERVAL)
            found.worst = max(found.worst, time.monotonic() - due)

    thread = threading.Thread(target=measure, name="lateness", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
