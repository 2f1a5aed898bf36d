"""A TCP relay that a test can cut: in both directions or in one, silently or with a reset, for all or for one source.

What passes through a silent cut is held back until it is mended, as TCP itself would send it again.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Flag

from tests.harness.waiting import free_port

EVERYBODY = ""
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Way(Flag):
    """A direction through a cable."""

    REQUESTS = 1
    ANSWERS = 2
    BOTH = 3


@dataclass(eq=False)
class _Connection:
    source: str
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    def abort(self) -> None:
        for writer in self.writers:
            sock = writer.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()


class Cable:
    """Relays connections to ``target`` (``host:port``).

    While it is cut nothing gets through, and nothing is refused; while it is reset, connections break at once.
    ``who`` names the source of a connection by its port and this relay's, for cuts that are meant for one source only.
    ``sockets`` makes the sockets that go to the target, if they are to be in another network.
    """

    def __init__(
        self,
        target: str,
        who: Callable[[int, int], str] | None = None,
        sockets: Callable[[], socket.socket] | None = None,
    ) -> None:
        self.target = target
        self.address = f"127.0.0.1:{free_port()}"
        self.delay = 0.0
        self._who = who
        self._sockets = sockets
        self._cuts: dict[str, Way] = {}
        self._resets: set[str] = set()
        self._changed = asyncio.Event()
        self._connections: set[_Connection] = set()
        self._relays: set[asyncio.Task[None]] = set()

    def cut(self, way: Way = Way.BOTH, source: str = EVERYBODY) -> None:
        """Let nothing through from now on, in the given direction."""
        self._cuts[source] = self._cuts.get(source, Way(0)) | way

    def reset(self, source: str = EVERYBODY) -> None:
        """Break every connection now, and each new one at once, until mended."""
        self._resets.add(source)
        for connection in list(self._connections):
            if source in (EVERYBODY, connection.source):
                connection.abort()

    def mend(self, source: str = EVERYBODY) -> None:
        """Let everything through again, what was held back included; for ``EVERYBODY`` all cuts end."""
        if source == EVERYBODY:
            self._cuts.clear()
            self._resets.clear()
        self._cuts.pop(source, None)
        self._resets.discard(source)
        self._changed.set()
        self._changed = asyncio.Event()

    def _blocked(self, source: str, way: Way) -> bool:
        return any(way & self._cuts.get(named, Way(0)) for named in (EVERYBODY, source))

    async def _passable(self, source: str, way: Way) -> None:
        while self._blocked(source, way):
            await self._changed.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ports = writer.get_extra_info("peername")[1], writer.get_extra_info("sockname")[1]
        source = self._who(*ports) if self._who else EVERYBODY
        connection = _Connection(source, [writer])
        if EVERYBODY in self._resets or source in self._resets:
            connection.abort()
            return
        host, _, port = self.target.rpartition(":")
        try:
            await self._passable(source, Way.REQUESTS)
            far_reader, far_writer = await self._reach(host, int(port))
        except OSError:
            connection.abort()
            return
        connection.writers.append(far_writer)
        self._connections.add(connection)
        for way, start, end in ((Way.REQUESTS, reader, far_writer), (Way.ANSWERS, far_reader, writer)):
            task = asyncio.create_task(self._relay(connection, way, start, end))
            self._relays.add(task)
            task.add_done_callback(self._relays.discard)

    async def _reach(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._sockets is None:
            return await asyncio.open_connection(host, port)
        made = self._sockets()
        try:
            await asyncio.get_running_loop().sock_connect(made, (host, port))
            return await asyncio.open_connection(sock=made)
        except BaseException:
            made.close()
            raise

    async def _relay(
        self, connection: _Connection, way: Way, start: asyncio.StreamReader, end: asyncio.StreamWriter
    ) -> None:
        try:
            while data := await start.read(65536):
                if self.delay:
                    await asyncio.sleep(self.delay)
                await self._passable(connection.source, way)
                end.write(data)
                await end.drain()
            await self._passable(connection.source, way)
        except OSError:
            connection.abort()
        finally:
            self._connections.discard(connection)
            end.close()

    def close(self) -> None:
        """Drop all connections."""
        for task in list(self._relays):
            task.cancel()
        for connection in list(self._connections):
            connection.abort()


@asynccontextmanager
async def cable_to(
    target: str,
    who: Callable[[int, int], str] | None = None,
    sockets: Callable[[], socket.socket] | None = None,
) -> AsyncIterator[Cable]:
    """A cable to ``target`` while the block lasts."""
    cable = Cable(target, who, sockets)
    host, _, port = cable.address.rpartition(":")
    server = await asyncio.start_server(cable._serve, host, int(port))
    try:
        yield cable
    finally:
        server.close()
        cable.close()
