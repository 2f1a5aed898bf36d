"""Heartbeat streams to the control servers: one to each, opened again whenever it ends or falls silent.

A connection that lost packets may stay open and silent for a minute, since TCP repeats at longer and longer intervals.
So a stream without an answer for :data:`~understudy.statesync.heartbeat.heartbeat.STREAM_SILENCE` is closed, and its
connection with it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import grpc
import grpc.aio

from understudy.proxy.member.signal import Signal
from understudy.statesync.heartbeat.heartbeat import (
    ANSWERS,
    BEAT_INTERVAL,
    METHOD,
    PINGS,
    STREAM_SILENCE,
    Beat,
    BeatAnswer,
)
from understudy.statesync.heartbeat.load_report import LOAD_INTERVAL
from understudy.statesync.process.ticks import Alarm, tick
from understudy.statesync.tls.pem_files import PemFiles
from understudy.statesync.tls.secret_files import fault_of

logger = logging.getLogger(__name__)

RECONNECT_INTERVAL = 0.1
CONNECT_TIMEOUT = 3.0
"""Seconds after which a connection attempt is given up and repeated, with the certificate as it is then."""
STOOD_STILL = 1.0
"""A turn this late, in seconds, means that this process stood still: silence before it does not count."""
_OPTIONS = (
    *PINGS,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # gRPC's name for the time that one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", 1_000),
    # Channels to one address would otherwise share their connection, a dead one too.
    ("grpc.use_local_subchannel_pool", 1),
)
_FAILURES = (grpc.aio.AioRpcError, TimeoutError, OSError, asyncio.InvalidStateError)
"""How a stream can end: gRPC raises the last of them for a write to a call that has ended."""

Stream = grpc.aio.StreamStreamCall
OnAnswer = Callable[[str, BeatAnswer], None]


class SilentStream(OSError):
    """Nothing was heard on a stream for too long."""


@dataclass(slots=True)
class Hearing:
    """When the server was last heard on a stream; monotonic seconds. ``expected``: the server sends answers at all."""

    at: float
    expected: bool

    def silent(self, now: float) -> bool:
        """Whether the stream is to be closed."""
        return self.expected and now - self.at >= STREAM_SILENCE


class HeartbeatClient:
    """Beats to every control server there is.

    ``controls`` are their addresses as of now, ``beat`` makes a beat (told whether one with the load is due),
    ``on_answer`` gets each answer, with the address of its sender. ``tls`` is read again for each connection.
    ``beat_now`` says that control servers should hear of something before the next beat is due.
    """

    def __init__(
        self,
        controls: Callable[[], Collection[str]],
        beat: Callable[[bool], Beat],
        on_answer: OnAnswer,
        tls: PemFiles | None,
        beat_now: Signal,
    ) -> None:
        self._controls = controls
        self._beat = beat
        self._on_answer = on_answer
        self._tls = tls
        self._credentials: grpc.ChannelCredentials | None = None
        self._fault = ""
        self._due: dict[str, Alarm] = {}
        self._streams: dict[str, asyncio.Task[None]] = {}
        beat_now.listen(self._beat_at_once)

    def _beat_at_once(self) -> None:
        for due in self._due.values():
            due.set()

    async def run(self) -> None:
        """Hold a stream to every control server, until cancelled."""
        try:
            while True:
                wanted = set(self._controls())
                for address in wanted - self._streams.keys():
                    self._streams[address] = asyncio.create_task(self._keep(address), name=f"beat/{address}")
                for address in self._streams.keys() - wanted:
                    self._streams.pop(address).cancel()
                await tick(BEAT_INTERVAL)
        finally:
            for task in self._streams.values():
                task.cancel()
            await asyncio.gather(*self._streams.values(), return_exceptions=True)

    async def _keep(self, address: str) -> None:
        """Open one stream after the other until this task is cancelled."""
        due = self._due.setdefault(address, Alarm())
        try:
            while True:
                try:
                    await self._hold(address, due)
                except SilentStream as error:
                    logger.warning("heartbeats to %s: %s", address, error)
                except _FAILURES as error:
                    logger.debug("heartbeats to %s: %r", address, error)
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if task is None or task.cancelling():
                        raise
                    logger.debug("heartbeats to %s: the stream was cancelled", address)
                except Exception:
                    logger.exception("heartbeats to %s: opening the stream again", address)
                await asyncio.sleep(RECONNECT_INTERVAL)
        finally:
            self._due.pop(address, None)

    async def _hold(self, address: str, due: Alarm) -> None:
        """Connect and beat until the stream ends, which raises."""
        async with self._channel(address) as channel:
            open_stream = channel.stream_stream(METHOD, request_serializer=None, response_deserializer=None)
            stream = open_stream(None, wait_for_ready=True)
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    await stream.wait_for_connection()
                    greeting = await stream.initial_metadata()
                hearing = Hearing(time.monotonic(), any(name == ANSWERS for name, _ in greeting or ()))
                reading = asyncio.create_task(self._read(address, stream, hearing))
                try:
                    await self._send(stream, due, hearing)
                finally:
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)
            finally:
                stream.cancel()

    def _channel(self, address: str) -> grpc.aio.Channel:
        if self._tls is None:
            return grpc.aio.insecure_channel(address, options=_OPTIONS)
        return grpc.aio.secure_channel(address, self._read_credentials(self._tls), options=_OPTIONS)

    def _read_credentials(self, tls: PemFiles) -> grpc.ChannelCredentials:
        """What the files hold now; what they held before if they cannot be used. Raises ``OSError`` without that."""
        try:
            self._credentials, self._fault = tls.channel_credentials(), ""
        except OSError as error:
            if self._credentials is None:
                raise
            if self._fault != (fault := fault_of(error)):
                self._fault = fault
                logger.warning("heartbeats: keeping the certificates in use: %s", fault)
        return self._credentials

    async def _read(self, address: str, stream: "Stream[bytes, bytes]", hearing: Hearing) -> None:
        async for raw in stream:
            hearing.at = time.monotonic()
            self._on_answer(address, BeatAnswer.decode(raw))

    async def _send(self, stream: "Stream[bytes, bytes]", due: Alarm, hearing: Hearing) -> None:
        turn, load_at = time.monotonic(), -LOAD_INTERVAL
        while True:
            with_load = turn - load_at >= LOAD_INTERVAL
            load_at = turn if with_load else load_at
            async with asyncio.timeout(STREAM_SILENCE):
                await stream.write(self._beat(with_load).encode())
            await due.wait(BEAT_INTERVAL)
            now = time.monotonic()
            if now - turn >= STOOD_STILL:
                hearing.at = max(hearing.at, now)
            turn = now
            if hearing.silent(now):
                raise SilentStream(f"no answer for {STREAM_SILENCE:g} s; connecting again")
