"""TCP clients of the example notebook at a constant rate. They reconnect when a connection breaks.

Like other clients of the notebook (:mod:`understudy.deploy.examples.notebook`), they repeat an unanswered request on a
new connection with the same id. So a request fails only if there is no answer in time, or if it is refused. Its
duration includes the time for reconnecting. ``history_checker`` checks the records.

The address of a client is its session key, so each client needs its own: one of 127.0.0.0/8, or, in a pool behind a
proxy, one that it sends in a PROXY header.
"""

import asyncio
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from understudy.deploy.common.errors import DeployError
from understudy.deploy.load.history_checker import Content, Op, OpKind
from understudy.deploy.load.http_load import ANSWER_TIMEOUT
from understudy.deploy.load.open_loop import OpenLoop
from understudy.statesync.pool.addresses import split_address

RECONNECT_DELAY = 0.01
"""Seconds before a client connects again."""


class ConnectionClosed(ConnectionError):
    """The service closed the connection."""


@dataclass(slots=True)
class Writer:
    """One client: its address, its connection if it has one, and the member that serves it."""

    source: str
    notes: int = 0
    member: str = ""
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def disconnect(self) -> None:
        """Close the connection."""
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None


@dataclass(slots=True)
class NotebookLoad:
    """A load on the front Envoy at ``front`` (``host:port``); ``clock`` gives the seconds in all records.

    ``proxy_header``: clients send their addresses in PROXY headers.
    """

    front: str
    sessions: int
    rate: float
    proxy_header: bool = False
    clock: Callable[[], float] = time.monotonic
    history: list[Op] = field(default_factory=list)
    writers: list[Writer] = field(default_factory=list)
    drives: ClassVar[str] = "the example notebook (ADD and LIST over TCP)"
    _run: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    _open_loop: OpenLoop = field(init=False)

    def __post_init__(self) -> None:
        self._open_loop = OpenLoop(self.sessions, self.rate, self.clock)

    @property
    def pacing(self) -> float:
        """Seconds between two requests of one session."""
        return self._open_loop.between

    async def open_sessions(self) -> None:
        """Write the first note of every client. Raises :class:`DeployError` if one cannot be written."""
        # Earlier runs probably had other addresses, so the notebooks are empty.
        network = f"127.{16 + os.urandom(1)[0] % 224}"
        self.writers = [Writer(f"{network}.{number // 250}.{number % 250 + 1}") for number in range(self.sessions)]
        gate = asyncio.Semaphore(10)

        async def enter(writer: Writer) -> None:
            async with gate:
                op = await self._request(writer, "write")
            if not op.succeeded:
                raise DeployError(f"a client could not write to {self.front}: {op.error}")

        await asyncio.gather(*map(enter, self.writers))

    def start(self) -> None:
        """Start the requests."""
        self._open_loop.start(self._note)

    async def stop(self) -> None:
        """Start no new requests, and wait for the answers to the others."""
        await self._open_loop.stop()

    async def final_contents(self) -> Mapping[str, Content | None]:
        """Read every notebook once more, on a new connection; None if that failed."""
        gate = asyncio.Semaphore(10)

        async def read(writer: Writer) -> tuple[str, Content | None]:
            writer.disconnect()
            async with gate:
                op = await self._request(writer, "check")
            return writer.source, op.seen if op.succeeded else None

        return dict(await asyncio.gather(*map(read, self.writers)))

    async def close(self) -> None:
        """Cancel all requests and close the connections."""
        await self._open_loop.cancel()
        for writer in self.writers:
            writer.disconnect()

    async def _note(self, number: int, writes: bool) -> None:
        await self._request(self.writers[number], "write" if writes else "read")

    async def _request(self, writer: Writer, kind: OpKind) -> Op:
        """Make one request. Repeat it until there is an answer or its time is over."""
        wrote, line = "", "LIST"
        if kind == "write":
            writer.notes += 1
            wrote = f"{self._run}-{writer.notes}"
            line = f"ADD {wrote} of {writer.source}"
        started, attempts = self.clock(), 0
        answer, error, seen = "", "", None
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                while not answer:
                    attempts += 1
                    try:
                        answer, seen = await self._send(writer, line)
                    except OSError as fault:
                        error = f"{type(fault).__name__}: {fault}"
                        writer.disconnect()
                        await asyncio.sleep(RECONNECT_DELAY)
        except TimeoutError:
            error = f"no answer within {ANSWER_TIMEOUT:g} s; {error}".rstrip("; ")
            writer.disconnect()
        good = answer.startswith(("OK ", "NOTES "))
        op = Op(
            session=writer.source,
            kind=kind,
            started=started,
            ended=self.clock(),
            status=200 if good else 503 if answer else 0,
            served_by=writer.member if good else "",
            attempts=attempts,
            wrote=wrote,
            seen=seen,
            error="" if good else answer or error,
        )
        self.history.append(op)
        return op

    async def _send(self, writer: Writer, line: str) -> tuple[str, Content | None]:
        """Returns the first line of the answer, and its notes. Raises ``OSError`` if the connection breaks."""
        reader, out = writer.streams or await self._connect(writer)
        answer = await _request_line(reader, out, line)
        if not answer.startswith("NOTES "):
            return answer, None
        names = [(await _read_line(reader)).partition(" ")[0] for _ in range(int(answer.split()[1]))]
        return answer, {name: names.count(name) for name in names}

    async def _connect(self, writer: Writer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = split_address(self.front)
        local = None if self.proxy_header else (writer.source, 0)
        reader, out = writer.streams = await asyncio.open_connection(host, port, local_addr=local)
        if self.proxy_header:
            out.write(f"PROXY TCP4 {writer.source} 127.0.0.1 1024 {port}\r\n".encode())
        reply = (await _request_line(reader, out, "WHO")).split()
        if len(reply) != 3 or reply[2] != writer.source:
            raise DeployError(f"the service at {self.front} is not a notebook, or does not see its clients' addresses")
        writer.member = reply[1]
        return reader, out


async def _request_line(reader: asyncio.StreamReader, out: asyncio.StreamWriter, line: str) -> str:
    out.write(f"{line}\n".encode())
    await out.drain()
    return await _read_line(reader)


async def _read_line(reader: asyncio.StreamReader) -> str:
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise ConnectionClosed("the service closed the connection")
    return line.decode(errors="replace").strip()
