"""TCP pools on a real Envoy over ADS: the same slots as the sidecars, and which connections live through what."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.harness.envoy import Envoy
from tests.harness.front import Front, PoolCache, running_front
from tests.harness.http_app import http_app
from tests.harness.waiting import stays, until
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import HealthChecks, Timeouts
from understudy.xds.envoy.routing_view import Endpoint, RoutingView

SLOTS = 64
UNHURRIED = Timeouts(connect_ms=10_000)
PATIENT = HealthChecks(timeout_ms=20_000)
"""A member that is slow to answer keeps its connections; one that answers 503 loses them."""
ORDERS = [("m-1", "m-2", "m-3"), ("m-2", "m-3", "m-1"), ("m-3", "m-1", "m-2"), ("m-1", "m-3", "m-2")]


def address_in(slot: int, *, network: str = "127.0.3.{}") -> str:
    """A source address whose sessions are in a slot."""
    return next(one for one in (network.format(last) for last in range(1, 255)) if slot_of(one, SLOTS) == slot)


@dataclass
class Connection:
    """A client's connection. ``greeting`` is the member that took it and the PROXY header that it was given."""

    greeting: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def say(self, word: str) -> str:
        """The answer, '' when the connection is closed."""
        try:
            self.writer.write(f"{word}\n".encode())
            return (await asyncio.wait_for(self.reader.readline(), 30)).decode().strip()
        except ConnectionError:
            return ""


@dataclass
class Member:
    """A service that says who it is and what header it got, and repeats what it hears. ``well``: its health port."""

    name: str
    server: asyncio.Server | None = None
    well: bool = True
    open: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.add(writer)
        with contextlib.suppress(ConnectionError):
            header = (await reader.readline()).decode("ascii", "replace").strip()
            writer.write(f"{self.name} {header}\n".encode())
            while line := await reader.readline():
                writer.write(f"{self.name} ".encode() + line)
        self.open.discard(writer)
        writer.close()

    async def check(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.well else 503)

    def die(self) -> None:
        """What a kill -9 does: nobody listens, and connections are reset."""
        assert self.server is not None
        self.server.close()
        for writer in self.open:
            writer.transport.abort()


@dataclass
class TcpPool:
    """An Envoy of a TCP pool, and the members behind it."""

    cache: PoolCache
    front: Front
    view: RoutingView
    members: dict[str, Member]

    async def connect(self, source: str = "127.0.0.1", header: str = "") -> Connection:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.front.port, local_addr=(source, 0))
        writer.write(f"{header}\r\n".encode() if header else b"")
        greeting = (await asyncio.wait_for(reader.readline(), 30)).decode().strip()
        return Connection(greeting, reader, writer)

    async def publish(self, view: RoutingView) -> None:
        """As the control server's publisher does, and until Envoy has it."""
        self.view = view
        await self.cache.publish(view)
        await self.cache.acknowledged()


@contextlib.asynccontextmanager
async def tcp_pool(directory: Path, orders: Sequence[tuple[str, ...]], **spec: Any) -> AsyncIterator[TcpPool]:
    wanted = PoolSpec(pool="notes", protocol="tcp", slots=SLOTS, timeouts=UNHURRIED, health_checks=PATIENT, **spec)
    async with contextlib.AsyncExitStack() as stack:
        members, endpoints = {}, {}
        for name in ("m-1", "m-2", "m-3"):
            member = members[name] = Member(name)
            member.server = await asyncio.start_server(member.serve, "127.0.0.1", 0)
            stack.callback(member.die)
            health = await stack.enter_async_context(http_app(member.check))
            port = member.server.sockets[0].getsockname()[1]
            endpoints[name] = Endpoint("127.0.0.1", port, check=("127.0.0.1", health))
        cache, view = PoolCache("notes"), RoutingView(wanted, endpoints, orders)
        await cache.publish(view)
        cache.ready()
        front = await stack.enter_async_context(running_front(directory, cache, pool="notes"))
        await until(lambda: _serves(front.envoy), 40, "Envoy accepts clients, and all members are healthy")
        await cache.acknowledged()
        yield TcpPool(cache, front, view, members)


async def _serves(envoy: Envoy) -> bool:
    wanted = {
        "cluster.notes/any.membership_healthy": 3,
        "listener_manager.total_listeners_active": 1,
        "listener_manager.workers_started": 1,
    }
    return all([await envoy.stat(name) == value for name, value in wanted.items()])


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[TcpPool]:
    async with tcp_pool(tmp_path, [ORDERS[slot % 4] for slot in range(SLOTS)]) as running:
        yield running


