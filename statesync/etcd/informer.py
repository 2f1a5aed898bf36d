"""Keeps a receiver up to date with key ranges in etcd: lists them once, then watches from the next revision.

Batches arrive in the order of revisions. The first batch, and the first after a gap such as a compaction, is a *reset*
that holds everything. A fault of etcd only delays batches; none is lost or invented. The receiver knows what the keys
mean. A watch keeps copies fresh: nothing here decides who may write.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from understudy.statesync.etcd.client import Compacted, EtcdClient, EtcdError, Event, Kv
from understudy.statesync.etcd.key_range import KeyRange
from understudy.telemetry.timing.backoff import Backoff

logger = logging.getLogger(__name__)

RETRY_FIRST = 0.05
RETRY_LONGEST = 1.0
OUTAGE_AFTER = 2.5
"""Seconds without a message from etcd that count as an outage; a watch without changes sends one every second."""


class InformerBatch(msgspec.Struct, frozen=True, gc=False):
    """Changes up to and including ``revision``. With ``reset`` the events (all puts) replace everything known."""

    revision: int
    events: tuple[Event, ...]
    reset: bool = False


class _Waiter(NamedTuple):
    revision: int
    key: str
    done: asyncio.Future[None]


class Informer:
    """Keeps a receiver up to date with etcd.

    ``heard_at`` is when the last message arrived (monotonic), ``well_since`` when the last outage ended.

    Args:
        client: the etcd client.
        ranges: what to list at first and after a gap, and to watch.
        on_batch: called on the event loop for every batch; must not raise or block.
    """

    def __init__(
        self,
        client: EtcdClient,
        ranges: Sequence[KeyRange],
        on_batch: Callable[[InformerBatch], None],
    ) -> None:
        self._client = client
        self._ranges = tuple(ranges)
        self._on_batch = on_batch
        self._waiters: list[_Waiter] = []
        self.synced = asyncio.Event()
        self.revision = 0
        self._by_range = [0] * len(self._ranges)
        self.heard_at = self.well_since = time.monotonic()
        self.resets = 0
        self.trouble = ""

    @property
    def silent_for(self) -> float:
        """Seconds since the last message from etcd; below two while all is well."""
        return time.monotonic() - self.heard_at

    async def run(self) -> None:
        """List and watch until cancelled; survives every etcd error."""
        backoff = Backoff(RETRY_FIRST, RETRY_LONGEST)
        while True:
            try:
                await self._list()
                backoff.reset()
                await self._follow()
            except Compacted as gap:
                logger.warning("the watch is older than etcd's last compaction (%s): listing again", gap)
            except EtcdError as error:
                self.trouble = str(error)
                pause = backoff.next()
                logger.warning("etcd watch: %s; trying again in %.2f s", error, pause)
                await self._client.pause(pause)

    def revision_of(self, key: str) -> int:
        """The revision up to which every change in the range of ``key`` has been handed to the receiver.

        ``revision`` may be later: a change in another range may come first. It is the answer without a key.
        """
        if not key:
            return self.revision
        return self._by_range[self._range_of(key)]

    def _range_of(self, key: str) -> int:
        return next(number for number, one in enumerate(self._ranges) if one.start <= key < one.end)

    async def caught_up(self, revision: int, key: str = "") -> None:
        """Return once every change up to ``revision`` in the range of ``key`` has been handed to the receiver.

        ``revision`` must be that of a change within this range, else there is no event to prove it. Without a key it
        is enough that a change of that revision, or a later one, has come in any range.
        """
        if self.revision_of(key) >= revision:
            return
        waiter = _Waiter(revision, key, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            await waiter.done
        finally:
            self._waiters.remove(waiter)

    async def _list(self) -> None:
        kvs: list[Kv] = []
        revision = 0
        for key_range in self._ranges:
            async for page in self._client.pages(key_range, revision=revision):
                kvs.extend(page.kvs)
                revision = revision or page.revision
        self.resets += 1
        self._hand_over(InformerBatch(revision, tuple(Event("put", kv) for kv in kvs), reset=True))
        self.synced.set()
        self._heard(time.monotonic())

    async def _follow(self) -> None:
        async for batch in self._client.watch(self._ranges, self.revision + 1):
            self._heard(time.monotonic())
            if batch.events:
                last = max(event.kv.mod_revision for event in batch.events)
                self._hand_over(InformerBatch(last, tuple(batch.events)))

    def _heard(self, now: float) -> None:
        """A message from etcd has arrived."""
        if self.trouble or now - self.heard_at > OUTAGE_AFTER:
            self.well_since = now
        self.heard_at, self.trouble = now, ""

    def _hand_over(self, batch: InformerBatch) -> None:
        self._on_batch(batch)
        self.revision = max(self.revision, batch.revision)
        if batch.reset:
            self._by_range = [batch.revision] * len(self._ranges)
        elif batch.events:
            self._by_range[self._range_of(batch.events[0].kv.key)] = batch.revision
        for waiter in self._waiters:
            if waiter.revision <= self.revision_of(waiter.key) and not waiter.done.done():
                waiter.done.set_result(None)
