"""How long an owner may answer reads from memory.

Every :data:`POLL_INTERVAL` the member reads, linearizably, the owner records that have changed since its last look.
Memory may answer while the last successful look was *sent* at most :data:`BOUND` seconds ago (monotonic clock): no
other member can have become owner unnoticed for longer. The look also repairs what a silent watch has missed.

Past the deadline, calls wait for the next look, and one look serves them all. While etcd has no leader calls come by
the hundred, and a look for each would keep this process busy for longer than etcd is away.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection

from understudy.proxy.ownership.etcd_contact import EtcdContact
from understudy.statesync.etcd.client import EtcdClient, EtcdError, Event
from understudy.statesync.etcd.informer import InformerBatch
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import NO_ETCD

POLL_INTERVAL = 0.4
BOUND = 1.5
RETRY_INTERVAL = 0.1
CUT_OFF_AFTER = 5.0


class ReadDeadline:
    """The read deadline of this process; kept by :meth:`run`."""

    def __init__(
        self,
        keys: PoolKeys,
        etcd: EtcdClient,
        contact: EtcdContact,
        on_changes: Callable[[InformerBatch], object],
        on_fault: Callable[[], None],
    ) -> None:
        """``on_changes`` takes owner records that the watch has not brought yet; ``on_fault`` hears of ``fault``."""
        self._owners = prefix_range(keys.owners)
        self._etcd = etcd
        self._contact = contact
        self._on_changes = on_changes
        self._on_fault = on_fault
        self._looked_at = 0
        self._valid_until = time.monotonic()
        self._sent = float("-inf")
        self._renewed = asyncio.Event()
        self._wanted = asyncio.Event()
        self._alone = False
        self.fault = ""

    def holds(self) -> bool:
        """Whether reads may be answered from memory now."""
        return time.monotonic() < self._valid_until

    async def renewed(self, patience: float) -> bool:
        """Wait up to ``patience`` seconds until reads may be answered from memory; whether they may."""
        return await self._look_until(self.holds, patience)

    async def confirmed(self, since: float, patience: float) -> bool:
        """Wait up to ``patience`` seconds for a look sent at ``since`` (monotonic) or later; whether one was answered.

        A slot that is held then was owned at some moment after ``since``.
        """
        return await self._look_until(lambda: self._sent >= since, patience)

    async def reaches_etcd(self, timeout: float) -> tuple[bool, bool]:
        """Whether etcd answers a look that is sent now, and whether it has answered steadily before."""
        answered = await self.confirmed(time.monotonic(), timeout)
        return answered, self._contact.steady(time.monotonic())

    async def _look_until(self, enough: Callable[[], bool], patience: float) -> bool:
        with contextlib.suppress(TimeoutError):  # the answer is then whether it is enough so far
            async with asyncio.timeout(patience):
                while not enough() and not self._alone:
                    self._wanted.set()
                    await self._renewed.wait()
        return enough()

    @property
    def cut_off(self) -> bool:
        """Whether others should serve: they reach etcd, or etcd has been silent for longer than a restart takes."""
        return self._alone or time.monotonic() > self._valid_until + CUT_OFF_AFTER

    def step_down(self, reaching: Collection[str]) -> None:
        """Others reach etcd and this member does not: it is cut off until a look is answered again.

        Calls that wait for a look stop waiting: others will serve the slots.
        """
        if self._alone:
            return
        self._alone = True
        self._renewed.set()
        self.fault = f"{NO_ETCD}it is reached by {', '.join(sorted(reaching))}"
        self._on_fault()

    async def run(self) -> None:
        """Look at etcd until cancelled."""
        while True:
            sent = time.monotonic()
            self._contact.sent(sent)
            try:
                page = await self._etcd.range(self._owners, min_mod_revision=self._looked_at + 1)
            except EtcdError as error:
                if self.cut_off and not self._alone:
                    self.fault = f"{NO_ETCD}{error}"
                    self._on_fault()
                await self._etcd.pause(RETRY_INTERVAL)
                continue
            if page.kvs:
                self._on_changes(InformerBatch(page.revision, tuple(Event("put", kv) for kv in page.kvs)))
            self._contact.answered(time.monotonic())
            self._alone = False
            self._looked_at = page.revision
            self._valid_until, self._sent = sent + BOUND, sent
            self._wanted.clear()
            self._renewed.set()
            self._renewed = asyncio.Event()
            if self.fault:
                self.fault = ""
                self._on_fault()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_INTERVAL):
                    await self._wanted.wait()
