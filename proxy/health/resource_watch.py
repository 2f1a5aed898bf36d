"""Watches the resources that this member can run out of, and tells when it will.

A reading of each is taken every :data:`POLL_INTERVAL`. :mod:`understudy.proxy.health.forecast` judges them. The worst
forecast is part of the member's record, so that the leader can move the member's slots before it fails.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from understudy.proxy.health.forecast import (
    CERTIFICATE,
    Forecast,
    Reading,
    Trend,
    Unit,
    follow,
    of_certificate,
    unseen,
    worst,
)
from understudy.proxy.health.loop_lag import STALLED_AFTER, LoopLag
from understudy.proxy.health.resource_usage import (
    Listeners,
    descriptors,
    disk,
    groups_of,
    memory_in,
    memory_of,
    resident,
    started,
)
from understudy.statesync.process.ticks import tick
from understudy.statesync.tls.validity import validity

logger = logging.getLogger(__name__)

POLL_INTERVAL = 1.0


@dataclass(frozen=True, slots=True)
class Watched:
    """What is watched of a member.

    ``app`` is the application's port. ``app_memory`` is a limit in bytes for its resident memory, 0 for that of its
    control group: ``app_cgroup`` is its directory, if it is not to be found by the process. ``disks`` are paths whose
    file systems must not fill. ``certificate`` is our own certificate's file.
    """

    app: int
    app_memory: int = 0
    app_cgroup: Path | None = None
    disks: tuple[Path, ...] = ()
    certificate: Path | None = None


class UsageReader:
    """Takes the readings of one member; :meth:`read` blocks, and is called by one thread at a time."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._application = Listeners(watched.app)
        self._me = os.getpid()
        self._own = f"{self._me}:{started(self._me)}"

    def read(self) -> tuple[list[Reading], tuple[float, float] | None]:
        """What is used now of everything that can be read, and begin and end of our certificate in wall time."""
        own = memory_of("sidecar memory", self._me, self._own)
        found = [own, descriptors("sidecar file descriptors", self._me, self._own)]
        found += [disk(path) for path in self._watched.disks]
        processes = self._application.processes(time.monotonic())
        if processes:
            found += self._of_application(processes, own)
        elif self._watched.app_cgroup:
            found.append(memory_in("memory", [self._watched.app_cgroup], ""))
        return [one for one in found if one is not None], self._validity()

    def _validity(self) -> tuple[float, float] | None:
        if self._watched.certificate is None:
            return None
        try:
            return validity(self._watched.certificate)
        except (OSError, ValueError):
            return None  # whoever loads it says what is wrong with it

    def _of_application(self, processes: Mapping[int, str], own: Reading | None) -> list[Reading | None]:
        first = next(iter(processes))
        if first == self._me:
            return []
        source = f"{first}:{processes[first]}"
        if self._watched.app_memory:
            memory = resident("memory", list(processes), self._watched.app_memory, source)
        elif self._watched.app_cgroup:
            memory = memory_in("memory", [self._watched.app_cgroup], source)
        elif groups_of(first) == groups_of(self._me):
            memory = None  # application and sidecar share a group: it is watched once, and read once
        else:
            memory = memory_of("memory", first, source)
            if memory and own and memory.source.split()[1:] == own.source.split()[1:]:
                memory = None  # they share the group that has the limit
        files = [one for pid in processes if (one := descriptors("file descriptors", pid, source)) is not None]
        return [memory, max(files, key=lambda one: one.share, default=None)]


class ResourceWatch:
    """The forecasts of one member.

    Args:
        reader: takes the readings.
        loop_lag: how late this process's event loop is; its limit is where the member counts as frozen.
        wanted: whether the pool's spec asks for forecasts.
        on_change: called when the level or the reason of :attr:`forecast` has changed.
    """

    def __init__(
        self,
        reader: UsageReader,
        loop_lag: LoopLag,
        wanted: Callable[[], bool],
        on_change: Callable[[], None],
    ) -> None:
        self._reader = reader
        self._loop_lag = loop_lag
        self._wanted = wanted
        self._on_change = on_change
        self._trends: dict[str, Trend] = {}
        self._certificate: Forecast | None = None
        self.forecast = Forecast()
        """The worst of :attr:`forecasts`."""

    @property
    def forecasts(self) -> Mapping[str, Forecast]:
        """The forecast of every resource that can be read, by its name."""
        found = {name: trend.forecast for name, trend in self._trends.items()}
        return found if self._certificate is None else {**found, CERTIFICATE: self._certificate}

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await tick(POLL_INTERVAL)
            if self._wanted():
                try:
                    readings, certificate = await asyncio.to_thread(self._reader.read)
                except (OSError, ValueError):
                    logger.exception("the resources of this member cannot be read")
                    continue
                self._note([*readings, self._of_loop()], certificate, time.monotonic(), time.time())
            elif self._trends:
                self._trends, self._certificate = {}, None
                self._tell(Forecast())

    def _of_loop(self) -> Reading:
        return Reading("event loop delay", self._loop_lag.worst, STALLED_AFTER, "", Unit.SECONDS)

    def _note(
        self, readings: Sequence[Reading], certificate: tuple[float, float] | None, now: float, wall: float
    ) -> None:
        read = {one.name: follow(self._trends.get(one.name), one, now) for one in readings}
        left = {name: unseen(trend, now) for name, trend in self._trends.items() if name not in read}
        self._trends = {**{name: trend for name, trend in left.items() if trend is not None}, **read}
        self._certificate = of_certificate(*certificate, wall) if certificate else None
        self._tell(worst(self.forecasts.values()))

    def _tell(self, now: Forecast) -> None:
        before, self.forecast = self.forecast, now
        if (now.level, now.text) == (before.level, before.text):
            return
        if now.level is not before.level:
            log = logger.warning if now.level.rank > before.level.rank else logger.info
            log("forecast: %s%s", now.level, f": {now.text}" if now.text else "")
        self._on_change()
