"""The active's end: keeps one connection to a process that has copies of its slots, and sends them what they lack."""

import asyncio
import errno
import logging
import math
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Protocol

import aiohttp

from understudy.proxy.events.rejoins import Rejoins
from understudy.proxy.peers.peer_protocol import REPLICATION_PATH
from understudy.proxy.replication import wire
from understudy.proxy.replication.copy_lag import CopyLag
from understudy.proxy.replication.wire import ConnectionEnded
from understudy.statesync.process.ticks import tick
from understudy.statesync.replication.messages import (
    Ask,
    At,
    Behind,
    FromActive,
    Have,
    Hello,
    Message,
    Part,
    Refused,
    Stored,
    Told,
    Writes,
)
from understudy.statesync.replication.slot_stream import BYTES_MOST, SlotStream
from understudy.statesync.replication.sync_set import Process
from understudy.statesync.sessions.replica import Replica
from understudy.statesync.sessions.request_log import RequestLog
from understudy.telemetry.timing.backoff import Backoff

logger = logging.getLogger(__name__)

FIRST_RETRY, LAST_RETRY = 0.02, 1.0
CONNECT_TIMEOUT = 2.0
SETTLED_AFTER = 3.0
"""Seconds that a connection has lasted: when it ends, it is dialled again at once, to hear whether the host refuses."""
MESSAGES_MOST = 100
"""Messages in one frame."""
PART_BYTES = 100_000
"""Bytes of sessions and outcomes in one part of a copy. New writes go between the parts, so a part delays them."""
TICK_SECONDS = wire.IDLE_SECONDS / 2
IDLE_TICKS = 2
"""After so many ticks in which nothing was sent that the other side answers, it is sent an empty frame."""
SAVED_TICKS = 8
"""After so many ticks copies are told what is saved even where other slots keep the connection busy."""
NOT_FOUND = 404


class SessionSource(Protocol):
    """What copies get of the slots in which this process is active: the sessions as readers see them, and outcomes."""

    def keys(self, slot: int) -> Iterable[str]:
        """The keys of all sessions of a slot."""

    def stored(self, slot: int, key: str) -> Stored | None:
        """A session with its version; None if it is gone."""

    def outcomes(self, slot: int) -> Iterable[bytes]:
        """The outcomes of a slot's requests whose writes readers see, as they go with their writes."""


@dataclass(frozen=True, slots=True)
class SlotSource:
    """The source of a sidecar: its sessions and its request log."""

    replica: Replica
    requests: RequestLog

    def keys(self, slot: int) -> Iterable[str]:
        """The keys of all sessions of a slot."""
        return self.replica.keys(slot)

    def stored(self, slot: int, key: str) -> Stored | None:
        """A session with its version; None if it is gone."""
        return self.replica.stored(slot, key)

    def outcomes(self, slot: int) -> Iterable[bytes]:
        """The outcomes of a slot's requests."""
        return self.requests.outcomes(slot)


@dataclass(slots=True)
class _Unsent:
    """What is left to send of a copy of a slot."""

    keys: deque[str]
    outcomes: deque[bytes]


