"""How long an owner may answer reads from memory.

Every :data:`INTERVAL` the member reads, linearizably, the owner records changed since its last look. While the last
successful look was *sent* no longer than :data:`BOUND` ago (monotonic clock), no other member can have become owner
unnoticed for longer than that, and memory may answer. The look also repairs whatever a silent watch has missed.
"""

import asyncio
import time
from collections.abc import Callable

from proxy.context import MemberContext
from statesync.etcd import EtcdError, Event
from statesync.keys import prefix_range
from statesync.mirror import MirrorBatch

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
        self.fault = ""

    def holds(self) -> bool:
        """Whether reads may be answered from memory now."""
        return time.monotonic() < self._valid_until

    @property
    def cut_off(self) -> bool:
        """Whether etcd has been silent for so long that others had better serve: an etcd restart is over by then."""
        return time.monotonic() > self._valid_until + CUT_OFF_AFTER

    async def run(self) -> None:
        """Look at etcd until cancelled."""
        owners = prefix_range(self._context.keys.owners)
        while True:
            sent = time.monotonic()
            try:
                page = await self._context.etcd.range(owners, min_mod_revision=self._looked_at + 1)
            except EtcdError as error:
                if self.cut_off:
                    self.fault = f"etcd does not answer: {error}"
                    self._on_fault()
                await asyncio.sleep(RETRY)
                continue
            if page.kvs:
                self._on_changes(MirrorBatch(page.revision, tuple(Event("put", kv) for kv in page.kvs)))
            self._looked_at = page.revision
            self._valid_until = sent + BOUND
            if self.fault:
                self.fault = ""
                self._on_fault()
            await asyncio.sleep(INTERVAL)
