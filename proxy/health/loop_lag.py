"""How late this process's event loop is: the measure of CPU load in heartbeats, and a check of its own.

A task wakes every :data:`POLL_INTERVAL` seconds and notes how late it was. Other threads may ask when it last ran.
"""

import asyncio
import contextlib
import math
import os
import time
from collections import deque
from pathlib import Path
from typing import BinaryIO

from understudy.statesync.heartbeat.adaptive_timeout import LONGEST_LOAD, Delays
from understudy.statesync.heartbeat.heartbeat import MOST_STANDSTILLS
from understudy.statesync.process.ticks import until_tick

POLL_INTERVAL = 0.05
STALLED_AFTER = 1.0
"""Seconds without a turn of the event loop after which this member cannot serve, although its process lives."""
STALLED_WITHOUT_ETCD = 5.0
"""The same while etcd has no leader, and for as long after that. The calls that have waited then come all at once, to
every member. No other member could serve instead, since nobody can claim. A process that stands still for good no
longer hears of etcd either, so this limit does not last."""
SMOOTHED_OVER = 1.0
"""Seconds after which a delay weighs 1/e of a new one, so that one pause is no overload."""
STOOD_STILL = 0.5
"""Seconds by which the event loop must be late for the process to have stood still."""
WAKING = 1.0
"""Seconds after a standstill for which a call that is read may have waited in its socket since before it."""


STILL_FROM = 0.2
"""The shortest standstill that counts, in seconds; front Envoys and pulses notice one of 0.3 s."""
STILL_TOLD = 40.0
"""Seconds for which a standstill is reported: longer than a control server waits for a member that was taken over."""
_SCHEDSTAT = Path("/proc/thread-self/schedstat")


def stood_still(late: float, ran: float, waited: float | None) -> float:
    """For how many of the ``late`` seconds the process stood still: it neither ran nor waited for a CPU. 0 for none.

    Such a process was stopped, or its container was frozen; more CPU would not have helped. ``ran`` is the CPU time of
    the whole process meanwhile. ``waited`` is how long this thread was ready to run without a CPU; None where the
    kernel does not say. Then a delay counts that no load explains.
    """
    if waited is None:
        waited = 0.0 if late > LONGEST_LOAD else late
    still = late - ran - waited
    return still if still >= STILL_FROM else 0.0


class CpuWait:
    """How long the thread that makes this object has been ready to run without a CPU (Linux: sched_info, run_delay)."""

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        with contextlib.suppress(OSError):
            self._file = _SCHEDSTAT.open("rb", buffering=0)  # once: opening takes longer than all else in a look

    def seconds(self) -> float | None:
        """The time so far; None where the kernel does not say."""
        if self._file is None:
            return None
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(os.pread(self._file.fileno(), 100, 0).split()[1]) / 1e9
        return None


def bearable(now: float, no_leader_at: float) -> float:
    """Seconds for which the event loop may stand still at ``now`` before front Envoys should go elsewhere.

    ``no_leader_at`` is when etcd was last seen to have no leader; both are monotonic.
    """
    return STALLED_WITHOUT_ETCD if now - no_leader_at < STALLED_WITHOUT_ETCD else STALLED_AFTER


class LoopLag:
    """The event loop's delays of the last :data:`LOAD_WINDOW` seconds, as :meth:`run` sees them.

    Make it in the thread of the event loop.
    """

    def __init__(self) -> None:
        self._ran_at = time.monotonic()
        self._delays = Delays()
        self._cpu_wait = CpuWait()
        self._ran, self._waited = time.process_time(), self._cpu_wait.seconds()
        self._stood = 0.0
        self.smoothed = 0.0
        """How late the event loop is, in seconds, smoothed over :data:`SMOOTHED_OVER`."""
        self._woke_at = -WAKING
        self._stills: deque[tuple[float, float]] = deque(maxlen=MOST_STANDSTILLS)

    def standstills(self) -> list[tuple[float, float]]:
        """The last standstills of this process: their length, and how long ago they ended, in seconds."""
        now = time.monotonic()
        return [(round(still, 3), round(now - woke, 3)) for woke, still in self._stills if now - woke < STILL_TOLD]

    def standstill(self) -> float:
        """Seconds for which a call that is read now may have waited in its socket because this process stood still."""
        now = time.monotonic()
        late = now - self._ran_at - POLL_INTERVAL
        if now - self._woke_at < WAKING:
            return max(late if late > STOOD_STILL else 0.0, self._stood)
        return late if late > STOOD_STILL else 0.0

    def input_waited(self, since: float, still_most: float, late_most: float, settled: float) -> bool:
        """Whether input of a connection made at ``since`` (monotonic) may have waited in its socket for too long.

        It has if this process stood still for longer than ``still_most`` seconds, or had no time for it for longer than
        ``late_most``. Connections that were made ``settled`` seconds after that, or later, bring only new input.
        """
        now = time.monotonic()
        late = now - self._ran_at - POLL_INTERVAL
        if late > late_most or (late > still_most and self._still(late) > still_most):
            return True
        if late_most < self._stood and now - self._woke_at < WAKING and since < self._woke_at + settled:
            return True
        return bool(self._stills) and any(  # hardly ever; the generator alone takes as long as all of the above
            still > still_most and now - woke < WAKING and since < woke + settled for woke, still in self._stills
        )

    def _still(self, late: float) -> float:
        """For how long this process has stood still of the time by which it is late now."""
        return stood_still(late, time.process_time() - self._ran, _between(self._waited, self._cpu_wait.seconds()))

    @property
    def worst(self) -> float:
        """The longest recent delay, in seconds."""
        return self._delays.worst

    @property
    def now(self) -> float:
        """How late the event loop is at this moment, in seconds; for other threads."""
        return max(time.monotonic() - self._ran_at - POLL_INTERVAL, 0.0)

    async def run(self) -> None:
        """Measure until cancelled. Each turn begins where the one before ended, so no standstill falls between them."""
        now, ran, waited = time.monotonic(), time.process_time(), self._cpu_wait.seconds()
        while True:
            self._ran_at, self._ran, self._waited = now, ran, waited
            rest = until_tick(POLL_INTERVAL)
            await asyncio.sleep(rest)
            now, ran, waited = time.monotonic(), time.process_time(), self._cpu_wait.seconds()
            late = now - self._ran_at - rest
            still = stood_still(late, ran - self._ran, _between(self._waited, waited))
            if still:  # it waited for a CPU only after it was woken
                self._stills.append((now - late + still, still))
            self._delays.note(late, now)
            weight = 1 - math.exp(-(now - self._ran_at) / SMOOTHED_OVER)
            self.smoothed += (max(late, 0.0) - self.smoothed) * weight
            if late > STOOD_STILL:
                self._stood, self._woke_at = late, now


def _between(before: float | None, after: float | None) -> float | None:
    """The difference of two readings; None if one of them is not known."""
    return None if before is None or after is None else after - before
