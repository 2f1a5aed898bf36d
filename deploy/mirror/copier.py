"""Copies a pool from the etcd of its home into the etcd of this side, and records how far it has come.

Every transaction compares the home record of this side. So when an operator makes this side the home, nothing is copied
any more. It also compares and rewrites the record of progress, so that two copiers of one side do no harm.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import aclosing

from msgspec.structs import replace

from understudy.deploy.mirror.changes import (
    Change,
    Step,
    TooManyChanges,
    copied_ranges,
    differences,
    epoch_in,
    parts_of,
    steps_of,
)
from understudy.deploy.mirror.peak import Peak
from understudy.statesync.etcd.client import Compacted, EtcdClient, EtcdError, Get, Kv, ModRevision, Put
from understudy.statesync.etcd.key_range import KeyRange, prefix_range
from understudy.statesync.etcd.txn_retry import retry_txn
from understudy.statesync.pool.home import Home, Mirrored, Role
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.spec_reader import decode_known_spec
from understudy.statesync.pool.state import At
from understudy.telemetry.timing.backoff import Backoff

logger = logging.getLogger(__name__)

ASK_INTERVAL = 0.25
"""Seconds between two questions to the home for its revision, by which the lag is measured."""
NOTE_INTERVAL = 0.5
"""Seconds after which progress is recorded although nothing was copied."""
PAGE_MOST = 200
PAGE_BYTES = 8_000_000
PAGE_TIMEOUT = 15.0
COPIED_FROM = (Role.HOME, Role.CLOSING, Role.FENCED)
RETRY_FIRST = 0.1
RETRY_LONGEST = 5.0


class RoleChanged(Exception):
    """The home record of this side is another one."""


class NotTheHome(Exception):
    """The peer's record does not say that it is the home of this term or a later one: nothing may be copied from it."""


class Overtaken(Exception):
    """Another process has written the record of progress."""


