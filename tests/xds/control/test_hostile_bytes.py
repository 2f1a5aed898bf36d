"""Hostile messages to every service of the gRPC port end in a clean status and leave no traceback in the log."""

import asyncio
import logging
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from understudy.statesync.heartbeat.heartbeat import METHOD as BEATS
from understudy.telemetry.receiver.otlp_grpc import EXPORT, EXPORT_LOGS, METRICS_SERVICE, add_otlp_receiver
from understudy.telemetry.receiver.otlp_service import OtlpService
from understudy.telemetry.store.store import SpanStore
from understudy.xds.membership.failure_detector import FailureDetector
from understudy.xds.membership.heartbeat_server import HeartbeatServer
from understudy.xds.server import types
from understudy.xds.server.ads import AdsServer
from understudy.xds.server.cache import ResourceCache
from understudy.xds.server.csds import SERVICE as CSDS

ADS = types.AGGREGATED_SERVICE
UNARY = (EXPORT, EXPORT_LOGS, f"/{METRICS_SERVICE}/Export", f"/{CSDS}/FetchClientStatus")
STREAMS = (
    BEATS,
    f"/{ADS}/StreamAggregatedResources",
    f"/{ADS}/DeltaAggregatedResources",
    f"/{CSDS}/StreamClientStatus",
)
BYTES = (
    b"\xff" * 64,
    b"\x0a\xff\xff\xff\xff\x0f",
    b"[" * 100_000,
    b'{"pool": "cart", "member": "a", "boot": "b", "sent": 1e400}',
    b'{"pool": "cart", "member": "a", "boot": "b", "stall": NaN}',
    b'{"pool": "cart", "member": "a", "boot": "b", "sent": ' + b"9" * 5000 + b"}",
    b'{"pool": "cart", "member": "\\ud800", "boot": "b", "pulses": [[1]]}',
    b"\x1f\x8b" + bytes(100),
)
CLEAN = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION}


@pytest_asyncio.fixture
async def port() -> AsyncIterator[int]:
    """All services of a control server's gRPC port."""
    server, cache = grpc.aio.server(), ResourceCache()
    cache.ready()
    AdsServer(cache).register(server)
    HeartbeatServer("cart", FailureDetector(), now_ns=lambda: 0, on_claim=lambda: None).register(server)
    store = SpanStore(":memory:")
    add_otlp_receiver(server, OtlpService(store, asyncio.get_running_loop().time))
    number = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield number
    await server.stop(0)
    await store.aclose()


async def test_no_message_ends_in_a_fault_of_ours_or_in_the_log(port: int, caplog: pytest.LogCaptureFixture) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for data in BYTES:
            for method in (*UNARY, *STREAMS):
                if method in UNARY:
                    code = await channel.unary_unary(method)(data, timeout=20).code()
                else:
                    code = await channel.stream_stream(method)(iter([data]), timeout=20).code()
                assert code in CLEAN, (method, data[:60], code)
    assert [one for one in caplog.records if one.exc_info or one.levelno >= logging.WARNING] == []
