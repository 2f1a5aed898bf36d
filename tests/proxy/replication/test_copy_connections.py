"""To which processes an active sends its streams: the table, the sets and the members decide; real connections."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import cast

import pytest
import pytest_asyncio

from tests.harness.waiting import free_port, until
from tests.proxy.members import recorder_of, view_of
from tests.proxy.replication.members import CountingKeeper, Sessions, keeper_here
from understudy.proxy.peers.peer_client import PeerClient
from understudy.proxy.replication.copy_connections import CopyConnections
from understudy.proxy.replication.copy_lag import Lag
from understudy.proxy.replication.copy_pacing import CopyPacing
from understudy.statesync.pool.records import Member, MemberState, Table
from understudy.statesync.pool.state import At
from understudy.statesync.replication.history import begun
from understudy.statesync.replication.messages import Lead, LoggedWrite, Message
from understudy.statesync.replication.slot_stream import SlotStream
from understudy.statesync.replication.sync_set import Process, SyncSet

POOL = "shop"
A, B, C, D = Process("a", "a1"), Process("b", "b1"), Process("c", "c1"), Process("d", "d1")
NEW_B = Process("b", "b2")


class Fixture:
    """An active with connections, and copies that listen in this process."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.pool = view_of("a", POOL)
        self.sessions = Sessions()
        self.connections = CopyConnections(self.pool, PeerClient(), self.sessions, recorder_of("a", POOL).rejoins)
        self.progress: list[int] = []
        self.connections.on_progress = self.progress.extend
        self.copies: dict[Process, CountingKeeper] = {}
        self._stack = stack
        self._task: asyncio.Task[None] | None = None

    def order(self, *members: str) -> None:
        self.pool.state.table = At(Table(1, (members,) * 2), 1)

    def register(self, process: Process, port: int) -> None:
        record = Member(process.member, process.boot, "127.0.0.1:1", f"127.0.0.1:{port}", MemberState.UP)
        self.pool.state.members[process.member] = At(record, 1)

    async def serve(self, *processes: Process) -> None:
        """Have processes listen and be registered."""
        for process in processes:
            keeper, _, port = await self._stack.enter_async_context(keeper_here(process, POOL))
            self.copies[process] = cast("CountingKeeper", keeper)
            self.register(process, port)

    def run(self) -> None:
        self._task = asyncio.create_task(self.connections.run())

    async def end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def begin(self, slot: int = 1, epoch: int = 1, members: Collection[Process] = (A,)) -> SlotStream:
        stream = SlotStream(slot, epoch, A, SyncSet(frozenset(members)), history=begun(epoch))
        self.connections.begin(stream)
        return stream

    def write(self, stream: SlotStream, key: str = "k") -> int:
        version = stream.append(LoggedWrite(key, b"v"))
        stream.saved = version
        stream.advance()
        self.connections.send(stream.slot)
        return version

    async def has(self, stream: SlotStream, process: Process, version: int) -> None:
        """Wait until a process has confirmed a version."""
        await until(lambda: stream.progress.confirmed.get(process, 0) >= version, 20, f"{process.member} has the write")

    def lag(self, process: Process) -> Lag:
        """How far the copies of one process were behind."""
        return self.connections._connected[process].connection.lag.most(time.monotonic())

    async def left(self, stream: SlotStream, process: Process) -> None:
        """Wait until a process is sent nothing more of a stream."""
        await until(lambda: not stream.follows(process), 20, f"{process.member} is sent nothing more")

    async def closed(self, process: Process) -> None:
        """Wait until there is no connection to a process."""
        await until(lambda: not self.copies[process]._connections, 20, f"{process.member} has no connection")


@asynccontextmanager
async def fixture_of(stack: AsyncExitStack) -> AsyncIterator[Fixture]:
    active = Fixture(stack)
    try:
        yield active
    finally:
        await active.end()


@pytest_asyncio.fixture
async def active() -> AsyncIterator[Fixture]:
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(fixture_of(stack))


async def test_the_processes_of_the_tables_order_get_every_write(active: Fixture) -> None:
    await active.serve(B, C)
    active.order("a", "b", "c")
    active.run()
    stream = active.begin()
    version = active.write(stream)
    await active.has(stream, B, version)
    await active.has(stream, C, version)
    assert set(active.progress) == {1}


async def test_the_lag_of_a_site_is_that_of_its_slowest_copy_and_the_own_site_has_none(active: Fixture) -> None:
    await active.serve(B, C, D)
    active.order("a", "b", "c", "d")
    members = active.pool.state.members
    active.register(A, 1)
    for process, site in ((A, "east"), (B, "west"), (C, "east"), (D, "west")):
        at = members[process.member]
        members[process.member] = At(replace(at.record, site=site), 1)
    active.run()
    stream = active.begin()
    for _ in range(2):  # the first ones go with the copies of the slot
        version = active.write(stream)
        for process in (B, C, D):
            await active.has(stream, process, version)
    for process in (B, D):
        await until(lambda: active.lag(process).writes > 0, 20, "a write was followed")  # noqa: B023 - waited for here
    now = time.monotonic()
    found = active.connections.site_lag(now)
    lags = [active.lag(process) for process in (B, D)]
    assert found == {"west": (max(lag.ms for lag in lags), max(lag.writes for lag in lags))}
    assert 0 < found["west"].ms < 20_000


async def test_streams_that_began_before_are_sent_when_the_connections_run(active: Fixture) -> None:
    await active.serve(B)
    active.order("a", "b")
    stream = active.begin()
    version = active.write(stream)
    active.run()
    await active.has(stream, B, version)


