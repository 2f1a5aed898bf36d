"""Measures this member's load: session calls, sessions and bytes of the slots that it is active for, CPU, memory, lag.

Calls are counted where the owner answers them (:meth:`~understudy.proxy.events.recorder.Recorder.answered`), over HTTP
and over the Redis port alike: one list, one addition. Everything else is done here, every
:data:`~understudy.statesync.heartbeat.load_report.LOAD_INTERVAL` seconds. Bodies are summed for some slots in each
look, so that a look takes about a millisecond however many sessions there are.
"""

import asyncio
import time
from collections.abc import Sequence
from itertools import islice

from understudy.proxy.health.loop_lag import LoopLag
from understudy.proxy.health.process_usage import ProcessUsage
from understudy.proxy.ownership.exposure import Exposure
from understudy.proxy.ownership.owned_slots import OwnedSlots
from understudy.proxy.sidecar.site_watch import SiteWatch
from understudy.statesync.heartbeat.load_report import LOAD_INTERVAL, LoadReport, SlotLoad, SlotRates, Smoothed
from understudy.statesync.sessions.replica import Replica

SESSIONS_PER_LOOK = 10_000
"""Sessions whose bodies are summed in one look, about 1 ms; larger slots than that are sampled."""


class LoadMeter:
    """The load of one member; ``report`` is the last measurement, None before the first.

    Args:
        calls: the counter of each slot's calls.
        owned: the slots that this member is active for.
        replica: their sessions.
        loop_lag: how late the event loop is.
        usage: the CPU and the memory that is used.
        exposure: what etcd lacks.
        sites: what other sites lack.
    """

    def __init__(
        self,
        calls: Sequence[int],
        owned: OwnedSlots,
        replica: Replica,
        loop_lag: LoopLag,
        usage: ProcessUsage,
        exposure: Exposure,
        sites: SiteWatch,
    ) -> None:
        self._calls = calls
        self._owned = owned
        self._replica = replica
        self._loop_lag = loop_lag
        self._usage = usage
        self._exposure = exposure
        self._sites = sites
        self._rates = SlotRates()
        self._cpu, self._lag = Smoothed(), Smoothed()
        self._mean: dict[int, float] = {}
        """Bytes of a body, on average, of the slots that were looked at."""
        self._used = 0.0
        self._at = 0.0
        self.report: LoadReport | None = None

    async def run(self) -> None:
        """Measure until cancelled."""
        self._at, self._used = time.monotonic(), self._usage.read().cpu_seconds
        self._rates.look(self._calls, self._owned.open_slots(), self._at)
        while True:
            await asyncio.sleep(LOAD_INTERVAL)
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Take one measurement; ``now`` is monotonic."""
        active = sorted(self._owned.open_slots())
        seconds, self._at = now - self._at, now
        usage = self._usage.read()
        self._rates.look(self._calls, active, now)
        self._cpu.add(max(usage.cpu_seconds - self._used, 0.0), seconds)
        self._used = usage.cpu_seconds
        self._lag.add(self._loop_lag.worst * seconds, seconds)
        self._measure_bodies(active)
        known = self._rates.known()
        self.report = LoadReport(
            cpu=round(self._cpu.rate, 3),
            cpus=round(usage.cpus, 2),
            memory=usage.memory,
            memory_limit=usage.memory_limit,
            lag=round(self._lag.rate, 4),
            app=usage.app,
            slots=[self._slot(slot, known[slot]) for slot in active if slot in known],
            versions=self._replica.apps(active),
            unsaved=self._exposure.most(now),
            copy_lag=self._sites.copy_lag(now),
            one_site_seconds=round(self._sites.exposure.oldest(now), 1),
        )

    def _slot(self, slot: int, calls: float) -> SlotLoad:
        sessions = len(self._replica.sessions_of(slot))
        return SlotLoad(slot, round(calls, 3), sessions, round(self._mean.get(slot, 0.0) * sessions))

    def _measure_bodies(self, active: Sequence[int]) -> None:
        """Sum the bodies of some slots: first those never looked at, then those whose look was longest ago."""
        now_active = set(active)
        self._mean = {slot: mean for slot, mean in self._mean.items() if slot in now_active}
        left = SESSIONS_PER_LOOK
        for slot in [slot for slot in active if slot not in self._mean] + list(self._mean):
            sessions = self._replica.sessions_of(slot)
            looked = min(len(sessions), SESSIONS_PER_LOOK)
            size = sum(len(session.body) for session in islice(sessions.values(), looked))
            self._mean.pop(slot, None)  # the slots looked at last stand last
            self._mean[slot] = size / looked if looked else 0.0
            left -= looked + 1
            if left <= 0:
                break
