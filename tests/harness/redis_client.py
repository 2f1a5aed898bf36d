"""A Redis client for tests that shows bytes and values as they come, without repeating anything."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Self

import hiredis

TIMEOUT = 30.0


class RedisClient:
    """One connection to ``host:port`` or ``unix:/path``. Errors come as ``hiredis.ReplyError`` values."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._replies = hiredis.Reader()

    @classmethod
    async def connect(cls, address: str) -> Self:
        if address.startswith("unix:"):
            return cls(*await asyncio.open_unix_connection(address.removeprefix("unix:")))
        host, _, port = address.rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def __call__(self, *argv: bytes | str | int) -> object:
        """The answer to one command."""
        self.send(argv)
        return await self.answer()

    def send(self, *commands: Sequence[bytes | str | int]) -> None:
        """Send commands without waiting for answers."""
        self.writer.write(b"".join(hiredis.pack_command(tuple(command)) for command in commands))

    async def answer(self) -> object:
        """The next answer; raises ``ConnectionError`` at the end of the connection."""
        async with asyncio.timeout(TIMEOUT):
            while (reply := self._replies.gets()) is False:
                data = await self.reader.read(1 << 16)
                if not data:
                    raise ConnectionError("the connection was closed")
                self._replies.feed(data)
            return reply

    async def answers(self, count: int) -> list[object]:
        """The next answers."""
        return [await self.answer() for _ in range(count)]

    async def until_closed(self, sent: bytes) -> bytes:
        """Send bytes as they are, and return all that comes until the connection is closed."""
        self.writer.write(sent)
        async with asyncio.timeout(TIMEOUT):
            return await self.reader.read()

    def close(self) -> None:
        self.writer.close()


@asynccontextmanager
async def redis_client(address: str, *, protocol: int = 2) -> AsyncIterator[RedisClient]:
    """A connection that has shaken hands for version 3, if asked to."""
    client = await RedisClient.connect(address)
    try:
        if protocol == 3:
            await client("HELLO", 3)
        yield client
    finally:
        client.close()
