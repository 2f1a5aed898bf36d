"""Many watches on one gRPC stream, for a process that watches hundreds of ranges.

A stream of its own costs each watch a signal of life per second, on both sides. Here one stream serves all. Each watch
has its own place in etcd's history and its own errors: one that is too old, or denied, ends alone. When the stream
fails, all of them resume where they were.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncGenerator, Sequence

import grpc
import grpc.aio
import msgspec

from understudy.statesync.etcd.errors import Compacted, EtcdError, Rejected, Unavailable
from understudy.statesync.etcd.key_range import KeyRange
from understudy.statesync.etcd.model import Message, WatchBatch, event_of
from understudy.statesync.etcd.transport import EtcdEndpoint, Transport
from understudy.statesync.etcd.watch import Cursor, StreamEnded, Watch, WatchStream, require_revision

logger = logging.getLogger(__name__)


class _Watcher(msgspec.Struct, eq=False):
    """One caller of :meth:`SharedWatch.watch`: its watches by id, and what has arrived for it."""

    cursors: dict[int, Cursor]
    arrived: asyncio.Queue[WatchBatch | EtcdError] = msgspec.field(default_factory=asyncio.Queue)


class SharedWatch(Watch):
    """Runs the one stream while there are watches. Belongs to one event loop."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport, (), 1)
        self._ids = itertools.count(1)
        self._watchers: dict[int, _Watcher] = {}
        self._changed = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None

    def watch(self, ranges: Sequence[KeyRange], start_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """What :meth:`Watch.batches` gives for the same ranges, with the same errors.

        But it is read ahead of the caller: one that is slow must not hold others up.
        """
        require_revision(start_revision)
        return self._batches_of(_Watcher({next(self._ids): Cursor(where, start_revision) for where in ranges}))

    async def _batches_of(self, watcher: _Watcher) -> AsyncGenerator[WatchBatch, None]:
        self._watchers |= dict.fromkeys(watcher.cursors, watcher)
        self._changed.set()
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run(), name="shared etcd watch")
        try:
            while True:
                batch = await watcher.arrived.get()
                if isinstance(batch, EtcdError):
                    raise batch
                yield batch
        finally:
            self._leave(watcher)

    def _leave(self, watcher: _Watcher) -> None:
        for watch_id in watcher.cursors:
            self._watchers.pop(watch_id, None)
        self._changed.set()

    async def _run(self) -> None:
        """Open one stream after the other, until there are no watches or none can be opened."""
        try:
            while self._watchers:
                stream = await self._connect()
                keeping = asyncio.create_task(self._keep_watches(stream))
                try:
                    while self._watchers:
                        await self._take_in(await stream.read(), stream.endpoint)
                except (StreamEnded, grpc.aio.AioRpcError) as error:
                    await self._lost(stream.endpoint, error)
                finally:
                    keeping.cancel()
                    await asyncio.gather(keeping, return_exceptions=True)
                    await stream.close()
        except EtcdError as error:
            self._fail_all(error)
        except Exception as error:
            logger.exception("the shared watch of etcd failed")
            self._fail_all(Unavailable("watch", "", repr(error)))

    def _fail_all(self, error: EtcdError) -> None:
        for watcher in self._everybody():
            self._fail(watcher, error)

    def _everybody(self) -> list[_Watcher]:
        return list({id(watcher): watcher for watcher in self._watchers.values()}.values())

    async def _keep_watches(self, stream: WatchStream) -> None:
        """Create and cancel watches on the stream, as callers come and go."""
        there: set[int] = set()
        with contextlib.suppress(StreamEnded, grpc.aio.AioRpcError):  # the reader learns of it
            await stream.open(())
            while True:
                self._changed.clear()
                for watch_id in there - self._watchers.keys():
                    there.discard(watch_id)
                    await stream.cancel(watch_id)
                for watch_id, watcher in list(self._watchers.items()):
                    if watch_id not in there and watch_id in self._watchers:
                        there.add(watch_id)
                        await stream.create(watch_id, watcher.cursors[watch_id])
                await self._changed.wait()

    async def _take_in(self, response: Message, endpoint: EtcdEndpoint) -> None:
        if not (response.created or response.canceled or response.events):
            self._backoff.reset()
            for watcher in self._everybody():
                watcher.arrived.put_nowait(WatchBatch(response.header.revision, ()))
            return
        found = self._watchers.get(response.watch_id)
        if found is None:
            return  # it has left meanwhile
        cursor = found.cursors[response.watch_id]
        try:
            if response.canceled:
                await self._cancelled(response, endpoint)
            if response.created:
                await self._check_history(response, endpoint, (cursor,))
                return
        except (Compacted, Rejected) as error:
            self._fail(found, error)
            return
        events = cursor.feed([event_of(event) for event in response.events], fragment=response.fragment)
        self._backoff.reset()
        self._denied = False
        if events:
            found.arrived.put_nowait(WatchBatch(events[-1].kv.mod_revision, events))

    def _fail(self, watcher: _Watcher, error: EtcdError) -> None:
        self._leave(watcher)
        watcher.arrived.put_nowait(error)
