"""How long an owner may answer reads from memory.

Every :data:`INTERVAL` the member reads, linearizably, the owner records changed since its last look. While the last
successful look was *sent* no longer than :data:`BOUND` ago (monotonic clock), no other member can have become owner
unnoticed for longer than that, and memory may answer. The look also repairs whatever a silent watch has missed.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from proxy.context import MemberContext
from statesync.etcd import EtcdError, Event
from statesync.keys import prefix_range
from statesync.mirror import MirrorBatch

logger = logging.getLogger(__name__)

INTERVAL = 0.4
BOUND = 1.5
RETRY = 0.1


class ReadDeadline:
    """The read deadline of this process; kept by :meth:`run`."""

    def __init__(self, context: MemberContext, on_changes: Callable[[MirrorBatch], None]) -> None:
        """``on_changes`` takes owner records that the watch has not brought yet."""
        self._context = context
        self._on_changes = on_changes
        self._looked_at = 0
        self._valid_until = 0.0

    def holds(self) -> bool:
        """Whether reads may be answered from memory now."""
        return time.monotonic() < self._valid_until

    async def run(self) -> None:
        """Look at etcd until cancelled."""
        owners = prefix_range(self._context.keys.owners)
        while True:
            sent = time.monotonic()
            try:
                page = await self._context.etcd.range(owners, min_mod_revision=self._looked_at + 1)
            except EtcdError as error:
                logger.debug("owner records not read: %s", error)
                await asyncio.sleep(RETRY)
                continue
            if page.kvs:
                self._on_changes(MirrorBatch(page.revision, tuple(Event("put", kv) for kv in page.kvs)))
            self._looked_at = page.revision
            self._valid_until = sent + BOUND
            await asyncio.sleep(INTERVAL)
