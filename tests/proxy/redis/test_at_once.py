"""Which commands the Redis port answers, or begins, as it reads them, and which go the way that may wait."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import hiredis
import pytest
import pytest_asyncio

from tests.harness.waiting import until
from tests.proxy.members import SLOTS, InProcessMember, InProcessPool, in_process_pool
from understudy.proxy.redis import port as port_module
from understudy.proxy.redis.connection import Connection
from understudy.proxy.redis.copies import CopyCount
from understudy.proxy.redis.executor import Executor
from understudy.proxy.redis.port import COUNTED_EVERY, CROWD, RedisPort
from understudy.proxy.redis.scan import KeyScan
from understudy.proxy.sessions.async_writes import AsyncWrites
from understudy.proxy.sessions.owner_writes import OwnerWrites
from understudy.proxy.sessions.service import KEY_BYTES_MOST
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.pool_clock import PoolClock
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.pool.spec_parts import Limits
from understudy.statesync.sessions.replica import _Unreadable
from understudy.telemetry.tracing.ids import TraceIds

SLOT = slot_of("k", SLOTS)
TRACE = TraceIds(1, 1)
AT_ONCE, BEGUN, WAITS = "answered at once", "begun at once", "goes the way that may wait"


class Wire(asyncio.Transport):
    """The transport of a connection: what was written, one item for each write."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.writes: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        self.writes.append(b"closed")

    def abort(self) -> None:
        self.writes.append(b"aborted")


class Client:
    """A client of a member's Redis port, without the network."""

    def __init__(self, port: RedisPort) -> None:
        self.connection, self.wire = Connection(port), Wire()
        self.connection.connection_made(self.wire)

    def send(self, *lines: str) -> None:
        data = b"".join(hiredis.pack_command(tuple(line.encode().split())) for line in lines)  # type: ignore[arg-type]
        self.connection.get_buffer(-1)[: len(data)] = data
        self.connection.buffer_updated(len(data))

    @property
    def answers(self) -> bytes:
        return b"".join(self.wire.writes)

    async def answer(self, line: str) -> bytes:
        before = len(self.answers)
        self.send(line)
        await until(lambda: len(self.answers) > before, what=f"{line} is answered")
        return self.answers[before:]


class Served:
    """A member that owns all slots, with a Redis port."""

    def __init__(self, pool: InProcessPool, member: InProcessMember) -> None:
        self.pool, self.a, self.service = pool, member, member.service
        scan = KeyScan(member.pool, member.copies, member.keeper, pool.client, PoolClock())
        self.executor = Executor(member.service, scan, CopyCount(member.pool))
        lag = member.service._loop_lag
        self.port = RedisPort(self.executor, None, lag, member="a", run_id="", keys=lambda: 0, now_ms=lambda: 0)
        self.client = Client(self.port)

    @property
    def writes(self) -> OwnerWrites:
        return self.service._writes

    @property
    def async_writes(self) -> AsyncWrites:
        return self.service._reads._async_writes

    async def way_of(self, line: str) -> str:
        """Which way a command goes; what then waits is given up."""
        before = dict(self.executor.counts)
        self.client.send(line)
        after, under_way = self.executor.counts, [each.task for each in self.client.connection._pending]
        way = {"memory": AT_ONCE, "commit": BEGUN}.get(
            next((how for how in ("memory", "commit") if after[how] > before[how]), ""), WAITS
        )
        assert (way is WAITS) == any(under_way)
        await asyncio.sleep(0)  # a task that has not begun cannot be cancelled without a warning
        for task in under_way:
            if task is not None:
                task.cancel()
        return way


@asynccontextmanager
async def served(client: EtcdClient, name: str, **spec: object) -> AsyncIterator[Served]:
    async with in_process_pool(client, name, "a", "b", **spec) as pool:
        served = Served(pool, await pool.give("a", "b"))
        for lag in (served.service._loop_lag, served.writes._loop_lag):
            await pool.run(lag.run())
        await until(lambda: not served.writes._loop_lag.standstill(), what="the event loop is measured")
        yield served


@pytest_asyncio.fixture
async def here(client: EtcdClient, pool_name: str) -> AsyncIterator[Served]:
    async with served(client, pool_name) as all_of_it:
        assert await all_of_it.client.answer("SET k v EX 600") == b"+OK\r\n"
        yield all_of_it


def gate_closed(here: Served) -> None:
    here.a.owned.close([SLOT])


def gate_closed_for_writes(here: Served) -> None:
    here.a.owned.close([SLOT], readable=True)


def slot_lost(here: Served) -> None:
    here.a.owned.lose(SLOT)


def async_write_under_way(here: Served) -> None:
    here.async_writes.follow(SLOT, "k", asyncio.get_running_loop().create_future())


