"""The connection between an active and a copy: real sockets, cut and slow ones, and a copy that is a real process."""

import asyncio
import math
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from tests.harness.programs import Program
from tests.harness.waiting import free_port, until
from tests.proxy.replication.members import POOL, A, Active, B, CountingKeeper, Sessions, keeper_here, request_log
from understudy.proxy.peers.peer_protocol import REPLICATION_PATH
from understudy.proxy.replication import copy_connection
from understudy.proxy.replication.copy_connection import PART_BYTES
from understudy.proxy.replication.copy_keeper import CopyKeeper
from understudy.statesync.replication import slot_stream
from understudy.statesync.replication.history import version_of
from understudy.statesync.replication.messages import (
    PROTOCOL,
    At,
    Behind,
    Have,
    Hello,
    Lead,
    LoggedWrite,
    Message,
    Part,
    Stored,
    Unsaved,
    Writes,
    decode_frame,
    encode_frame,
)
from understudy.statesync.replication.slot_copy import SlotCopy
from understudy.statesync.replication.slot_stream import WRITES_MOST
from understudy.statesync.replication.sync_set import Process, SyncSet
from understudy.statesync.sessions.request_log import LogEntry, Settled, encode_entry


async def until_equal(active: Active, sessions: Sessions) -> None:
    await until(lambda: active.sessions.digest() == sessions.digest(), what="the copy equals its active")


async def test_writes_of_many_slots_are_told_when_the_copy_has_them() -> None:
    slots = range(1, 6)
    active = Active(slots, [A, B], memory=True)
    async with keeper_here() as (keeper, sessions, port), active.connected(port) as connection:
        keeper.copies.update({slot: copy_of_nothing(active, slot) for slot in slots})
        versions = {slot: active.write(slot, "key", b"%d" % slot) for slot in slots}
        assert all(active.streams[slot].visible < version for slot, version in versions.items())
        for slot, version in versions.items():
            await active.until_visible(slot, version)
        assert connection.connected
        await until_equal(active, sessions)
        assert keeper.parts == 0


def copy_of_nothing(active: Active, slot: int) -> SlotCopy:
    return SlotCopy(slot, history=active.streams[slot].history, whole=True)


async def test_an_active_that_writes_much_asks_a_copy_once_where_it_is() -> None:
    active = Active()
    async with keeper_here() as (keeper, sessions, port), active.connected(port) as connection:
        number = 0
        while not connection.connected or number < 1000:
            number += 1
            active.write(1, f"key-{number % 100}", b"%d" % number)
            await asyncio.sleep(0)
        await until_equal(active, sessions)
        assert keeper.led == 1


async def test_a_removed_session_is_removed_in_the_copy() -> None:
    active = Active()
    async with keeper_here() as (_, sessions, port), active.connected(port):
        active.write(1, "stays", b"x")
        active.write(1, "goes", b"x")
        await until_equal(active, sessions)
        active.write(1, "goes", None)
        await until_equal(active, sessions)
        assert sessions.keys(1) == ["stays"]


async def test_a_new_copy_gets_the_slot_in_parts_while_it_is_written() -> None:
    active = Active()
    for number in range(3000):
        active.write(1, f"key-{number}", os.urandom(500))
    async with keeper_here() as (keeper, sessions, port), active.connected(port):
        for number in range(2000):
            active.write(1, f"key-{number % 700}", os.urandom(50) if number % 3 else None)
            await asyncio.sleep(0)
        await until_equal(active, sessions)
        assert keeper.parts > 5


async def test_after_a_cut_a_copy_gets_only_what_it_lacks() -> None:
    active = Active()
    async with keeper_here() as (keeper, sessions, port), active.connected(port) as connection:
        active.write(1, "first", b"x")
        await until_equal(active, sessions)
        parts = keeper.parts
    await until(lambda: not connection.connected)
    active.write(1, "second", b"y")
    async with active.connected(port):
        active.write(1, "third", b"z")
        async with keeper_here(port=port, keeper=keeper):
            await until_equal(active, sessions)
            assert keeper.parts == parts


