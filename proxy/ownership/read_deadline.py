"""How long an owner may answer reads from memory.

Every :data:`INTERVAL` the member reads, linearizably, the owner records changed since its last look. While the last
successful look was *sent* no longer than :data:`BOUND` ago (monotonic clock), no other member can have become owner
unnoticed for longer than that, and memory may answer. The look also repairs whatever a silent watch has missed.

Past the deadline calls wait for the next look: one for all of them, however many they are. While etcd has no leader
they come by the hundred, and a question for each of them would keep this process busy for longer than etcd is away.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection

from understudy.proxy.ownership.context import MemberContext
from understudy.statesync.etcd.client import EtcdError, Event
from understudy.statesync.etcd.informer import MirrorBatch
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.records import NO_ETCD

INTERVAL = 0.4
BOUND = 1.5
RETRY = 0.1
CUT_OFF_AFTER = 5.0


class ReadDeadline:
    """The read deadline of this process; kept by :meth:`run`."""

    def __init__(
        self,
        context: MemberContext,
        on_changes: Callable[[MirrorBatch], object],
        on_fault: Callable[[], None],
    ) -> None:
        """``on_changes`` takes owner records that the watch has not brought yet; ``on_fault`` hears of ``fault``."""
        self._context = context
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

    async def _look_until(self, enough: Callable[[], bool], patience: float) -> bool:
        with contextlib.suppress(TimeoutError):  # the answer is then whether it is enough so far
            async with asyncio.timeout(patience):
                while not enough() and not self._alone:
                    self._wanted.set()
                    await self._renewed.wait()
        return enough()

    @property
    def cut_off(self) -> bool:
        """Whether others had better serve: they reach etcd, or etcd has been silent for longer than a restart takes."""
        return self._alone or time.monotonic() > self._valid_until + CUT_OFF_AFTER

    def step_down(self, reaching: Collection[str]) -> None:
        """Others reach etcd and this member does not: it is cut off until a look is answered again.

        Who waits for a look is not kept waiting: others will serve the slots.
        """
        if self._alone:
            return
        self._alone = True
        self._renewed.set()
        self.fault = f"{NO_ETCD}it is reached by {', '.join(sorted(reaching))}"
        self._on_fault()

    async def run(self) -> None:
        """Look at etcd until cancelled."""
        owners, contact = prefix_range(self._context.keys.owners), self._context.contact
        while True:
            sent = time.monotonic()
            contact.sent(sent)
            try:
                page = await self._context.etcd.range(owners, min_mod_revision=self._looked_at + 1)
            except EtcdError as error:
                if self.cut_off and not self._alone:
                    self.fault = f"{NO_ETCD}{error}"
                    self._on_fault()
                await self._context.etcd.pause(RETRY)
                continue
            if page.kvs:
                self._on_changes(MirrorBatch(page.revision, tuple(Event("put", kv) for kv in page.kvs)))
            contact.answered(time.monotonic())
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
                async with asyncio.timeout(INTERVAL):
                    await self._wanted.wait()
