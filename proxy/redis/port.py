"""The Redis port of a sidecar: listens for applications, and keeps track of their connections."""

import asyncio
import contextlib
import itertools
import logging
import socket
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

from understudy.proxy.health.loop_lag import LoopLag
from understudy.proxy.redis.client import Client
from understudy.proxy.redis.connection import Connection
from understudy.proxy.redis.executor import Executor
from understudy.proxy.redis.info import Server
from understudy.proxy.sessions.admission import SessionTokens
from understudy.proxy.sessions.service import CALL_TIMEOUT

logger = logging.getLogger(__name__)

CONNECTIONS_MOST = 10_000
INPUT_AT_ONCE = 256 * 1024
"""Bytes that are read from a connection in one turn of the event loop."""
CROWD = 4
"""So many connections in one turn of the event loop have their answers sent together, at its end. The first send wakes
the clients, and the others cost less."""
COUNTED_EVERY = 31
"""While answers are sent at once, one input of so many has those after it in its turn counted."""
STILL_MOST = 1.0
"""Seconds for which this process may have stood still before commands that waited meanwhile are not carried out: their
clients may have given them up, and have sent others elsewhere."""
LATE_MOST = 5.0
"""The same for commands that waited because this process got no CPU."""
FRESH_AFTER = 0.2
"""Seconds after a standstill from which new connections bring new commands: those that waited are accepted by then."""
CLOSE_TIMEOUT = 2.0
LATENESS = 0.1
"""Seconds by which a write may be settled too late."""


class RedisPort:
    """The connections of the Redis port; ``notices`` counts the notices of waits."""

    def __init__(
        self,
        executor: Executor,
        tokens: SessionTokens | None,
        loop_lag: LoopLag,
        *,
        member: str,
        run_id: str,
        keys: Callable[[], int],
        now_ms: Callable[[], int],
    ) -> None:
        self.executor = executor
        self.server = Server(member, run_id, tokens, self.clients, keys, now_us=lambda: now_ms() * 1000)
        self.notices = 0
        self._loop_lag = loop_lag
        self._numbers = itertools.count(1)
        self._connections: set[Connection] = set()
        self._empty = asyncio.Event()
        self._to_go_on: list[Connection] = []
        self._crowded = False
        self._inputs = 0
        self.input = memoryview(bytearray(INPUT_AT_ONCE))
        """Where the input of every connection arrives; each takes its own out at once."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def full(self) -> bool:
        """Whether there are more connections than :data:`CONNECTIONS_MOST`."""
        return len(self._connections) > CONNECTIONS_MOST

    def clients(self) -> list[Client]:
        """All clients, by their numbers."""
        return sorted((one.client for one in self._connections), key=lambda client: client.number)

    def admit(self, connection: Connection, transport: asyncio.Transport) -> tuple[int, str, bool]:
        """Note a new connection. Returns the client's number, its address, and whether it needs no password."""
        self._connections.add(connection)
        peer = transport.get_extra_info("peername")
        address = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "unix"
        return next(self._numbers), address, self.server.open

    def forget(self, connection: Connection) -> None:
        """A connection has ended."""
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    def stale(self, since: float) -> bool:
        """Whether input of a connection made at ``since`` (monotonic) may have waited too long to be carried out."""
        return self._loop_lag.input_waited(since, STILL_MOST, LATE_MOST, FRESH_AFTER)

    def answers_later(self) -> bool:
        """Whether the answers to an input are to be sent with those of other connections (:meth:`go_on_soon`)."""
        self._inputs += 1
        return self._crowded or bool(self._to_go_on) or self._inputs % COUNTED_EVERY == 0

    def go_on_soon(self, connection: Connection) -> None:
        """Have a connection go on after all that is about to be answered in this turn of the event loop."""
        if not self._to_go_on:
            asyncio.get_running_loop().call_soon(self._go_on)
        self._to_go_on.append(connection)

    def _go_on(self) -> None:
        connections, self._to_go_on = self._to_go_on, []
        self._crowded = len(connections) >= CROWD
        for connection in connections:
            try:
                connection.go_on()
            except Exception:  # the others must go on
                logger.exception("a Redis connection failed")
                connection.abort()

    def limit(self) -> None:
        """A write was begun: have it settled if it is not acknowledged within :data:`CALL_TIMEOUT` seconds."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LATENESS, self._settle_late)

    def _settle_late(self) -> None:
        self._timer = None
        late = time.monotonic() - CALL_TIMEOUT
        for connection in tuple(self._connections):
            if connection.settle_late(late):
                self.limit()

    async def listen(self, stack: AsyncExitStack, bound: socket.socket) -> None:
        """Serve a bound socket until the stack is closed."""
        loop = asyncio.get_running_loop()
        if bound.family == socket.AF_UNIX:
            server = await loop.create_unix_server(lambda: Connection(self), sock=bound, backlog=1024)
        else:
            server = await loop.create_server(lambda: Connection(self), sock=bound, backlog=1024)
        stack.push_async_callback(self._close, server)

    async def _close(self, server: asyncio.Server) -> None:
        """Accept no more, let what is under way end, and close the connections."""
        server.close()
        for connection in tuple(self._connections):
            connection.close()
        if self._connections:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await self._empty.wait()
        for connection in tuple(self._connections):
            connection.abort()
