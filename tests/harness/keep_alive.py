"""Clients that keep their connections open and send one request after another, and note what they see."""

import asyncio
import contextlib
import ssl
from collections import Counter
from collections.abc import AsyncIterator

from tests.harness.waiting import until

PAUSE = 0.01


class KeepAlive:
    """Connections to one address. ``seen`` counts answers by status; ``broken`` has what ended a connection."""

    def __init__(self, port: int, request: bytes, tls: ssl.SSLContext | None = None, server_name: str = "") -> None:
        self.port, self.request, self.tls, self.server_name = port, request, tls, server_name
        self.seen: Counter[int] = Counter()
        self.bodies: set[str] = set()
        self.broken: list[str] = []
        self.opened = 0

    async def one(self) -> None:
        """One connection, for as long as it lives."""
        names = {"ssl": self.tls, "server_hostname": self.server_name} if self.tls else {}
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **names)
        self.opened += 1
        try:
            while True:
                writer.write(self.request)
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = next(int(line.split(":")[1]) for line in head.splitlines() if line.startswith("content-l"))
                body = await reader.readexactly(length)
                self.seen[int(head.split()[1])] += 1
                self.bodies.add(body.decode())
                if "connection: close" in head:
                    self.broken.append("the server closes it")
                    return
                await asyncio.sleep(PAUSE)
        except (OSError, EOFError) as error:
            self.broken.append(repr(error))
        finally:
            writer.close()

    async def more(self, count: int = 20) -> None:
        """Return after some more answers."""
        goal = self.seen.total() + count
        await until(lambda: self.seen.total() >= goal or bool(self.broken), 60, f"{count} more answers")

    def untouched(self, status: int = 200) -> None:
        """Fail if a connection ended or an answer was another one."""
        assert (self.broken, set(self.seen)) == ([], {status})


def get(host: str, path: str, key: str = "k") -> bytes:
    """A request with a session key."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nx-session-id: {key}\r\n\r\n".encode()


@contextlib.asynccontextmanager
async def kept_alive(clients: KeepAlive, connections: int = 4) -> AsyncIterator[KeepAlive]:
    """Keep these connections busy while the block runs."""
    tasks = [asyncio.create_task(clients.one()) for _ in range(connections)]
    try:
        yield clients
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