async def test_many_slots_share_one_connection(active: Fixture) -> None:
    await active.serve(B)
    active.order("a", "b")
    active.run()
    for slot in (0, 1):
        stream = active.begin(slot)
        await active.has(stream, B, active.write(stream))
    assert active.copies[B].served == 1


async def test_who_registers_later_is_connected_then(active: Fixture) -> None:
    active.order("a", "b")
    active.run()
    stream = active.begin()
    version = active.write(stream)
    await active.serve(B)
    await active.has(stream, B, version)


async def test_who_the_table_does_not_name_any_more_is_sent_nothing(active: Fixture) -> None:
    await active.serve(B, C)
    active.order("a", "b", "c")
    active.run()
    stream = active.begin()
    await active.has(stream, C, active.write(stream))
    active.order("a", "b")
    await active.left(stream, C)
    await active.closed(C)
    await active.has(stream, B, active.write(stream))


async def test_a_process_in_the_set_is_sent_everything_whatever_the_table_says(active: Fixture) -> None:
    await active.serve(B, C)
    active.order("a", "b")
    active.run()
    stream = active.begin()
    await active.has(stream, B, active.write(stream))
    stream.decided(SyncSet(frozenset({A, B})))
    active.order("a", "c")
    await active.has(stream, C, active.write(stream))  # the table of this order is in force by now
    await active.has(stream, B, active.write(stream))


async def test_a_process_that_may_be_in_the_set_is_sent_everything_too(active: Fixture) -> None:
    await active.serve(B)
    active.order("a", "b")
    active.run()
    stream = active.begin()
    await active.has(stream, B, active.write(stream))
    stream.change = SyncSet(frozenset({A, B}))
    active.order("a")
    await active.serve(C)
    active.order("a", "c")
    await active.has(stream, C, active.write(stream))  # the table of this order is in force by now
    await active.has(stream, B, active.write(stream))
    stream.decided(SyncSet(frozenset({A})))
    await active.left(stream, B)


async def test_a_process_that_starts_again_gets_a_connection_of_its_own(active: Fixture) -> None:
    await active.serve(B)
    active.order("a", "b")
    active.run()
    stream = active.begin()
    await active.has(stream, B, active.write(stream))
    await active.serve(NEW_B)
    await active.has(stream, NEW_B, active.write(stream))
    await active.left(stream, B)
    await active.closed(B)


async def test_a_host_on_which_nobody_listens_has_refused(active: Fixture) -> None:
    active.register(B, free_port())
    active.order("a", "b")
    active.run()
    before = active.connections.state(0.0)
    active.begin()
    assert not active.connections.refused(B)
    await until(lambda: active.connections.refused(B), 20, "the connection is refused")
    assert active.connections.state(0.0) != before
    assert not active.connections.refused(C)


async def test_a_slot_that_is_lost_is_not_sent_any_more(active: Fixture) -> None:
    await active.serve(B)
    active.order("a", "b")
    active.run()
    kept, lost = active.begin(0), active.begin(1)
    for stream in (kept, lost):
        await active.has(stream, B, active.write(stream))
    active.connections.end(1)
    late = active.write(lost)
    await active.has(kept, B, active.write(kept))
    assert lost.progress.confirmed[B] < late
    active.connections.end(0)
    await active.closed(B)


async def test_a_slot_that_begins_anew_is_sent_in_its_new_epoch(active: Fixture) -> None:
    await active.serve(B)
    active.order("a", "b")
    active.run()
    old = active.begin()
    await active.has(old, B, active.write(old))
    active.connections.end(1)
    new = active.begin(epoch=2)
    await active.has(new, B, active.write(new))
    assert active.copies[B].copies[1].follows == 2


async def test_nothing_is_connected_any_more_when_the_process_ends(active: Fixture) -> None:
    await active.serve(B)
    active.order("a", "b")
    active.run()
    stream = active.begin()
    await active.has(stream, B, active.write(stream))
    await active.end()
    await active.closed(B)
    assert not stream.follows(B)


async def test_a_copy_that_answered_while_its_slot_was_away_is_asked_again(
    active: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await active.serve(B)
    active.order("a", "b")
    active.run()
    other = active.begin(slot=0)
    await active.has(other, B, active.write(other))
    other.decided(SyncSet(frozenset({A, B})))  # so the connection stays, whatever the table says

    keeper, led = active.copies[B], asyncio.Event()
    take = keeper.take

    def in_vain(connection: object, messages: list[Message], now: float) -> list[Message]:
        answers = take(connection, messages, now)
        if any(isinstance(message, Lead) and message.slot == 1 for message in messages):
            led.set()
            return [answer for answer in answers if answer.slot != 1]
        return answers

    monkeypatch.setattr(keeper, "take", in_vain)
    stream = active.begin(slot=1)
    await asyncio.wait_for(led.wait(), 20)
    monkeypatch.setattr(keeper, "take", take)
    active.order("a")
    await until(lambda: 1 not in active.connections._connected[B].streams, 20, "b is sent nothing of the slot")
    active.order("a", "b")
    await active.has(stream, B, active.write(stream))


async def test_new_copies_of_slots_that_have_another_one_begin_a_few_at_a_time(
    active: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = [0]
    monkeypatch.setattr(CopyPacing, "allowed", lambda *_: room[0])
    await active.serve(B, C)
    active.order("a", "b")
    active.run()
    alone, two = active.begin(0), active.begin(1)
    version = active.write(two)
    await active.has(two, B, version)
    two.decided(SyncSet(frozenset({A, B})))
    active.order("a", "b", "c")
    await active.has(alone, C, active.write(alone))  # the table of this order is in force by now
    assert not two.follows(C)

    room[0] = 1
    await active.has(two, C, version)