async def test_a_copy_that_missed_more_than_the_log_has_is_made_anew() -> None:
    active = Active()
    async with keeper_here() as (keeper, sessions, port):
        async with active.connected(port):
            active.write(1, "first", b"x")
            await until_equal(active, sessions)
            parts = keeper.parts
        active.write(1, "first", None)
        for number in range(3 * slot_stream.LOG_MOST):
            active.write(1, f"key-{number % 10}", b"%d" % number)
        async with active.connected(port):
            await until_equal(active, sessions)
            assert keeper.parts > parts


async def test_another_boot_is_sent_nothing() -> None:
    active = Active()
    active.write(1, "key", b"x")
    async with keeper_here(Process("b", "2")) as (keeper, sessions, port), active.connected(port) as connection:
        await until(lambda: keeper.served >= 3, what="the active tries again")
        assert not connection.connected
        assert sessions.slots == {}
        assert keeper.copies == {}


@pytest.mark.parametrize(
    ("said", "answered"),
    [
        ([Hello("another", "a", "1")], "of the pool another"),
        ([Hello(POOL, "a", "1", PROTOCOL - 1)], "version"),
        ([Have(1, 1, 1)], "greeting"),
        ([Hello(POOL, "a", "1"), Hello(POOL, "a", "1")], "greeting"),
    ],
)
async def test_a_connection_that_begins_wrongly_ends_with_the_reason(said: list, answered: str) -> None:
    async with keeper_here() as (_, _, port), connected_by_hand(port) as socket:
        await socket.send_bytes(encode_frame(said))
        message = await socket.receive(timeout=30)
        assert message.type is aiohttp.WSMsgType.CLOSE
        assert answered in message.extra


@asynccontextmanager
async def connected_by_hand(port: int) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    url = f"http://127.0.0.1:{port}{REPLICATION_PATH}"
    async with aiohttp.ClientSession() as http, http.ws_connect(url) as socket:
        yield socket


@pytest.mark.parametrize("frame", [b"garbage", encode_frame([Have(1, 1, 1)])])
async def test_what_no_active_says_ends_the_connection_and_leaves_the_copies(frame: bytes) -> None:
    async with keeper_here() as (keeper, _, port), connected_by_hand(port) as socket:
        await greet(socket)
        await socket.send_bytes(frame)
        assert (await socket.receive(timeout=30)).type is aiohttp.WSMsgType.CLOSE
        assert keeper.copies == {}


async def test_what_is_left_of_an_earlier_connection_does_not_end_a_later_copy() -> None:
    """The active has lost the first connection and begun again, while the copy still reads from the first."""
    at, history = version_of(1, 5), (version_of(1, 5),)
    begin = [Lead(1, 1, history), Part(1, 1, at, history, (), first=True, last=False)]
    end = [Part(1, 1, at, (), (Stored("key", at, b"x"),), first=False, last=True)]
    async with keeper_here() as (keeper, sessions, port), connected_by_hand(port) as old:
        await greet(old)
        await old.send_bytes(encode_frame(begin))
        assert decode_frame((await old.receive(timeout=30)).data) == [At(1, 1, 0, whole=False)]
        async with connected_by_hand(port) as new:
            await greet(new)
            await new.send_bytes(encode_frame(begin))
            assert not decode_frame((await new.receive(timeout=30)).data)[0].whole
            await old.send_bytes(encode_frame(end))
            assert decode_frame((await old.receive(timeout=30)).data) == [Behind(1, 1)]
            assert not keeper.copies[1].whole
            assert sessions.slots[1] == {}
            await new.send_bytes(encode_frame(end))
            assert decode_frame((await new.receive(timeout=30)).data) == [Have(1, 1, at)]


async def greet(socket: aiohttp.ClientWebSocketResponse) -> None:
    await socket.send_bytes(encode_frame([Hello(POOL, "a", "1")]))
    assert decode_frame((await socket.receive(timeout=30)).data) == [Hello(POOL, "b", "1")]


