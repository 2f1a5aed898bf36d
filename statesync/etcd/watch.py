"""The watch: every change of some ranges, once and in order, over one gRPC stream that is replaced when it fails.

:class:`Cursor` is the pure part: it says where to resume, drops events that were seen before, and joins fragments, so
that the events of one revision are never split. :class:`Watch` opens streams, asks for progress when nothing arrives,
ends a stream that stays silent, and resumes elsewhere. A watch keeps copies fresh; safety comes from the compares in
transactions.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from collections.abc import Set as AbstractSet
from typing import TypeVar

import grpc
import grpc.aio

from understudy.statesync.etcd import etcd_pb2 as rpc
from understudy.statesync.etcd.errors import DENIED, Compacted, EtcdError, Rejected, Unavailable, Verdict, judge
from understudy.statesync.etcd.key_range import KeyRange
from understudy.statesync.etcd.model import Event, Message, WatchBatch, bounds, event_of
from understudy.statesync.etcd.transport import FORMER, EtcdEndpoint, Transport
from understudy.telemetry.timing.backoff import Backoff

QUIET_FOR = 1.0
SILENT_FOR = 5.0
RETRY_FIRST = 0.05
RETRY_LONGEST = 0.5
logger = logging.getLogger(__name__)
_T = TypeVar("_T")


class Cursor:
    """The progress of the watch of one range; it resumes at ``next_revision``."""

    def __init__(self, where: KeyRange, start_revision: int) -> None:
        self.where = where
        self.next_revision = start_revision
        self._held: list[Event] = []

    def restart(self) -> None:
        """A new stream begins at ``next_revision``: drop what the old one left incomplete."""
        self._held = []

    def feed(self, events: Sequence[Event], *, fragment: bool) -> tuple[Event, ...]:
        """Take a response's events and return those of whole revisions that are new.

        ``fragment``: the response continues in the next one, for which the events of the last revision wait.
        """
        whole = self._held + [event for event in events if event.kv.mod_revision >= self.next_revision]
        self._held = []
        if fragment and whole:
            last = whole[-1].kv.mod_revision
            self._held = [event for event in whole if event.kv.mod_revision == last]
            whole = [event for event in whole if event.kv.mod_revision < last]
        if whole:
            self.next_revision = whole[-1].kv.mod_revision + 1
        return tuple(whole)


class StreamEnded(Exception):
    """The stream cannot be used any more; resume on another."""


class WatchStream:
    """One gRPC watch stream with one watch per cursor."""

    def __init__(self, endpoint: EtcdEndpoint, call: Message, refused: AbstractSet[int] = frozenset()) -> None:
        self.endpoint = endpoint
        self._call = call
        self._refused = refused
        self._waiting_since: float | None = None
        self._asked = True
        self._writing = asyncio.Lock()
        self._pacemaker = asyncio.create_task(self._keep_pace())

    async def open(self, cursors: Sequence[Cursor]) -> None:
        """Create the watches; their ids are their positions, counted from 1."""
        self._waiting_since = time.monotonic()
        for watch_id, cursor in enumerate(cursors, 1):
            await self.create(watch_id, cursor)
        self._asked = False

    async def create(self, watch_id: int, cursor: Cursor) -> None:
        """Create one watch, which goes on where its cursor is."""
        cursor.restart()
        key, end = bounds(cursor.where)
        # Fragments: what etcd has to send after a pause would otherwise be one message of any size.
        create = rpc.WatchCreateRequest(
            key=key, range_end=end, start_revision=cursor.next_revision, watch_id=watch_id, fragment=True
        )
        await self._carefully(self._write(rpc.WatchRequest(create_request=create)))

    async def cancel(self, watch_id: int) -> None:
        """End one watch."""
        request = rpc.WatchRequest(cancel_request=rpc.WatchCancelRequest(watch_id=watch_id))
        await self._carefully(self._write(request))

    async def _write(self, request: Message) -> None:
        async with self._writing:
            await self._call.write(request)

    async def read(self) -> Message:
        """The next response; raises :class:`StreamEnded` when there will be none."""
        self._waiting_since = time.monotonic()
        response = await self._carefully(self._call.read())
        self._waiting_since = None
        self._asked = False
        if not isinstance(response, rpc.WatchResponse):
            raise StreamEnded("etcd ended the stream")
        if response.header.member_id in self._refused:
            raise StreamEnded(FORMER)
        return response

    async def close(self) -> None:
        """End the stream and the task that belongs to it."""
        self._call.cancel()
        self._pacemaker.cancel()
        await asyncio.gather(self._pacemaker, return_exceptions=True)

    async def _carefully(self, step: Awaitable[_T]) -> _T:
        """Separate a cancelled stream (by :meth:`_keep_pace`, or by closing the client) from a cancelled task."""
        try:
            return await step
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise StreamEnded("the stream was given up") from None
        except asyncio.InvalidStateError:  # what gRPC raises for a write to a call that has ended already
            raise StreamEnded("the stream had ended") from None

    async def _keep_pace(self) -> None:
        """Ask for progress when nothing has arrived for a while; end the stream if that is not answered either.

        The time that the consumer takes between two reads does not count.
        """
        while True:
            await asyncio.sleep(QUIET_FOR / 4)
            if self._waiting_since is None:
                continue
            quiet = time.monotonic() - self._waiting_since
            if quiet >= QUIET_FOR + SILENT_FOR:
                self._call.cancel()
                return
            if quiet >= QUIET_FOR and not self._asked:
                self._asked = True
                with contextlib.suppress(asyncio.InvalidStateError):  # it has ended meanwhile, and the reader is told
                    await self._write(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))


def require_revision(start_revision: int) -> None:
    """Raise ``ValueError`` unless a watch may start there."""
    if start_revision < 1:
        raise ValueError("a watch starts right after a revision that was read, so at 1 or later")


class Watch:
    """Runs the streams for the cursors; iterate :meth:`batches` once."""

    def __init__(self, transport: Transport, ranges: Sequence[KeyRange], start_revision: int) -> None:
        require_revision(start_revision)
        self._transport = transport
        self._cursors = [Cursor(where, start_revision) for where in ranges]
        self._backoff = Backoff(RETRY_FIRST, RETRY_LONGEST)
        self._denied = False

    async def batches(self) -> AsyncGenerator[WatchBatch, None]:
        """Batches without end; raises :class:`Compacted`, and :class:`Rejected` when etcd denies the watch.

        Closing the client ends it with :class:`Unavailable`.
        """
        while True:
            stream = await self._connect()
            try:
                await stream.open(self._cursors)
                while True:
                    batch = await self._batch(await stream.read(), stream.endpoint)
                    if batch is not None:
                        self._backoff.reset()
                        self._denied = False
                        yield batch
            except (StreamEnded, grpc.aio.AioRpcError) as error:
                await self._lost(stream.endpoint, error)
            finally:
                await stream.close()

    async def _lost(self, endpoint: EtcdEndpoint, error: StreamEnded | grpc.aio.AioRpcError) -> None:
        """A stream has ended; returns when the next one may be opened."""
        if isinstance(error, StreamEnded):
            self._transport.suspect(endpoint)
            await self._pause(f"{endpoint.address}: {error}")
        else:
            await self._transport.stream_failed(endpoint, error)
            await self._pause(f"{endpoint.address}: {error.details()}")

    async def _connect(self) -> WatchStream:
        while True:
            deadline = time.monotonic() + self._transport.timeout
            try:
                metadata = await self._transport.metadata(deadline)
                endpoint = await self._transport.connected("watch", deadline, patient=True)
            except Rejected:
                raise
            except EtcdError as error:
                await self._pause(error.detail)
            else:
                return WatchStream(endpoint, endpoint.watch(metadata=metadata), self._transport.refused)

    async def _pause(self, reason: str) -> None:
        if self._transport.closed:
            raise Unavailable("watch", "", "the client is closed")
        logger.debug("watch is opened again: %s", reason)
        await self._transport.pause(self._backoff.next())

    async def _batch(self, response: Message, endpoint: EtcdEndpoint) -> WatchBatch | None:
        """What a response contains for the consumer, if anything; raises as :meth:`batches`."""
        if response.canceled:
            await self._cancelled(response, endpoint)
        if response.created:
            await self._check_history(response, endpoint, self._cursors)
            return None
        if not response.events:
            return WatchBatch(response.header.revision, ())
        cursor = self._cursors[response.watch_id - 1]
        events = cursor.feed([event_of(event) for event in response.events], fragment=response.fragment)
        return WatchBatch(events[-1].kv.mod_revision, events) if events else None

    async def _check_history(self, response: Message, endpoint: EtcdEndpoint, cursors: Sequence[Cursor]) -> None:
        """Raise :class:`Compacted` if etcd, and not only this member, is behind what was seen: etcd was replaced."""
        seen = max(cursor.next_revision for cursor in cursors) - 1
        if response.header.revision >= seen:
            return
        try:
            # A key that whoever may watch may read, too: roles can be confined to a prefix.
            request = rpc.RangeRequest(key=bounds(cursors[0].where)[0], count_only=True)
            now = (await self._transport.call("range", request, repeatable=True)).header.revision
        except EtcdError as error:
            raise StreamEnded(error.detail) from None
        if now < seen:
            raise Compacted("watch", endpoint.address, 0)

    async def _cancelled(self, response: Message, endpoint: EtcdEndpoint) -> None:
        """Etcd has ended one of the watches; always raises an error that depends on the reason."""
        if response.compact_revision:
            raise Compacted("watch", endpoint.address, response.compact_revision)
        reason = response.cancel_reason.partition("desc = ")[2] or response.cancel_reason
        if reason == DENIED or judge(grpc.StatusCode.UNKNOWN, reason) is Verdict.LOG_IN:
            # etcd 3.5 also answers "permission denied" to a token that it has forgotten, so a new one is tried once.
            if self._denied or not await self._transport.renew_token():
                raise Rejected("watch", endpoint.address, reason)
            self._denied = True
        raise StreamEnded(f"cancelled: {reason}")
