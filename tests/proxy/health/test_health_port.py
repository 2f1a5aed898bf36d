"""The health port: it answers while the event loop is busy, tells when that stands still, and minds what it is sent."""

import asyncio
import contextlib
import http.client
import socket
import time
from collections.abc import Iterator

import pytest

from understudy.proxy.health.health_port import HealthPort, open_health_port
from understudy.proxy.health.loop_lag import STALLED_AFTER, STALLED_WITHOUT_ETCD, LoopLag, bearable


class Member:
    """What the port asks of the rest of the sidecar. It runs in this very thread, which the tests keep busy."""

    def __init__(self) -> None:
        self.fault = ""
        self.stall = LoopLag()
        self.no_leader_at = float("inf")  # so that this thread may be late by some seconds, as on a busy machine


@pytest.fixture
def member() -> Member:
    return Member()


@pytest.fixture
def port(member: Member) -> Iterator[HealthPort]:
    address = ("127.0.0.1", 0)
    with HealthPort(address, lambda: member.fault, member.stall, no_leader_at=lambda: member.no_leader_at) as port:
        yield port


def asked(connection: http.client.HTTPConnection, method: str = "GET", path: str = "/health") -> tuple[int, str]:
    connection.request(method, path)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_one_connection_hears_of_every_change(port: HealthPort, member: Member) -> None:
    connection = http.client.HTTPConnection(*port.address)
    assert asked(connection) == (200, '{"serving": true, "reason": ""}')
    member.fault = "check db: gone"
    assert asked(connection) == (503, '{"serving": false, "reason": "check db: gone"}')
    assert asked(connection, "HEAD") == (503, "")
    assert asked(connection, path="/else")[0] == 404
    assert asked(connection, "POST")[0] == 404


def test_an_event_loop_that_stands_still_for_long_is_told(port: HealthPort, member: Member) -> None:
    connection = http.client.HTTPConnection(*port.address)
    assert asked(connection)[0] == 200
    member.no_leader_at = float("-inf")
    time.sleep(STALLED_AFTER + 0.2)  # nobody runs the stall watch: that is what a blocked event loop looks like
    status, text = asked(connection)
    assert status == 503
    assert "the event loop stands still" in text
    member.no_leader_at = time.monotonic()
    assert asked(connection)[0] == 200  # etcd has no leader: nobody else could serve either
    assert bearable(STALLED_WITHOUT_ETCD, no_leader_at=0.0) == STALLED_AFTER  # for a while


def test_requests_may_come_in_pieces_or_many_at_once_and_nonsense_ends_its_own_connection(port: HealthPort) -> None:
    request = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    with socket.create_connection(port.address) as connection, socket.create_connection(port.address) as other:
        for byte in request:
            connection.send(bytes((byte,)))
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.send(request * 3)
        came = b""
        while came.count(b"HTTP/1.1 200") < 3:
            came += connection.recv(4096)
        other.sendall(b"x" * 10_000)
        assert gone(other)
        connection.send(request)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")


def gone(connection: socket.socket) -> bool:
    connection.settimeout(20)
    try:
        return connection.recv(4096) == b""
    except ConnectionResetError:
        return True


async def test_a_port_of_all_addresses_is_told_as_one_of_the_applications_host(member: Member) -> None:
    async with contextlib.AsyncExitStack() as stack:
        told = open_health_port(
            stack, "0.0.0.0:0", "127.0.0.1:8000", lambda: "", member.stall, no_leader_at=lambda: member.no_leader_at
        )
        host, _, number = told.rpartition(":")
        assert host == "127.0.0.1"
        assert (await asyncio.to_thread(asked, http.client.HTTPConnection(host, int(number))))[0] == 200
