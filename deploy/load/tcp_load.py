"""A drill's clients of a TCP pool: notebooks kept at a steady pace over connections that are made anew when they break.

They speak to the example notebook (:mod:`understudy.deploy.examples.notebook`) as its clients do: what was not answered
is said again on a new connection, under the same id. So a request fails only if nobody answers it in time or it is
refused; how long a broken connection held it up is in its time. Judging is left to ``history_checker``, as with
:mod:`understudy.deploy.load.http_load`.

Each client needs an address of its own, since that is its session key: one of 127.0.0.0/8, or, in a pool whose clients
come through a proxy, one that it tells in a PROXY header.
"""

import asyncio
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from understudy.deploy.common.errors import DeployError
from understudy.deploy.load.history_checker import Content, Kind, Op
from understudy.deploy.load.http_load import PATIENCE
from understudy.deploy.load.open_loop import Pace
from understudy.statesync.pool.addresses import split_address

AGAIN_AFTER = 0.01
"""Seconds before a client connects again."""


class Hungup(ConnectionError):
    """The service has closed the connection."""


@dataclass(slots=True)
class Writer:
    """One client: its address, and its connection while it has one, with the member that took it."""

    source: str
    notes: int = 0
    member: str = ""
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def hang_up(self) -> None:
        """Let go of the connection."""
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None


@dataclass(slots=True)
class NotebookLoad:
    """A running load against the front Envoy at ``front`` (``host:port``); ``clock`` gives seconds of all records.

    ``told``: the clients' addresses go into PROXY headers, and are not those of their connections.
    """

    front: str
    sessions: int
    rate: float
    told: bool = False
    clock: Callable[[], float] = time.monotonic
    history: list[Op] = field(default_factory=list)
    writers: list[Writer] = field(default_factory=list)
    drives: ClassVar[str] = "the example notebook (ADD and LIST over TCP)"
    _run: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    _pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        self._pace = Pace(self.sessions, self.rate, self.clock)

    @property
    def pacing(self) -> float:
        """Seconds between two requests of one session."""
        return self._pace.between

    async def open_sessions(self) -> None:
        """Let every client write its first note; raises :class:`DeployError` when one cannot."""
        # Addresses that no earlier run is likely to have had, so that notebooks begin empty.
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
        """Start the steady requests."""
        self._pace.start(self._note)

    async def stop(self) -> None:
        """Send nothing new and wait for the answers still to come."""
        await self._pace.stop()

    async def final_contents(self) -> Mapping[str, Content | None]:
        """Read every notebook once more, on a new connection; None where that failed."""
        gate = asyncio.Semaphore(10)

        async def look(writer: Writer) -> tuple[str, Content | None]:
            writer.hang_up()
            async with gate:
                op = await self._request(writer, "check")
            return writer.source, op.seen if op.succeeded else None

        return dict(await asyncio.gather(*map(look, self.writers)))

    async def close(self) -> None:
        """End whatever still runs and close the connections."""
        await self._pace.cancel()
        for writer in self.writers:
            writer.hang_up()

    async def _note(self, number: int, writes: bool) -> None:
        await self._request(self.writers[number], "write" if writes else "read")

    async def _request(self, writer: Writer, kind: Kind) -> Op:
        """One request, said until it is answered or its client's patience ends."""
        wrote, line = "", "LIST"
        if kind == "write":
            writer.notes += 1
            wrote = f"{self._run}-{writer.notes}"
            line = f"ADD {wrote} of {writer.source}"
        started, attempts = self.clock(), 0
        answer, error, seen = "", "", None
        try:
            async with asyncio.timeout(PATIENCE):
                while not answer:
                    attempts += 1
                    try:
                        answer, seen = await self._say(writer, line)
                    except OSError as fault:
                        error = f"{type(fault).__name__}: {fault}"
                        writer.hang_up()
                        await asyncio.sleep(AGAIN_AFTER)
        except TimeoutError:
            error = f"no answer within {PATIENCE:g} s; {error}".rstrip("; ")
            writer.hang_up()
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

    async def _say(self, writer: Writer, line: str) -> tuple[str, Content | None]:
        """The first line of the answer, and the notes if it has some. Raises ``OSError`` when the connection breaks."""
        reader, out = writer.streams or await self._connect(writer)
        answer = await _asked(reader, out, line)
        if not answer.startswith("NOTES "):
            return answer, None
        names = [(await _heard(reader)).partition(" ")[0] for _ in range(int(answer.split()[1]))]
        return answer, {name: names.count(name) for name in names}

    async def _connect(self, writer: Writer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = split_address(self.front)
        local = None if self.told else (writer.source, 0)
        reader, out = writer.streams = await asyncio.open_connection(host, port, local_addr=local)
        if self.told:
            out.write(f"PROXY TCP4 {writer.source} 127.0.0.1 1024 {port}\r\n".encode())
        said = (await _asked(reader, out, "WHO")).split()
        if len(said) != 3 or said[2] != writer.source:
            raise DeployError(f"what answers at {self.front} is no notebook, or does not see its clients' addresses")
        writer.member = said[1]
        return reader, out


async def _asked(reader: asyncio.StreamReader, out: asyncio.StreamWriter, line: str) -> str:
    out.write(f"{line}\n".encode())
    await out.drain()
    return await _heard(reader)


async def _heard(reader: asyncio.StreamReader) -> str:
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise Hungup("the service closed the connection")
    return line.decode(errors="replace").strip()