async def test_a_session_that_is_removed_while_its_part_waits_is_in_no_part() -> None:
    active = Active()
    for number in range(3000):
        active.write(1, f"key-{number}", b"v" * 500)
    async with active.connected(free_port()) as connection:
        active.streams[1].at(B, At(1, 1, 0, whole=False))
        connection.send(1)
        sent = connection._frame()
        active.write(1, "key-2999", None)
        while frame := connection._frame():
            sent += frame
    keys = [stored.key for part in sent if isinstance(part, Part) for stored in part.sessions]
    assert len(keys) == len(set(keys)) == 2999
    assert "key-2999" not in keys


async def test_a_frame_has_something_of_each_slot_before_more_of_one() -> None:
    slots = range(1, 6)
    active = Active(slots)
    for slot in slots:
        for number in range(3 * WRITES_MOST):
            active.write(slot, f"key-{number}", b"x")
    async with active.connected(free_port()) as connection:
        for slot in slots:
            active.streams[slot].at(B, At(slot, 1, version_of(1, 0), whole=True))
            connection.send(slot)
        frame = connection._frame()
    assert [message.slot for message in frame if message.writes] == [*slots] * 3


async def test_a_copy_confirms_only_the_last_of_each_slot_in_a_frame() -> None:
    keeper = CopyKeeper(B, POOL, Sessions(), request_log())
    base, write = version_of(1, 0), LoggedWrite("key", b"x")
    for slot in (1, 2):
        keeper.copies[slot] = SlotCopy(slot, history=(base,), whole=True)
    keeper.take("connection", [Lead(slot, 1, (base,)) for slot in (1, 2)], 0.0)
    messages = [
        Writes(slot, 1, base + number, base + number + 1, (write,), base) for number in range(3) for slot in (1, 2)
    ]
    assert keeper.take("connection", messages, 0.0) == [Have(1, 1, base + 3), Have(2, 1, base + 3)]


async def test_a_copy_does_not_confirm_what_brings_no_write() -> None:
    sessions = Sessions()
    keeper = CopyKeeper(B, POOL, sessions, request_log())
    base, write = version_of(1, 0), LoggedWrite("key", b"x")
    keeper.copies[1] = SlotCopy(1, history=(base,), whole=True)
    keeper.take("connection", [Lead(1, 1, (base,)), Writes(1, 1, base, base + 1, (write,), base)], 0.0)

    assert keeper.take("connection", [Writes(1, 1, base + 1, base + 2, (), base + 1)], 0.0) == []
    assert sessions.stored(1, "key") is not None


async def test_what_can_wait_goes_with_the_next_frame() -> None:
    active = Active((1, 2))
    async with active.connected(free_port()) as connection:
        for slot in (1, 2):
            active.streams[slot].at(B, At(slot, 1, version_of(1, 0), whole=True))
            active.write(slot, "key", b"x")
        while connection._frame():
            pass
        active.streams[2].saved += 1
        active.streams[2].tell_saved(B)
        connection._wake.clear()

        connection.send_along(2)
        assert not connection._wake.is_set()
        active.write(1, "key", b"y")
        assert {message.slot for message in connection._frame()} == {1, 2}


async def test_an_active_hears_that_its_epoch_is_over() -> None:
    active = Active()
    async with keeper_here() as (keeper, sessions, port):
        keeper.copies[1] = SlotCopy(1, known=5)
        async with active.connected(port):
            active.write(1, "key", b"x")
            await until(lambda: active.refused == [(1, 5)], what="the refusal")
            assert sessions.slots == {}


async def copy_process(port: int, boot: str = "1") -> Program:
    program = Program("copy", [sys.executable, "-m", "tests.proxy.replication.members", str(port), boot], None)
    program.start()
    await until(lambda: told_by(port), what="the copy's process answers")
    return program


async def told_by(port: int) -> dict:
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/sessions") as answer:
        return await answer.json()