def not_synced(here: Served) -> None:
    here.a.copies.replica._slots[SLOT].synced = False


def unreadable(here: Served) -> None:
    here.a.copies.replica._slots[SLOT].unreadable["k"] = _Unreadable(1, "its key is missing", b"")


def read_deadline_over(here: Served) -> None:
    here.a.reads._valid_until = time.monotonic() - 1


def no_spec(here: Served) -> None:
    here.a.pool.state.spec = None


def locked(here: Served) -> None:
    here.writes._locks.take(SLOT, "k")


def no_room(here: Served) -> None:
    active = here.a.active.get(SLOT)
    assert active is not None
    active.waiting.update(dict.fromkeys(range(1000), None))  # type: ignore[arg-type]


def stood_still(here: Served) -> None:
    lag = here.writes._loop_lag
    lag._stood, lag._woke_at = 0.8, time.monotonic()


def much_unsaved(here: Served) -> None:
    here.a.active.exposure.bytes = Limits().unsaved_bytes + 1


def etcd_silent(here: Served) -> None:
    here.a.committer._stuck_since = time.monotonic() - 60


def class_of_connection(here: Served) -> None:
    here.client.connection.client.durability = "sync"


def earlier_writes_wait(here: Served) -> None:
    lock = here.executor._turn
    lock._locked = True


def untouched(_: Served) -> None:
    pass


@pytest.mark.parametrize(
    ("command", "condition", "way"),
    [
        ("GET k", untouched, AT_ONCE),
        ("get k", untouched, AT_ONCE),
        ("GET absent", untouched, AT_ONCE),
        ("TTL k", untouched, AT_ONCE),
        ("GET k", gate_closed_for_writes, AT_ONCE),
        ("GET k", locked, AT_ONCE),
        ("GET k", much_unsaved, AT_ONCE),
        ("GET k", gate_closed, WAITS),
        ("GET k", slot_lost, WAITS),
        ("GET k", async_write_under_way, WAITS),
        ("GET k", not_synced, WAITS),
        ("GET k", unreadable, WAITS),
        ("GET k", read_deadline_over, WAITS),
        ("GET k", no_spec, WAITS),
        ("SET k w", untouched, BEGUN),
        ("SET k w EX 9", untouched, BEGUN),
        ("DEL k", untouched, BEGUN),
        ("SET new w", untouched, BEGUN),
        ("EXPIRE k 610", untouched, AT_ONCE),
        ("SET k w", gate_closed, WAITS),
        ("SET k w", gate_closed_for_writes, WAITS),
        ("SET k w", slot_lost, WAITS),
        ("SET k w", not_synced, WAITS),
        ("SET k w", unreadable, WAITS),
        ("SET k w", no_spec, WAITS),
        ("SET k w", locked, WAITS),
        ("SET k w", no_room, WAITS),
        ("SET k w", stood_still, WAITS),
        ("SET k w", much_unsaved, WAITS),
        ("SET k w", etcd_silent, WAITS),
        ("SET k w", class_of_connection, WAITS),
        ("SET k w", earlier_writes_wait, WAITS),
        ("SET k w NX", untouched, WAITS),
        ("DEL absent", untouched, WAITS),
        ("MSET k w new w", untouched, WAITS),
        (f"SET {'k' * (KEY_BYTES_MOST + 1)} w", untouched, WAITS),
    ],
)
async def test_a_command_that_needs_no_wait_is_answered_or_begun_at_once_and_all_others_may_wait(
    here: Served, command: str, condition: Callable[[Served], None], way: str
) -> None:
    condition(here)
    assert await here.way_of(command) == way


async def test_no_write_of_an_async_pool_is_begun_at_once(client: EtcdClient, pool_name: str) -> None:
    async with served(client, pool_name, durability="async") as here:
        assert await here.way_of("SET k w") == WAITS


@pytest.mark.parametrize("gone_by_then", [False, True])
async def test_one_repeat_of_a_set_nx_that_has_won_unheard_wins(here: Served, *, gone_by_then: bool) -> None:
    gone = Client(here.port)
    gone.send("SET lock mine NX")
    gone.connection.connection_lost(None)
    await until(lambda: here.executor._unheard, what="the answer that nobody heard is noted")
    if gone_by_then:
        assert await here.client.answer("DEL lock") == b":1\r\n"
    assert await here.client.answer("SET lock mine NX") == b"+OK\r\n"
    assert await here.client.answer("SET lock mine NX") == b"$-1\r\n"


async def test_a_read_after_a_write_of_its_key_waits_for_it_and_others_answer_in_their_order(here: Served) -> None:
    here.client.wire.writes.clear()
    here.client.send("SET k new", "GET k", "GET other", "PING")
    await until(lambda: here.client.answers.endswith(b"+PONG\r\n"), what="all is answered")
    assert here.client.answers == b"+OK\r\n$3\r\nnew\r\n$-1\r\n+PONG\r\n"


