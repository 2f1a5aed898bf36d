"""The network between a client and a server, as far as a test wants to break it: a TCP forwarder on loopback."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tests.harness.waiting import free_port


class Link:
    """Forwards a port of its own to ``target`` (``host:port``); to be used by one event loop.

    :meth:`cut` breaks all connections and refuses new ones. :meth:`mute` lets requests through but no answers,
    :meth:`silence` nothing at all; both hold back what comes. :meth:`restore` heals all three.
    """

    def __init__(self, target: str) -> None:
        self.port = free_port()
        self._host, self._target_port = target.rsplit(":", 1)
        self._requests = asyncio.Event()
        self._answers = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def endpoint(self) -> str:
        """``host:port`` for clients."""
        return f"127.0.0.1:{self.port}"

    async def restore(self) -> None:
        """Let everything pass."""
        self._requests.set()
        self._answers.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    def mute(self) -> None:
        """Hold back what the server answers from now on."""
        self._answers.clear()

    def silence(self) -> None:
        """Hold back everything from now on; new connections are accepted, and as silent."""
        self._requests.clear()
        self._answers.clear()

    async def cut(self) -> None:
        """Break all connections and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        writers = [writer]
        try:
            with contextlib.suppress(OSError):
                there, back = await asyncio.open_connection(self._host, int(self._target_port))
                writers.append(back)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, back, self._requests))
                    group.create_task(self._pump(there, writer, self._answers))
        except (asyncio.CancelledError, ExceptionGroup):
            pass
        finally:
            self._connections.discard(connection)
            for end in writers:
                end.transport.abort()

    @staticmethod
    async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        while data := await source.read(65536):
            await gate.wait()
            sink.write(data)
            await sink.drain()
        raise ConnectionResetError("one end has closed")


@contextlib.asynccontextmanager
async def linked(target: str) -> AsyncIterator[Link]:
    """A working link to ``target``, gone at the end of the block."""
    link = Link(target)
    await link.restore()
    try:
        yield link
    finally:
        await link.cut()
