"""Whether an application that is not HTTP is well: asked of real servers by the sidecar's own check."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.harness.waiting import free_port, stays, until
from understudy.proxy.health.app_health_check import AppHealthCheck
from understudy.proxy.health.tcp_health import ask
from understudy.statesync.pool.app_health import AppHealth
from understudy.statesync.pool.spec_parts import Liveness
from understudy.statesync.pool.spec_tcp import Tcp

LOCAL_V2 = b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"


@contextlib.asynccontextmanager
async def application(answer: bytes, port: int = 0) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Where it listens, and what it heard on each connection before it answered."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1000))
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", heard


@pytest.mark.parametrize(
    ("header", "expected"),
    [("v1", b"PROXY UNKNOWN\r\nPING\n"), ("v2", LOCAL_V2 + b"PING\n"), ("none", b"PING\n")],
)
async def test_the_question_comes_after_a_header_that_names_nobody(header: str, expected: bytes):
    tcp = Tcp.model_validate({"send_proxy_protocol": header, "ping": "PING\n", "pong": "PONG"})
    async with application(b"PONG, and more\n") as (app, heard):
        assert await ask(app, tcp) == "PONG"
        assert heard == [expected]


async def test_the_check_tells_what_is_wrong_and_asks_nothing_before_the_spec_is_known():
    spec: list[Tcp] = []
    port = free_port()
    check = AppHealthCheck(
        f"127.0.0.1:{port}",
        AppHealth.parse("/"),
        lambda: None,
        rules=lambda: Liveness(application_ms=20_000),
        stall=lambda: 0.0,
        known=lambda: bool(spec),
        tcp=lambda: spec[-1] if spec else None,
    )
    running = asyncio.create_task(check.run())
    try:
        async with application(b"PONG\n", port) as (_, heard):
            await stays(lambda: heard == [], 0.3, "nothing is asked")
            spec.append(Tcp(ping="PING\n", pong="PONG"))
            await until(lambda: check.well, what="the application is well")
            assert set(heard) == {b"PROXY UNKNOWN\r\nPING\n"}
            spec.append(Tcp(ping="PING\n", pong="PONX"))
            await until(lambda: "answers 'PONG', not 'PONX'" in check.reason, what="a wrong answer is told")
            spec.append(Tcp(ping="PING\n", pong="PONG, and never the rest"))
            await until(lambda: "answers 'PONG\\n', not" in check.reason, what="an answer too short is told")
        await until(lambda: "does not listen" in check.reason and not check.listening, what="nobody listens")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
