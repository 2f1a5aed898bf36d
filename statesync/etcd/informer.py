"""A live copy of parts of the pool's keys: list once at one revision, then one watch from the next.

The shell between etcd and whoever keeps a model of the pool. It promises: batches arrive in revision order; the first
one (and any after a gap, such as a compaction) is a *reset* that carries everything; trouble with etcd only delays
batches, it never loses or invents one. What the keys mean is left to the receiver. A watch is for freshness: nothing
here decides who may write (DESIGN: "never for safety").
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from understudy.statesync.etcd.client import Compacted, EtcdClient, EtcdError, Event, Kv
from understudy.statesync.etcd.key_range import KeyRange
from understudy.telemetry.timing.backoff import Backoff

logger = logging.getLogger(__name__)

RETRY_FIRST = 0.05
RETRY_LONGEST = 1.0
PAUSE = 2.5
"""Seconds without a word from etcd that count as an outage; a watch on which nothing changes is heard every second."""


@dataclass(frozen=True, slots=True)
class MirrorBatch:
    """Changes up to and including ``revision``. With ``reset`` the events (all puts) replace everything known."""

    revision: int
    events: tuple[Event, ...]
    reset: bool = False


class Mirror:
    """Keeps a receiver in step with etcd.

    ``heard_at`` is when etcd last told something (monotonic), ``well_since`` since when it has without an outage.

    Args:
        client: the etcd client.
        ranges: what to list at first, and after a gap.
        on_batch: called on the event loop for every batch; must not raise or block.
        watched: what to watch, if it is more than ``ranges`` (a sidecar watches the sessions too, and lists those of
            its own slots by itself).
    """

    def __init__(
        self,
        client: EtcdClient,
        ranges: Sequence[KeyRange],
        on_batch: Callable[[MirrorBatch], None],
        *,
        watched: Sequence[KeyRange] | None = None,
    ) -> None:
        self._client = client
        self._ranges = tuple(ranges)
        self._watched = tuple(watched or ranges)
        self._on_batch = on_batch
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self.synced = asyncio.Event()
        self.revision = 0
        self.heard_at = self.well_since = time.monotonic()
        self.resets = 0
        self.trouble = ""

    @property
    def silent_for(self) -> float:
        """Seconds since etcd last told something; below two while all is well."""
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
                logger.warning("watch fell behind etcd's compaction (%s): listing again", gap)
            except EtcdError as error:
                self.trouble = str(error)
                pause = backoff.next()
                logger.warning("etcd mirror: %s; trying again in %.2f s", error, pause)
                await self._client.pause(pause)

    async def caught_up(self, revision: int) -> None:
        """Return once every watched change up to ``revision`` has been handed to the receiver.

        ``revision`` must be that of a change within the watched ranges, else there is no event to prove it.
        """
        if self.revision >= revision:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((revision, waiter))
        try:
            await waiter
        finally:
            self._waiters = [entry for entry in self._waiters if entry[1] is not waiter]

    async def _list(self) -> None:
        kvs: list[Kv] = []
        revision = 0
        for key_range in self._ranges:
            async for page in self._client.pages(key_range, revision=revision):
                kvs.extend(page.kvs)
                revision = revision or page.revision
        self.resets += 1
        self._hand_over(MirrorBatch(revision, tuple(Event("put", kv) for kv in kvs), reset=True))
        self.synced.set()
        self._heard(time.monotonic())

    async def _follow(self) -> None:
        async for batch in self._client.watch(self._watched, self.revision + 1):
            self._heard(time.monotonic())
            if batch.events:
                last = max(event.kv.mod_revision for event in batch.events)
                self._hand_over(MirrorBatch(last, tuple(batch.events)))

    def _heard(self, now: float) -> None:
        """Etcd has told something."""
        if self.trouble or now - self.heard_at > PAUSE:
            self.well_since = now
        self.heard_at, self.trouble = now, ""

    def _hand_over(self, batch: MirrorBatch) -> None:
        self._on_batch(batch)
        self.revision = max(self.revision, batch.revision)
        for revision, waiter in self._waiters:
            if revision <= self.revision and not waiter.done():
                waiter.set_result(None)
