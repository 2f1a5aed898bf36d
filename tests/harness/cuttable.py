"""A TCP relay that a test can cut: what passes through it then meets silence, as behind a dropped cable."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.harness.waiting import free_port


class Cable:
    """Relays connections to ``target`` (``host:port``); while ``cut`` nothing gets through, and nothing is refused."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.address = f"127.0.0.1:{free_port()}"
        self._whole = asyncio.Event()
        self._whole.set()
        self._relays: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """Let nothing through from now on."""
        self._whole.clear()

    def mend(self) -> None:
        """Let everything through again, what was held back included."""
        self._whole.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        try:
            await self._whole.wait()
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._relay(source, sink))
            self._relays.add(task)
            task.add_done_callback(self._relays.discard)

    async def _relay(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self._whole.wait()
                sink.write(data)
                await sink.drain()
        except OSError:
            return
        finally:
            sink.close()


@asynccontextmanager
async def cable_to(target: str) -> AsyncIterator[Cable]:
    """A cable to ``target`` while the block lasts."""
    cable = Cable(target)
    host, _, port = cable.address.rpartition(":")
    server = await asyncio.start_server(cable._serve, host, int(port))
    try:
        yield cable
    finally:
        server.close()
        for task in list(cable._relays):
            task.cancel()
