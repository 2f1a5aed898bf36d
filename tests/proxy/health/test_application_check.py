"""How the sidecar asks its application whether it is well, in each of the three ways, of real servers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from aiohttp import web
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from tests.harness.waiting import free_port, until
from understudy.proxy.health.app_health_check import AppHealthCheck
from understudy.statesync.pool.app_health import AppHealth, HealthKind
from understudy.statesync.pool.spec_parts import Liveness

SERVING, NOT_SERVING = 1, 2


@asynccontextmanager
async def checked(port: int, health: str) -> AsyncIterator[AppHealthCheck]:
    """The check of an application at ``port``, under way."""
    check = AppHealthCheck(
        f"127.0.0.1:{port}",
        AppHealth.parse(health),
        lambda: None,
        rules=lambda: Liveness(application_ms=300),
        stall=lambda: 0.0,
    )
    running = asyncio.create_task(check.run())
    try:
        yield check
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def grpc_server(port: int, health: dict[str, int] | None) -> AsyncIterator[None]:
    """A gRPC server whose services are in the states that ``health`` says; without a health service for None."""

    async def check(request: bytes, context: Any) -> bytes:
        service = StringValue.FromString(request).value
        if health is None or service not in health:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no {service}")
        state = (health or {})[service]
        if state < 0:
            await asyncio.Event().wait()  # no answer
        return Int32Value(value=state).SerializeToString()

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    name = "grpc.health.v1.Health" if health is not None else "test.Other"
    handlers = {"Check": grpc.unary_unary_rpc_method_handler(check)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


async def test_an_application_that_speaks_grpc_alone_tells_its_health_service_by_service():
    port, health = free_port(), {"": SERVING, "test.Cart": NOT_SERVING}
    async with (
        checked(port, "grpc") as whole,
        checked(port, "grpc:test.Cart") as cart,
        checked(port, "grpc:x") as other,
    ):
        await until(lambda: "does not listen" in whole.reason and not whole.listening, what="nobody listens")
        async with grpc_server(port, health):
            await until(lambda: whole.well and whole.listening, what="the server is well")
            await until(lambda: "answers NOT_SERVING" in cart.reason, what="one service is not")
            await until(lambda: "answers NOT_FOUND: no x" in other.reason, what="another does not exist")
            health["test.Cart"] = SERVING
            await until(lambda: cart.well, what="that service is well too")
            health[""] = -1
            await until(lambda: "is silent" in whole.reason, what="the server does not answer")
            health[""] = SERVING
            await until(lambda: whole.well, what="the server is well again")
        await until(lambda: "does not listen" in whole.reason and not whole.listening, what="nobody listens")


async def test_a_grpc_application_without_a_health_service_is_told_what_to_do():
    port = free_port()
    async with grpc_server(port, None), checked(port, "grpc") as check, checked(port, "tcp") as by_connection:
        await until(lambda: "has no grpc.health.v1.Health service" in check.reason, what="the reason")
        assert "ask with tcp" in check.reason
        await until(lambda: by_connection.well, what="a connection is enough")


async def test_an_http_application_is_asked_at_its_path_and_a_wrong_answer_counts_when_repeated():
    status = [503]

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(status=status[0])

    app, port = web.Application(), free_port()
    app.router.add_get("/deep", healthz)
    runner = web.AppRunner(app)
    await runner.setup()
    async with checked(port, "/deep") as check:
        await until(lambda: "does not listen" in check.reason, what="nobody listens")
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await until(lambda: f"at http://127.0.0.1:{port}/deep answers 503" in check.reason, what="it says no")
        status[0] = 200
        await until(lambda: check.well, what="it is well")
        await runner.cleanup()
        await until(lambda: "does not listen" in check.reason, what="nobody listens")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/healthz?deep=1", AppHealth(HealthKind.HTTP, "/healthz?deep=1")),
        ("grpc", AppHealth(HealthKind.GRPC)),
        ("grpc:shop.v1.Cart", AppHealth(HealthKind.GRPC, "shop.v1.Cart")),
        ("tcp", AppHealth(HealthKind.TCP)),
    ],
)
def test_each_form_is_read(text: str, expected: AppHealth):
    assert AppHealth.parse(text) == expected


@pytest.mark.parametrize("text", ["", "healthz", "/a b", "grpc:a b", "tcp:1", "http://x/healthz", "GRPC"])
def test_anything_else_is_refused_with_what_is_expected(text: str):
    with pytest.raises(ValueError, match="a path like /healthz, grpc, grpc:SERVICE or tcp"):
        AppHealth.parse(text)