async def test_a_frozen_copy_costs_its_active_bounded_memory_and_is_made_anew() -> None:
    port = free_port()
    program = await copy_process(port)
    try:
        active = Active()
        async with active.connected(port) as connection:
            active.write(1, "first", b"x")
            await until(lambda: equal(active, port), what="the copy equals its active")
            program.signal(signal.SIGSTOP)
            for number in range(20_000):
                active.write(1, f"key-{number % 100}", os.urandom(5_000))  # 100 MB, which no buffer may hold
                await asyncio.sleep(0)
            assert len(active.streams[1]._log) <= 2 * slot_stream.LOG_MOST
            await until(lambda: not connection.connected, what="the silent connection ends")
            program.signal(signal.SIGCONT)
            await until(lambda: equal(active, port), what="the copy equals its active again")
    finally:
        program.kill()


async def equal(active: Active, port: int) -> bool:
    return (await told_by(port))["digest"] == active.sessions.digest()


async def test_a_killed_copy_is_waited_for_until_it_is_taken_out_of_the_set() -> None:
    port = free_port()
    program = await copy_process(port)
    try:
        active = Active()
        async with active.connected(port):
            active.write(1, "key", b"first")
            await until(lambda: equal(active, port), what="the copy equals its active")
            active.streams[1].decided(SyncSet(frozenset({A, B}), memory=True))
            await active.until_visible(1, active.write(1, "key", b"first in both"))
            program.kill()
            version = active.write(1, "key", b"second")
            program = await copy_process(port, boot="2")  # it has forgotten everything, and does not count
            stream = active.streams[1]
            assert stream.visible < version
            stream.decided(SyncSet(frozenset({A})))
            stream.saved = stream.held
            active._advance([1])
            assert stream.visible == version
    finally:
        program.kill()


async def test_a_connection_with_nothing_to_send_shows_that_both_sides_live() -> None:
    active = Active(memory=True, members=[A, B])
    async with keeper_here() as (keeper, _, port), active.connected(port) as connection:
        keeper.copies[1] = copy_of_nothing(active, 1)
        assert connection.heard_at == -math.inf
        await active.until_visible(1, active.write(1, "key", b"x"))
        for _ in range(3):
            heard, now = connection.heard_at, time.monotonic()
            await until(lambda: connection.heard_at > heard, what="the copy answers an empty frame")  # noqa: B023
            await until(lambda: keeper.silence(1, now) < 0, what="the copy hears of its active")  # noqa: B023