class CopyConnection:
    """Sends the streams of this process to one other process, and takes in what that confirms.

    Args:
        me: this process.
        to: the process at the other end. If another boot answers, it is not sent anything.
        pool: the name of the pool.
        streams: the slots in which this process is active; the caller changes it, and tells by :meth:`send`.
        source: what copies of whole slots get.
        rejoins: is told when the process begins to get slots whose sync sets it is not in, and what it is sent.
        on_progress: is told of slots in which the process has confirmed something.
        on_refused: is told that the other process knows a later epoch of a slot.

    Attributes:
        connected: whether there is a connection.
        lag: how far the copies there are behind.
        refused: whether the last attempt to connect was refused: the host lives, and nobody listens there.
        unsupported: whether the other side answered the last attempt, and does not know replication: an older release.
        heard_at: when the last frame of the other side came (monotonic). It answers within a quarter of a second
            even when there is nothing to send.
        told_at: when the last question was sent (monotonic) that the other side has answered: then it knew no later
            epoch of the slots whose streams it follows.
        asking: whether to ask such questions, one at a time.
        on_host_refuses: called with the process when ``refused`` has become known: it is dead, and writes may wait
            for it.
    """

    def __init__(
        self,
        me: Process,
        to: Process,
        pool: str,
        streams: Mapping[int, SlotStream],
        source: SessionSource,
        rejoins: Rejoins,
        on_progress: Callable[[Iterable[int]], None],
        on_refused: Callable[[int, int], None],
    ) -> None:
        self._hello = Hello(pool, me.member, me.boot)
        self._to = to
        self._streams = streams
        self._source = source
        self._rejoins = rejoins
        self._on_progress = on_progress
        self._on_refused = on_refused
        self._due: dict[int, None] = {}
        self._asked: dict[int, int] = {}
        self._unsent: dict[int, _Unsent] = {}
        self._wake = asyncio.Event()
        self._ticks = self._quiet_ticks = 0
        self._idle = False
        self.lag = CopyLag()
        self.connected = self.refused = self.unsupported = False
        self.heard_at = self.told_at = -math.inf
        self.asking: Callable[[], bool] = lambda: False
        self.on_host_refuses: Callable[[Process], None] = lambda _process: None
        self._questions = 0
        self._question_sent: float | None = None

    def send(self, slot: int) -> None:
        """There is something new to send in a slot: a write, what is acknowledged, or a stream that has begun."""
        self._due[slot] = None
        self._wake.set()

    def send_along(self, slot: int) -> None:
        """There is something new to send in a slot, which goes with the next frame."""
        self._due[slot] = None

    def forget(self, slot: int) -> None:
        """A stream does not go over this connection any more. If it comes back, the copy is asked anew what it has."""
        self._asked.pop(slot, None)
        self._unsent.pop(slot, None)
        self.lag.forget(slot)
        self._rejoins.left(self._to, slot)

    async def run(self, http: aiohttp.ClientSession, url: str, tls: ssl.SSLContext | bool = True) -> None:
        """Keep the connection until cancelled. ``url`` is that of the peer API, without a path."""
        backoff = Backoff(FIRST_RETRY, LAST_RETRY)
        while True:
            pause, began = backoff.next(), time.monotonic()
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT) as limit, self._dial(http, url, tls) as socket:
                    await self._greet(socket)
                    limit.reschedule(None)
                    await self._serve(socket)
            except (ConnectionEnded, aiohttp.ClientError, OSError, TimeoutError) as error:
                self._note_failure(error)
                logger.info("no replication connection to %s: %s", self._to.member, error or type(error).__name__)
            finally:
                self._ended()
            if time.monotonic() - began < SETTLED_AFTER:
                await asyncio.sleep(pause)
            else:
                backoff.reset()

    def _note_failure(self, error: Exception) -> None:
        self.refused = isinstance(error, OSError) and error.errno == errno.ECONNREFUSED
        if self.refused:
            self.on_host_refuses(self._to)
        self.unsupported = isinstance(error, aiohttp.WSServerHandshakeError) and error.status == NOT_FOUND

    @staticmethod
    def _dial(
        http: aiohttp.ClientSession, url: str, tls: ssl.SSLContext | bool
    ) -> AbstractAsyncContextManager[aiohttp.ClientWebSocketResponse]:
        return http.ws_connect(
            url + REPLICATION_PATH,
            ssl=tls,
            compress=0,
            max_msg_size=wire.FRAME_MOST,
            heartbeat=wire.PING_SECONDS,
            timeout=aiohttp.ClientWSTimeout(ws_close=1.0),
        )

    async def _greet(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        await wire.send(socket, [self._hello])
        hello = await wire.greeting(socket, self._hello.pool)
        if Process(hello.member, hello.boot) != self._to:
            raise ConnectionEnded(f"it answers as {hello.member} with boot {hello.boot}, and not {self._to.boot}")

    async def _serve(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Send and receive until the connection ends. Raises :class:`ConnectionEnded`."""
        self.connected, self.refused, self.unsupported = True, False, False
        self.heard_at = time.monotonic()
        self._due = dict.fromkeys(self._streams)
        self._wake.set()
        writer = asyncio.create_task(self._write(socket))
        ticker = asyncio.create_task(self._tick())
        try:
            while True:
                messages = await wire.receive(socket)
                self.heard_at = time.monotonic()
                self._take(messages)
        finally:
            ticker.cancel()
            writer.cancel()
            with suppress(asyncio.CancelledError, ConnectionEnded):
                await writer

    async def _tick(self) -> None:
        """Wake the writer when the other side has had nothing to answer, or may lack what is saved."""
        while True:
            await tick(TICK_SECONDS)
            self._ticks += 1
            self._quiet_ticks += 1
            if self._quiet_ticks >= IDLE_TICKS or self._ticks % SAVED_TICKS == 0:
                self._idle = True
            if self._idle or self._asks():
                self._wake.set()

    def _asks(self) -> bool:
        return self._question_sent is None and self.asking()

    def _ended(self) -> None:
        self.connected = False
        self._question_sent = None
        self._unsent.clear()
        self._asked.clear()
        self.lag.forget()
        self._rejoins.lost(self._to)
        for stream in self._streams.values():
            stream.gone(self._to)

    async def _write(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                idle, self._idle = self._idle, False
                if idle:
                    self._due |= dict.fromkeys(slot for slot, one in self._streams.items() if one.tell_saved(self._to))
                while (frame := self._frame()) or idle:
                    if not frame or any(map(_is_answered, frame)):
                        idle, self._quiet_ticks = False, 0
                    await wire.send(socket, frame)
        except ConnectionEnded:
            await socket.close()  # the reader hears of it

    def _frame(self) -> list[Message]:
        """What is due: a question, then slot by slot: greetings of streams, then writes, then parts of copies."""
        frame: list[Message] = []
        size = 0
        if self._asks():
            self._questions += 1
            self._question_sent = time.monotonic()
            frame.append(Ask(self._questions))
        while self._due and len(frame) < MESSAGES_MOST and size < BYTES_MOST:
            slot = next(iter(self._due))
            message = self._next(slot)
            if message is None:
                del self._due[slot]
                continue
            self._due[slot] = self._due.pop(slot)  # to the end, so that one slot does not hold up the others
            frame.append(message)
            size += _size(message)
        return frame

    def _next(self, slot: int) -> FromActive | None:
        stream = self._streams.get(slot)
        if stream is None:
            return None
        if not stream.follows(self._to):
            if self._asked.get(slot) == stream.epoch:
                return None
            self._asked[slot] = stream.epoch
            return stream.lead()
        message = stream.outgoing(self._to)
        if isinstance(message, Writes) and message.writes:
            self.lag.sent(message, time.monotonic())
        elif isinstance(message, Part):
            self._unsent[slot] = _Unsent(deque(self._source.keys(slot)), deque(self._source.outcomes(slot)))
        elif message is None and slot in self._unsent:
            message = self._part(stream, self._unsent[slot])
        return message

    def _part(self, stream: SlotStream, unsent: _Unsent) -> Part:
        """The next part of a copy: outcomes, then the sessions as they are now. What was removed since is in no part.

        Later outcomes than those of ``unsent`` go with their writes.
        """
        sessions: list[Stored] = []
        outcomes: list[bytes] = []
        size = 0
        while unsent.outcomes and size < PART_BYTES:
            outcomes.append(unsent.outcomes.popleft())
            size += len(outcomes[-1])
        while unsent.keys and size < PART_BYTES:
            stored = self._source.stored(stream.slot, unsent.keys.popleft())
            if stored is not None:
                sessions.append(stored)
                size += len(stored.value)
        self._rejoins.sent(self._to, stream.slot, len(sessions), size)
        last = not unsent.keys and not unsent.outcomes
        if last:
            del self._unsent[stream.slot]
        return Part(
            stream.slot,
            stream.epoch,
            stream.visible,
            (),
            tuple(sessions),
            first=False,
            last=last,
            outcomes=tuple(outcomes),
        )

    def _take(self, messages: list[Message]) -> None:
        progress: dict[int, None] = {}
        for message in messages:
            if isinstance(message, Told):
                self._answered(message)
            elif isinstance(message, At | Have | Refused | Behind):
                stream = self._streams.get(message.slot)
                if stream is not None and stream.epoch == message.epoch and self._take_in(stream, message):
                    progress[message.slot] = None
            else:
                raise ConnectionEnded(f"a copy does not say {type(message).__name__}")
        if progress:
            self._on_progress(progress)

    def _take_in(self, stream: SlotStream, message: At | Have | Refused | Behind) -> bool:
        """Take in what a copy says of a stream; whether it has confirmed something."""
        if isinstance(message, Have):
            stream.has(self._to, message.version)
            if self.lag.follows:
                self.lag.confirmed(message.slot, message.version, time.monotonic())
            return True
        self.lag.forget(message.slot)
        self._asked.pop(message.slot, None)
        match message:
            case At():
                self._unsent.pop(message.slot, None)
                if self._to not in stream.agreed.members:
                    self._rejoins.begun(self._to, message.slot)
                stream.at(self._to, message)
                self.send(message.slot)
            case Behind():
                stream.gone(self._to)
                self.send(message.slot)
            case Refused():
                stream.gone(self._to)
                self._on_refused(message.slot, message.known)
        return isinstance(message, At)

    def _answered(self, told: Told) -> None:
        if told.number == self._questions and self._question_sent is not None:
            self.told_at, self._question_sent = self._question_sent, None


def _is_answered(message: Message) -> bool:
    """Whether a copy answers a message; it does not if that only tells what readers may see."""
    return not isinstance(message, Writes) or bool(message.writes)


def _size(message: FromActive) -> int:
    """About how many bytes a message has."""
    if isinstance(message, Writes):
        return sum(len(write.value or b"") for write in message.writes)
    return PART_BYTES if isinstance(message, Part) else 0