class Copier:
    """Copies until the role of this side changes. ``resyncs`` counts how often everything was copied."""

    def __init__(
        self,
        own: EtcdClient,
        peer: EtcdClient,
        keys: PoolKeys,
        at: At[Home],
        now: Callable[[], float] = time.time,
    ) -> None:
        """``at``: the home record of this side, by which it is the mirror."""
        self._own = own
        self._peer = peer
        self._keys = keys
        self._at = at
        self._now = now
        self._writing = asyncio.Lock()
        self._noted = 0
        self._noted_at = -math.inf
        self._asked: deque[tuple[int, float]] = deque(maxlen=64)
        self._peak = Peak()
        self.progress = Mirrored(0)
        self.resyncs = 0
        self.trouble = ""

    async def run(self) -> None:
        """Copy. Raises :class:`RoleChanged`; survives every error of both etcds."""
        backoff = Backoff(RETRY_FIRST, RETRY_LONGEST)
        asking = asyncio.create_task(self._ask())
        try:
            while True:
                try:
                    await self._read_progress()
                    await self._require_home()
                    if not self.progress.whole:
                        await self._copy_all()
                    backoff.reset()
                    await self._follow()
                except (Compacted, TooManyChanges) as gap:
                    logger.warning("pool %s is copied anew: %s", self._keys.pool, gap)
                    await self._note(replace(self.progress, whole=False))
                except (EtcdError, NotTheHome, Overtaken) as error:
                    self.trouble = str(error)
                    pause = backoff.next()
                    logger.warning("mirror of pool %s: %s; trying again in %.1f s", self._keys.pool, error, pause)
                    await asyncio.sleep(pause)
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _require_home(self) -> None:
        """Raise :class:`NotTheHome` unless the peer is: its etcd may have been replaced by an empty one."""
        kv = await self._peer.get(self._keys.home)
        try:
            home = Home.decode(kv.value) if kv is not None else None
        except ValueError as error:
            raise NotTheHome(f"the home record of site {self._at.record.peer}: {error}") from None
        if home is None or home.term < self._at.record.term or home.role not in COPIED_FROM:
            said = f"is {home.role} in term {home.term}" if home is not None else "has no home record"
            raise NotTheHome(f"site {self._at.record.peer} {said}: nothing is copied from it")

    # -- progress --

    async def _read_progress(self) -> None:
        kv = await self._own.get(self._keys.mirrored)
        self._noted = kv.mod_revision if kv else 0
        self._asked.clear()
        try:
            self.progress = Mirrored.decode(kv.value) if kv else Mirrored(0)
        except ValueError as error:
            logger.warning("the record of progress cannot be read, so all is copied anew: %s", error)
            self.progress = Mirrored(0)

    async def _note(self, progress: Mirrored, changes: Sequence[Change] = ()) -> None:
        """Record ``progress`` in one transaction with ``changes``, however often etcd has to be asked."""
        async with self._writing:
            progress = replace(progress, applied_at=self._now())
            compares = [ModRevision(self._keys.home, self._at.revision), ModRevision(self._keys.mirrored, self._noted)]
            steps = [*changes, Put(self._keys.mirrored, progress.encode())]
            result, _ = await retry_txn(self._own, compares, steps, [Get(self._keys.home), Get(self._keys.mirrored)])
            if result.succeeded:
                self._noted = result.revision
            else:
                self._noted = self._noted_before(progress, result.answers)
            self._noted_at = time.monotonic()
            self.progress, self.trouble = progress, ""

    def _noted_before(self, progress: Mirrored, answers: Sequence[tuple[Kv, ...]]) -> int:
        """The revision of an earlier try whose answer was lost."""
        home, noted = answers
        if not home or home[0].mod_revision != self._at.revision:
            raise RoleChanged
        if not noted or noted[0].value != progress.encode():
            raise Overtaken("another process records the progress of this mirror: run one")
        return noted[0].mod_revision

    # -- how late it is --

    async def _ask(self) -> None:
        """Ask the home for its revision: what is applied by then is complete as of the question."""
        while True:
            await asyncio.sleep(ASK_INTERVAL)
            try:
                asked = self._now()
                page = await self._peer.range(_just(self._keys.home))
                self._asked.append((page.revision, asked))
                if time.monotonic() - self._noted_at > NOTE_INTERVAL and self.progress.whole:
                    await self._note(self._complete(self.progress))
            except (RoleChanged, Overtaken, EtcdError) as error:
                logger.debug("the revision of the home is not known: %s", error)

    def _complete(self, progress: Mirrored) -> Mirrored:
        """``progress`` with the time as of which it is complete.

        The home's revision counts changes of other pools too, but its beats come every second.
        """
        complete = progress.complete_at
        while self._asked and self._asked[0][0] <= progress.revision:
            complete = max(complete, self._asked.popleft()[1])
        return replace(progress, complete_at=complete, rate=self._peak.highest(self._now()))

    # -- changes --

    async def _follow(self) -> None:
        async with aclosing(self._peer.watch(self._keys.everything, self.progress.revision + 1)) as batches:
            async for batch in batches:
                for step in steps_of(self._keys, batch.events, self.progress.epoch):
                    await self._apply(step)

    async def _apply(self, step: Step) -> None:
        self._peak.add(self._now(), step.writes)
        progress = replace(
            self.progress,
            revision=step.revision,
            epoch=step.epoch,
            writes=self.progress.writes + step.writes,
        )
        if step.changes:
            await self._note(self._complete(progress), step.changes)
        else:
            async with self._writing:
                self.progress = self._complete(progress)

    # -- everything --

    async def _copy_all(self) -> None:
        """Make this side the same as the home at one revision. Raises ``Compacted`` if that goes away meanwhile."""
        keys, page = self._keys, await self._page()
        await self._note(replace(self.progress, whole=False))
        asked, revision, epoch, count = self._now(), 0, self.progress.epoch, 0
        async for part in self._peer.pages(prefix_range(keys.owners), timeout=PAGE_TIMEOUT):
            revision = part.revision
            epoch = max([epoch, *(epoch_in(kv.value) for kv in part.kvs)])
        for within in copied_ranges(keys):
            rest = within.start
            async for part in self._peer.pages(within, page=page, revision=revision, timeout=PAGE_TIMEOUT):
                end = f"{part.kvs[-1].key}\0" if part.more else within.end
                count += len(part.kvs)
                await self._make_same({kv.key: kv.value for kv in part.kvs}, KeyRange(rest, end), page)
                rest = end
        self.resyncs += 1
        logger.info("pool %s is copied: %d keys as of revision %d", keys.pool, count, revision)
        done = replace(self.progress, revision=revision, epoch=epoch, whole=True, complete_at=asked)
        await self._note(done)

    async def _make_same(self, theirs: dict[str, bytes], within: KeyRange, page: int) -> None:
        ours: dict[str, bytes] = {}
        async for part in self._own.pages(within, page=page, timeout=PAGE_TIMEOUT):
            for kv in part.kvs:
                ours[kv.key] = kv.value if kv.key in theirs else b""  # no value of a key that goes is kept
        for changes in parts_of(differences(theirs, ours)):
            await self._note(self.progress, changes)

    async def _page(self) -> int:
        """The number of keys in a page, so that a page of the largest sessions is not too large for a message."""
        kv = await self._peer.get(self._keys.spec)
        largest = decode_known_spec(kv.value)[0].limits.session_bytes if kv else 1_000_000
        return max(1, min(PAGE_MOST, PAGE_BYTES // (largest + 1000)))


def _just(key: str) -> KeyRange:
    return KeyRange(key, f"{key}\0")