async def test_connections_go_where_the_sidecars_say_and_the_application_is_told_whose_they_are(pool: TcpPool):
    sources = [f"127.{first}.{second}.{first + 7}" for first in range(0, 240, 24) for second in range(0, 240, 16)]
    for source in sources:
        one = await pool.connect(source)
        member, header = one.greeting.split(" ", 1)
        assert member == pool.view.orders[slot_of(source, SLOTS)][0]
        assert header.split()[:3] == ["PROXY", "TCP4", source]
        one.writer.close()


async def test_connections_live_through_the_move_of_slots_and_new_ones_follow_it(pool: TcpPool):
    sources = [address_in(slot) for slot in range(8)]
    before = [await pool.connect(source) for source in sources]
    listeners = await pool.front.envoy.stat("listener_manager.lds.update_success")
    # Slot 0 moves; the order that slots 1 and 5 have ends altogether, their active stays.
    orders = [("m-2", "m-1", "m-3") if order == ORDERS[1] else order for order in pool.view.orders]
    await pool.publish(replace(pool.view, orders=[ORDERS[2], *orders[1:]]))

    assert (await pool.connect(sources[0])).greeting.startswith("m-3 ")
    assert (await pool.connect(sources[1])).greeting.startswith("m-2 ")
    for connection in before:
        member = connection.greeting.split()[0]
        assert [await connection.say("one"), await connection.say("two")] == [f"{member} one", f"{member} two"]

    # For longer than this Envoy's drain time, which is 1 s.
    async def all_answer() -> bool:
        return all([await connection.say("still?") for connection in before])

    await stays(all_answer, 1.5, "connections of before the change answer")
    assert await pool.front.envoy.stat("listener_manager.lds.update_success") == listeners
    assert await pool.front.envoy.stat("listener_manager.total_filter_chains_draining") == 0


async def test_a_dead_members_clients_find_the_standby_and_nobody_elses_connection_breaks(pool: TcpPool):
    dead, living = address_in(0), address_in(1)
    first, other = await pool.connect(dead), await pool.connect(living)
    assert (first.greeting.split()[0], other.greeting.split()[0]) == ("m-1", "m-2")
    pool.members["m-1"].die()
    assert await first.say("anybody?") == ""
    again = await asyncio.gather(*(pool.connect(dead) for _ in range(30)))
    assert {one.greeting.split()[0] for one in again} == {"m-2"}
    assert await other.say("still?") == "m-2 still?"


async def test_a_member_that_fails_its_checks_loses_its_connections_to_the_standby(pool: TcpPool):
    source = address_in(0)
    first = await pool.connect(source)
    assert first.greeting.startswith("m-1 ")
    pool.members["m-1"].well = False
    assert await asyncio.wait_for(first.reader.read(), 30) == b""
    assert (await pool.connect(source)).greeting.startswith("m-2 ")


async def test_behind_another_proxy_the_address_that_it_tells_counts(tmp_path: Path):
    orders = [ORDERS[slot % 4] for slot in range(SLOTS)]
    async with tcp_pool(tmp_path, orders, tcp={"accept_proxy_protocol": True}) as pool:
        for said, key in (
            ("10.1.2.3", "10.1.2.3"),
            ("192.0.2.200", "192.0.2.200"),
            ("2001:DB8:0:0:1:0:0:1", "2001:db8::1:0:0:1"),
            ("2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"),
            ("::ffff:10.1.2.3", "::ffff:10.1.2.3"),
        ):
            family, here = ("TCP6", "2001:db8::2") if ":" in said else ("TCP4", "10.0.0.1")
            one = await pool.connect(header=f"PROXY {family} {said} {here} 1000 80")
            member, header = one.greeting.split(" ", 1)
            assert member == pool.view.orders[slot_of(key, SLOTS)][0]
            assert header.split()[2] == key
            numeric = socket.AF_INET6 if ":" in said else socket.AF_INET
            assert socket.inet_ntop(numeric, socket.inet_pton(numeric, said)) == key, "as docs/tcp.md says"
        reader, writer = await asyncio.open_connection("127.0.0.1", pool.front.port)
        writer.write(b"no header\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 30) == b""