async def test_the_answers_of_one_pipeline_leave_in_one_write(here: Served) -> None:
    here.client.wire.writes.clear()
    here.client.send("GET k", "GET k", "PING")
    assert here.client.wire.writes == [b"$1\r\nv\r\n$1\r\nv\r\n+PONG\r\n"]


async def test_where_many_clients_ask_in_one_turn_the_answers_are_sent_when_all_have_been_read(here: Served) -> None:
    many = [Client(here.port) for _ in range(2 * CROWD)]
    for _ in range(COUNTED_EVERY):
        for one in many:
            one.wire.writes.clear()
            one.send("GET k", "PING")
        await asyncio.sleep(0)
    assert [one.wire.writes for one in many] == [[b"$1\r\nv\r\n+PONG\r\n"]] * (2 * CROWD)

    for one in many:
        one.wire.writes.clear()
        one.send("GET k")
    assert not any(one.wire.writes for one in many)
    many[0].send("QUIT")
    assert many[0].wire.writes == [b"$1\r\nv\r\n+OK\r\n", b"closed"]
    await asyncio.sleep(0)
    assert [one.wire.writes for one in many[1:]] == [[b"$1\r\nv\r\n"]] * (2 * CROWD - 1)


async def test_who_asks_alone_is_answered_at_once(here: Served) -> None:
    for _ in range(COUNTED_EVERY):
        here.client.wire.writes.clear()
        here.client.send("GET k")
        await asyncio.sleep(0)
    here.client.send("GET k")
    assert here.client.wire.writes == [b"$1\r\nv\r\n"] * 2


async def test_writes_that_are_acknowledged_together_are_answered_in_one_write_each_connection(here: Served) -> None:
    two = [here.client, Client(here.port)]
    submitted = []
    submit = here.a.active.submit

    def noting(*write: object) -> object:
        submitted.append(submit(*write))  # type: ignore[arg-type]
        return submitted[-1]

    here.a.active.submit = noting  # type: ignore[assignment,method-assign]
    here.client.wire.writes.clear()
    for place, one in enumerate(two):
        one.send(f"SET {place}a 1", f"SET {place}b 1", f"INCR {place}c")
    for write in submitted:
        write.succeed("replicas")
    await asyncio.gather(*(until(lambda one=one: one.answers, what="it is answered") for one in two))  # type: ignore[misc]
    assert [one.wire.writes for one in two] == [[b"+OK\r\n+OK\r\n:1\r\n"]] * 2


async def test_a_write_whose_slot_is_lost_under_it_is_not_acknowledged(here: Served) -> None:
    here.client.wire.writes.clear()
    here.client.send("SET k lost")
    here.a.active.lost(SLOT)
    await until(lambda: here.client.answers, what="it is answered")
    assert here.client.answers.startswith(b"-ERR outcome-unknown")
    assert not here.writes._locks.locked(SLOT, "k"), "others may write"


async def test_a_write_that_takes_too_long_is_in_doubt_and_those_of_later_ones_go_on(
    here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port_module, "CALL_TIMEOUT", 0.2)
    here.client.wire.writes.clear()
    advance = here.a.active.advance
    here.a.active.advance = lambda _slot: None  # type: ignore[method-assign]
    here.client.send("SET k late")
    await until(lambda: here.client.answers, what="it is answered")
    assert here.client.answers.startswith(b"-ERR outcome-unknown")

    here.a.active.advance = advance  # type: ignore[method-assign]
    advance(SLOT)

    async def seen() -> bool:
        return await here.client.answer("GET k") == b"$4\r\nlate\r\n"

    await until(seen, what="it has taken effect")
    assert await here.client.answer("SET k again") == b"+OK\r\n"


async def test_one_connection_that_fails_holds_up_no_other(here: Served) -> None:
    other = Client(here.port)
    here.client.send("SET k 1")
    other.send("SET other 1")
    here.client.connection._send = lambda: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    await until(lambda: other.answers == b"+OK\r\n", what="the other is answered")


async def test_the_first_answer_after_a_claim_is_recorded_also_of_commands_that_are_answered_at_once(
    here: Served,
) -> None:
    claims = here.a.recorder.claims
    for line, how in (("GET k", AT_ONCE), ("SET k w", BEGUN)):
        claim = claims.claimed(TRACE, [SLOT], 1, 2, by_request=False)
        before = len(here.client.answers)
        assert await here.way_of(line) == how
        await until(lambda before=before: len(here.client.answers) > before, what="it is answered")  # type: ignore[misc]
        assert claim.told.answered
