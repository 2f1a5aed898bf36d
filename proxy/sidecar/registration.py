"""Keeps this member's record in etcd, on its one lease.

The record says what the member is and how it is. It is written again at each change, and after a lost lease. Heartbeats
tell the control servers the same sooner (``beats``).
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace

from understudy.proxy.events.incarnation import Incarnation
from understudy.proxy.health.forecast import Forecast
from understudy.proxy.health.loop_lag import LoopLag
from understudy.proxy.member.signal import Signal
from understudy.proxy.sidecar.name_holder import NameHolder, NameTaken
from understudy.statesync.etcd.client import EtcdClient, EtcdError, LeaseNotFound
from understudy.statesync.heartbeat.adaptive_timeout import stall_step
from understudy.statesync.pool.pool_clock import PoolClock
from understudy.statesync.pool.records import Member, MemberState

logger = logging.getLogger(__name__)

LEASE_SECONDS = 10
RETRY_INTERVAL = 0.3
STATE_POLL_INTERVAL = 0.5


class Registration:
    """Keeps the member's record current."""

    def __init__(
        self,
        record: Member,
        state: Callable[[], tuple[MemberState, str]],
        etcd: EtcdClient,
        name: NameHolder,
        loop_lag: LoopLag,
        clock: PoolClock,
        incarnation: Incarnation,
        forecast: Callable[[], Forecast],
        changed: Signal,
        beat_now: Signal,
    ) -> None:
        """``record`` is the member at its start; ``state`` says how it is now, ``forecast`` how it will be.

        ``changed`` says that the state may be another one; ``beat_now`` is given when it is.
        """
        self._state = state
        self._etcd = etcd
        self._name = name
        self._loop_lag = loop_lag
        self._clock = clock
        self._incarnation = incarnation
        self._forecast = forecast
        self._beat_now = beat_now
        self._rewrite = asyncio.Event()
        self.record = record
        self.displaced = asyncio.Event()
        """Another process has taken this member's name, and lives: this one has to end."""
        changed.listen(self._update)

    def _update(self) -> None:
        """Write the record and send a beat if the state has changed."""
        if self._name.replaced:
            self._rewrite.set()
        state, reason = self._state()
        forecast = self._forecast()
        ends = self.record.forecast_end
        if forecast.text != self.record.forecast:
            ends = round(time.time() + forecast.left) if math.isfinite(forecast.left) and forecast.text else 0.0
        now = replace(
            self.record,
            stall=stall_step(self._loop_lag.worst),
            clock=self._clock.fault,
            forecast=forecast.text,
            forecast_level=str(forecast.level) if forecast.level.rank else "",
            forecast_end=ends,
        )
        if (state, reason) == (self.record.state, self.record.reason):
            if now != self.record:
                self.record = now
                self._rewrite.set()
            return
        logger.info("%s: %s%s", self.record.member, state, f" ({reason})" if reason else "")
        self.record = replace(now, state=state, reason=reason, since=time.time())
        self._rewrite.set()
        self._beat_now()

    async def watch_state(self) -> None:
        """Check every half second whether time alone has changed the record: an intent that ended, a delay."""
        while True:
            if self._incarnation.settle(time.monotonic()):
                self.record = replace(self.record, life=self._incarnation.count)
                self._rewrite.set()
            self._update()
            await asyncio.sleep(STATE_POLL_INTERVAL)

    async def run(self) -> None:
        """Keep the record in etcd until cancelled. Once :attr:`displaced`, leave it to the other process."""
        while True:
            try:
                async with self._etcd.lease(LEASE_SECONDS) as lease:
                    await self._stay(lease.id, lease.lost)
                logger.warning("the member's lease was lost: registering again")
            except NameTaken as error:
                logger.error("%s", error)  # noqa: TRY400 - the text is for the operator
                self.displaced.set()
                await asyncio.Event().wait()
            except EtcdError as error:
                logger.warning("the member's record cannot be written: %s", error)
            await asyncio.sleep(RETRY_INTERVAL)

    async def _stay(self, lease_id: int, lost: asyncio.Event) -> None:
        ended = asyncio.create_task(lost.wait())
        try:
            while not lost.is_set():
                self._rewrite.clear()
                if not await self._write_record(lease_id):
                    await asyncio.sleep(RETRY_INTERVAL)
                    continue
                rewrite = asyncio.create_task(self._rewrite.wait())
                try:
                    await asyncio.wait((rewrite, ended), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    rewrite.cancel()
        finally:
            ended.cancel()

    async def _write_record(self, lease_id: int) -> bool:
        """Whether the record was written as it is now; trouble with etcd is no reason to give the lease up."""
        try:
            return await self._name.write(self.record, lease_id)
        except LeaseNotFound:
            raise
        except EtcdError as error:
            logger.warning("the member's record cannot be written: %s", error)
            return False
