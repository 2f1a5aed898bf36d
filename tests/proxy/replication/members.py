"""An active and copies on real connections: stores of sessions, a copy's port, and a copy as a process of its own.

``python -m tests.proxy.replication.members PORT BOOT`` serves a copy and answers ``GET /sessions`` with what it has.
"""

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from understudy.proxy.events.rejoins import Rejoins
from understudy.proxy.replication.copy_connection import CopyConnection
from understudy.proxy.replication.copy_keeper import CopyKeeper
from understudy.proxy.replication.wire import FRAME_MOST
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.replication.history import begun
from understudy.statesync.replication.messages import Lead, LoggedWrite, Message, Part, Stored
from understudy.statesync.replication.slot_copy import Entry
from understudy.statesync.replication.slot_stream import SlotStream
from understudy.statesync.replication.sync_set import Process, SyncSet
from understudy.statesync.sessions.request_log import RequestLog
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.setup import start_telemetry

A, B = Process("a", "1"), Process("b", "1")
POOL = "shop"


def request_log() -> RequestLog:
    """The request log of b, empty."""
    return RequestLog(PoolKeys(POOL), B.member, B.boot)


class Sessions:
    """The sessions of some slots as readers see them, of an active or of copies; an active's outcomes of requests."""

    def __init__(self) -> None:
        self.slots: dict[int, dict[str, Stored]] = {}
        self.settled: dict[int, list[bytes]] = {}
        self.all_there: set[int] = set()

    def keys(self, slot: int) -> list[str]:
        return list(self.slots.get(slot, ()))

    def stored(self, slot: int, key: str) -> Stored | None:
        return self.slots.get(slot, {}).get(key)

    def outcomes(self, slot: int) -> list[bytes]:
        return list(self.settled.get(slot, ()))

    def clear(self, slot: int) -> None:
        self.slots[slot] = {}
        self.all_there.discard(slot)

    def whole(self, slot: int) -> None:
        self.all_there.add(slot)

    def drop(self, slot: int) -> None:
        self.slots.pop(slot, None)
        self.all_there.discard(slot)

    def keep(self, slot: int, sessions: Iterable[Stored]) -> None:
        for stored in sessions:
            self._put(slot, stored.key, stored.version, stored)

    def show(self, slot: int, writes: Iterable[Entry]) -> None:
        for version, write in writes:
            stored = Stored(write.key, version, write.value) if write.value is not None else None
            self._put(slot, write.key, version, stored)

    def _put(self, slot: int, key: str, version: int, stored: Stored | None) -> None:
        sessions = self.slots.setdefault(slot, {})
        known = sessions.get(key)
        if known is not None and known.version >= version:
            return
        if stored is not None:
            sessions[key] = stored
        else:
            sessions.pop(key, None)

    def digest(self) -> str:
        """A digest of all of it."""
        everything = sorted(
            (slot, s.key, s.version, s.value) for slot, all_ in self.slots.items() for s in all_.values()
        )
        return hashlib.sha256(repr(everything).encode()).hexdigest()


class CountingKeeper(CopyKeeper):
    """A copy that counts the connections that it serves, how often it was led, and the parts of copies that it gets."""

    served = 0
    led = 0
    parts = 0

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.served += 1
        return await super().serve(request)

    def take(self, connection: object, messages: list[Message], now: float) -> list[Message]:
        self.led += sum(isinstance(message, Lead) for message in messages)
        self.parts += sum(isinstance(message, Part) for message in messages)
        return super().take(connection, messages, now)


class Active:
    """A process that is active in some slots, alone or with others in the sync set.

    It saves at once, unless ``hold_back``.
    """

    def __init__(self, slots: Iterable[int] = (1,), members: Iterable[Process] = (A,), *, memory: bool = False) -> None:
        agreed = SyncSet(frozenset(members), memory)
        self.sessions = Sessions()
        self.streams = {slot: SlotStream(slot, 1, A, agreed, history=begun(1)) for slot in slots}
        self.refused: list[tuple[int, int]] = []
        self.connections: list[CopyConnection] = []
        self.changed = asyncio.Event()
        self.hold_back = False
        self.rejoins = Rejoins(start_telemetry(names.SERVICE_SIDECAR, A.member), POOL, lambda _: None)

    def write(self, slot: int, key: str, value: bytes | None) -> int:
        """Write; returns the version."""
        stream = self.streams[slot]
        version = stream.append(LoggedWrite(key, value))
        if not self.hold_back:
            stream.saved = stream.held
        self._advance([slot])
        return version

    def _advance(self, slots: Iterable[int]) -> None:
        for slot in slots:
            stream = self.streams[slot]
            if not stream.agreed.memory and not self.hold_back:
                stream.saved = stream.held
            self.sessions.show(slot, stream.advance())
            for connection in self.connections:
                connection.send(slot)
        self.changed.set()

    async def until_visible(self, slot: int, version: int) -> None:
        """Wait until readers may see a version."""
        async with asyncio.timeout(60):
            while self.streams[slot].visible < version:
                self.changed.clear()
                await self.changed.wait()

    @asynccontextmanager
    async def connected(self, port: int, to: Process = B, pool: str = POOL) -> AsyncIterator[CopyConnection]:
        """Keep a connection to a copy."""
        connection = CopyConnection(
            A,
            to,
            pool,
            self.streams,
            self.sessions,
            self.rejoins,
            self._advance,
            lambda slot, known: self.refused.append((slot, known)),
        )
        self.connections.append(connection)
        async with aiohttp.ClientSession() as http:
            task = asyncio.create_task(connection.run(http, f"http://127.0.0.1:{port}"))
            try:
                yield connection
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                self.connections.remove(connection)


@asynccontextmanager
async def keeper_here(me: Process = B, pool: str = POOL, port: int = 0, keeper: CopyKeeper | None = None):
    """A copy in this process, with its port: (keeper, its sessions, port)."""
    sessions = Sessions()
    keeper = keeper or CountingKeeper(me, pool, sessions, request_log())
    app = web.Application(client_max_size=FRAME_MOST)
    keeper.add_to(app)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    try:
        yield keeper, sessions, site._server.sockets[0].getsockname()[1]
    finally:
        await runner.cleanup()


async def _serve(port: int, boot: str) -> None:
    sessions = Sessions()
    keeper = CountingKeeper(Process("b", boot), POOL, sessions, request_log())
    app = web.Application()
    keeper.add_to(app)

    async def digest(_: web.Request) -> web.Response:
        count = sum(len(slot) for slot in sessions.slots.values())
        return web.json_response({"digest": sessions.digest(), "sessions": count, "parts": keeper.parts})

    app.router.add_get("/sessions", digest)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), sys.argv[2]))