async def test_a_connection_whose_frames_need_no_answer_shows_that_both_sides_live(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(copy_connection, "SAVED_TICKS", sys.maxsize)
    active = Active(memory=True, members=[A, B])

    async def tell_again() -> None:
        while True:
            active.streams[1]._readers[B].shown = -1
            connection.send(1)
            await asyncio.sleep(0.02)

    async with keeper_here() as (keeper, _, port), active.connected(port) as connection:
        keeper.copies[1] = copy_of_nothing(active, 1)
        await active.until_visible(1, active.write(1, "key", b"x"))
        telling = asyncio.create_task(tell_again())
        for _ in range(3):
            heard = connection.heard_at
            await until(lambda: connection.heard_at > heard, what="the copy answers an empty frame")  # noqa: B023
        telling.cancel()


async def test_a_copy_hears_what_is_saved_though_nothing_is_written() -> None:
    active = Active(memory=True, members=[A, B])
    async with keeper_here() as (keeper, _, port), active.connected(port):
        keeper.copies[1] = copy_of_nothing(active, 1)
        active.hold_back = True
        version = active.write(1, "key", b"x")
        await active.until_visible(1, version)
        await until(lambda: keeper.copies[1].unsaved, what="the copy shows the write")
        assert keeper.copies[1].saved < version
        active.streams[1].saved = version
        await until(lambda: keeper.copies[1].saved == version, what="the copy hears what is saved")
        assert keeper.copies[1].unsaved == []


async def test_a_busy_connection_tells_what_is_saved_in_slots_where_nothing_is_written() -> None:
    active = Active((1, 2), memory=True, members=[A, B])
    async with keeper_here() as (keeper, _, port), active.connected(port):
        keeper.copies.update({slot: copy_of_nothing(active, slot) for slot in (1, 2)})
        active.hold_back = True
        version = active.write(1, "key", b"x")
        await active.until_visible(1, version)
        active.streams[1].saved = version

        async def write_on() -> None:
            while True:
                active.write(2, "key", b"x")
                await asyncio.sleep(0)

        writing = asyncio.create_task(write_on())
        try:
            await until(lambda: keeper.copies[1].saved == version, what="the copy hears what is saved")
        finally:
            writing.cancel()


async def test_a_copy_that_must_have_every_write_is_made_anew_only_when_it_is_out_of_the_set() -> None:
    active = Active(memory=True, members=[A, B])
    async with keeper_here() as (keeper, sessions, port), active.connected(port) as connection:
        stream = active.streams[1]
        version = active.write(1, "key", b"x")
        await until(lambda: stream.stuck == {B}, what="the copy says that it has nothing")
        assert keeper.parts == 0
        stream.decided(SyncSet(frozenset({A})))
        active._advance([1])
        assert stream.visible == version
        connection.send(1)
        await until_equal(active, sessions)
        await until(lambda: keeper.is_whole(1), what="the copy is whole")


async def test_a_connection_tells_why_there_is_none() -> None:
    active, port = Active(), free_port()
    async with active.connected(port) as connection:
        await until(lambda: connection.refused, what="nobody listens")
        assert not connection.unsupported
        runner = web.AppRunner(web.Application())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await until(lambda: connection.unsupported, what="an older release answers")
        assert (connection.refused, connection.connected) == (False, False)
        await runner.cleanup()
        async with keeper_here(port=port):
            await until(lambda: connection.connected, what="the release that knows replication answers")
            assert (connection.refused, connection.unsupported) == (False, False)


async def test_a_copy_of_a_slot_tells_what_etcd_lacks() -> None:
    active = Active()
    active.write(1, "key", b"x")
    stream = active.streams[1]
    stream.saved = stream.last - 1
    stream.unsaved = [Unsaved(stream.last, "key", b"outcome")]
    active.hold_back = True
    async with keeper_here() as (keeper, sessions, port), active.connected(port):
        await until_equal(active, sessions)
        await until(lambda: keeper.is_whole(1), what="the copy is whole")
        copy = keeper.copies[1]
        assert (copy.saved, copy.unsaved, copy.have) == (stream.saved, stream.unsaved, stream.visible)
        assert sessions.all_there == {1}


async def test_a_copy_of_a_slot_has_the_outcomes_of_all_its_requests_in_frames_of_bounded_size() -> None:
    active = Active()
    for number in range(20):
        active.write(1, f"key{number}", b"x" * 1000)
    entries = [LogEntry(f"r{number}", "f", 200, "", ":1", number + 1, slot=1) for number in range(10_000)]
    active.sessions.settled[1] = [encode_entry(entry) for entry in entries]
    sizes: list[int] = []

    class Measuring(CountingKeeper):
        def take(self, connection: object, messages: list[Message], now: float) -> list[Message]:
            sizes.extend(len(encode_frame([message])) for message in messages if isinstance(message, Part))
            return super().take(connection, messages, now)

    log = request_log()
    keeper = Measuring(B, POOL, Sessions(), log)
    async with keeper_here(keeper=keeper) as (_, _, port), active.connected(port):
        await until(lambda: keeper.is_whole(1), what="the copy is whole")
        assert [log.find(1, entry.request, "f") for entry in entries] == [
            Settled("f", 200, number + 1, "", b":1") for number in range(10_000)
        ]
        assert (len(sizes) > 3, max(sizes) < 1.5 * PART_BYTES) == (True, True), sizes


async def test_a_slot_without_sessions_has_outcomes_too() -> None:
    active = Active()
    entries = [LogEntry(f"r{number}", "f", 404, "no-such-session", slot=1) for number in range(5_000)]
    active.sessions.settled[1] = [encode_entry(entry) for entry in entries]
    log = request_log()
    keeper = CountingKeeper(B, POOL, Sessions(), log)
    async with keeper_here(keeper=keeper) as (_, _, port), active.connected(port):
        await until(lambda: keeper.is_whole(1), what="the copy is whole")
        assert [log.find(1, entry.request, "f") for entry in entries] == [
            Settled("f", 404, 0, "no-such-session")
        ] * 5_000
