"""The connections of this process to all processes that have, or are to have, copies of its slots."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable

import aiohttp

from understudy.proxy.events.rejoins import Rejoins
from understudy.proxy.member.pool_view import Peer, PoolView
from understudy.proxy.peers.peer_client import PeerClient
from understudy.proxy.replication.copy_connection import CopyConnection, SessionSource
from understudy.proxy.replication.copy_lag import Lag
from understudy.proxy.replication.copy_pacing import CopyPacing
from understudy.statesync.process.ticks import tick
from understudy.statesync.replication.slot_stream import SlotStream
from understudy.statesync.replication.sync_set import Process

logger = logging.getLogger(__name__)

POLL_INTERVAL = 0.1
LOOK_ANYWAY_AFTER = 1.0
"""Seconds after which connections are compared with the sync sets too: a process that has left a set may need none."""


class _Connected:
    """A connection, the streams that go over it, and the task that keeps it."""

    def __init__(self, connection: CopyConnection, streams: dict[int, SlotStream], task: asyncio.Task[None]) -> None:
        self.connection = connection
        self.streams = streams
        self.task = task


class CopyConnections:
    """Keeps a connection to every process that the table, or a sync set, gives a copy of a slot of ours.

    New copies of slots that have another one are begun a few at a time:
    :mod:`~understudy.proxy.replication.copy_pacing`.

    ``on_progress`` and ``on_refused`` are those of :class:`CopyConnection`; the caller sets them before :meth:`run`.
    """

    def __init__(self, pool: PoolView, client: PeerClient, source: SessionSource, rejoins: Rejoins) -> None:
        self._pool = pool
        self._me = Process(pool.identity.me, pool.identity.boot)
        self._client = client
        self._source = source
        self._rejoins = rejoins
        self._streams: dict[int, SlotStream] = {}
        self._connected: dict[Process, _Connected] = {}
        self._to_begin: dict[tuple[int, Process], SlotStream] = {}
        self._pacing = CopyPacing()
        self._http: aiohttp.ClientSession | None = None
        self._some = asyncio.Event()
        self._seen: object = None
        self._looked_at = -math.inf
        self.on_progress: Callable[[Iterable[int]], None] = lambda _slots: None
        self.on_refused: Callable[[int, int], None] = lambda _slot, _known: None
        self.on_host_refuses: Callable[[Process], None] = lambda _process: None
        self.asking: Callable[[], bool] = lambda: False
        """Whether the processes are to be asked for later epochs; see :class:`CopyConnection`."""

    def begin(self, stream: SlotStream) -> None:
        """Send a stream to the processes that are to have copies."""
        self._streams[stream.slot] = stream
        self._some.set()
        self._place(stream)

    def send(self, slot: int) -> None:
        """There is something new in a slot's stream."""
        for one in self._connected.values():
            if slot in one.streams:
                one.connection.send(slot)

    def send_along(self, slot: int) -> None:
        """There is something new in a slot's stream that can wait for the next frame."""
        for one in self._connected.values():
            if slot in one.streams:
                one.connection.send_along(slot)

    def end(self, slot: int) -> None:
        """This process is not active in the slot any more."""
        self._streams.pop(slot, None)
        for one in self._connected.values():
            one.streams.pop(slot, None)
            one.connection.forget(slot)

    def joined(self, slot: int, process: Process) -> None:
        """The process is in the sync set of a slot of ours from now on."""
        self._rejoins.joined(process, slot)

    def refused(self, process: Process) -> bool:
        """Whether a live host has refused the last connection to the process."""
        one = self._connected.get(process)
        return one is not None and one.connection.refused

    def heard_at(self, process: Process) -> float:
        """When the last frame of the process came (monotonic); before all time if none ever did."""
        one = self._connected.get(process)
        return one.connection.heard_at if one is not None else -math.inf

    def told_at(self, process: Process) -> float:
        """When the last question was sent that the process has answered; see :class:`CopyConnection`."""
        one = self._connected.get(process)
        return one.connection.told_at if one is not None else -math.inf

    def site_lag(self, now: float) -> dict[str, Lag]:
        """How far the copies on each other site were behind at the most of late; without sites where no write was."""
        members, found = self._pool.state.members, dict[str, Lag]()
        here = members[self._me.member].record.site if self._me.member in members else ""
        for process, one in self._connected.items():
            at, lag = members.get(process.member), one.connection.lag.most(now)
            if at is not None and at.record.site not in ("", here) and lag.writes:
                known = found.get(at.record.site, lag)
                found[at.record.site] = Lag(max(known.ms, lag.ms), max(known.writes, lag.writes))
        return found

    def state(self, silent_before: float) -> object:
        """Which processes are connected, have refused or are silent; compared to see whether something changed."""
        return {
            to: (one.connection.connected, one.connection.refused, one.connection.heard_at < silent_before)
            for to, one in self._connected.items()
        }

    async def run(self) -> None:
        """Keep the connections that are needed until cancelled."""
        no_limit = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(timeout=no_limit, connector=aiohttp.TCPConnector(limit=0)) as http:
            self._http = http
            try:
                while True:
                    self._look()
                    if not self._streams:
                        self._some.clear()
                        await self._some.wait()
                    await tick(POLL_INTERVAL)
            finally:
                tasks = [one.task for one in self._connected.values()]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self._connected.clear()
                self._http = None

    def _look(self) -> None:
        """Bring the connections in line with the table, the members and the sets, if they may have changed."""
        now, state = time.monotonic(), self._pool.state
        table = state.table.revision if state.table is not None else 0
        seen = (table, [(name, at.revision) for name, at in state.members.items()])
        if seen != self._seen or now - self._looked_at > LOOK_ANYWAY_AFTER:
            self._seen, self._looked_at = seen, now
            self._to_begin.clear()
            for stream in self._streams.values():
                self._place(stream)
        self._begin_copies(now)
        for process, one in list(self._connected.items()):
            if not one.streams:
                one.task.cancel()
                del self._connected[process]

    def _targets(self, stream: SlotStream) -> frozenset[Process]:
        """Who is to have the stream: the processes of the table's order, and those in the set or about to be."""
        state = self._pool.state
        table = state.table.record if state.table is not None else None
        order = table.orders[stream.slot] if table is not None and stream.slot < table.slots else ()
        placed = {Process(name, state.members[name].record.boot) for name in order if name in state.members}
        return frozenset(placed | _set_of(stream)) - {self._me}

    def _place(self, stream: SlotStream) -> None:
        targets, in_set = self._targets(stream), _set_of(stream)
        for process, one in self._connected.items():
            if process not in targets and one.streams.get(stream.slot) is stream:
                del one.streams[stream.slot]
                one.connection.forget(stream.slot)
                stream.gone(process)
        for process in targets:
            if process in in_set or len(in_set) == 1:
                self._send_to(process, stream)
            elif not self._is_sent_to(process, stream):
                self._to_begin[stream.slot, process] = stream

    def _begin_copies(self, now: float) -> None:
        """Begin as many new copies as may be begun now."""
        allowed = self._pacing.allowed(now, len(self._to_begin))
        for slot, process in list(self._to_begin)[:allowed]:
            stream = self._to_begin.pop((slot, process))
            if self._streams.get(slot) is stream and process in self._targets(stream):
                self._send_to(process, stream)
                self._pacing.took(1)

    def _is_sent_to(self, process: Process, stream: SlotStream) -> bool:
        to = self._connected.get(process)
        return to is not None and to.streams.get(stream.slot) is stream

    def _send_to(self, process: Process, stream: SlotStream) -> None:
        to = self._connected.get(process) or self._connect(process)
        if to is not None and to.streams.get(stream.slot) is not stream:
            to.streams[stream.slot] = stream
            to.connection.send(stream.slot)

    def _connect(self, process: Process) -> _Connected | None:
        peer = self._peer(process)
        if peer is None or self._http is None:
            return None
        streams: dict[int, SlotStream] = {}
        connection = CopyConnection(
            self._me,
            process,
            self._pool.identity.keys.pool,
            streams,
            self._source,
            self._rejoins,
            self.on_progress,
            self.on_refused,
        )
        connection.asking, connection.on_host_refuses = self.asking, self.on_host_refuses
        url, tls = self._client.dial(peer)
        task = asyncio.create_task(connection.run(self._http, url, tls), name=f"replication to {process.member}")
        self._connected[process] = _Connected(connection, streams, task)
        return self._connected[process]

    def _peer(self, process: Process) -> Peer | None:
        """Where a process is; None if its member has another process by now, or was never seen."""
        at = self._pool.state.members.get(process.member)
        if at is not None and at.record.boot != process.boot:
            return None
        return self._pool.peer(process.member)


def _set_of(stream: SlotStream) -> frozenset[Process]:
    """The processes that are in the sync set, or may be."""
    return stream.agreed.members | (stream.change.members if stream.change is not None else frozenset())
