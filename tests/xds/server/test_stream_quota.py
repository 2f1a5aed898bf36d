"""How many streams clients may have open: a client past a limit is refused, and others are served."""

import asyncio
import logging
import struct
from typing import Any

import grpc
import pytest

from tests.harness.waiting import until
from tests.xds.server.client import ADS, Stream, connection, served
from tests.xds.server.made import cluster
from tests.xds.server.test_metrics import parsed
from understudy.statesync.heartbeat.heartbeat import METHOD
from understudy.telemetry.metrics.phase_metrics import expose
from understudy.xds.membership.failure_detector import FailureDetector
from understudy.xds.membership.heartbeat_server import HeartbeatServer
from understudy.xds.server import types
from understudy.xds.server.ads import AdsServer, StreamSettings
from understudy.xds.server.csds import SERVICE as CSDS
from understudy.xds.server.metrics import XdsMetrics
from understudy.xds.server.stream_quota import ADDRESS, STREAMS_PER_CONNECTION, TOTAL, QuotaLimits, StreamQuota

CONTENT = {types.CLUSTER: {"a": cluster("a")}}
DELTA = f"{ADS}/DeltaAggregatedResources"
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
HEADERS, SETTINGS, END_OF_HEADERS = 1, 4, 4


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of HTTP/2 (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header that HPACK neither indexes nor packs (RFC 7541, section 6.2.2)."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def many_streams(count: int) -> bytes:
    """What a client sends that opens ``count`` streams and does not look at the server's settings."""
    fields = {":method": "POST", ":scheme": "http", ":path": f"/{DELTA}", ":authority": "x"}
    fields |= {"te": "trailers", "content-type": "application/grpc"}
    head = b"".join(literal(name.encode(), value.encode()) for name, value in fields.items())
    streams = (frame(HEADERS, END_OF_HEADERS, 2 * number + 1, head) for number in range(count))
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, b"") + b"".join(streams)


async def test_a_connection_has_no_more_streams_than_it_may_have_whatever_its_client_does() -> None:
    async with served(CONTENT) as world:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        refused = 0
        try:
            writer.write(many_streams(10 * STREAMS_PER_CONNECTION))
            async with asyncio.timeout(20):
                while refused < 9 * STREAMS_PER_CONNECTION:
                    head = await reader.readexactly(9)
                    await reader.readexactly(int.from_bytes(head[:3], "big"))
                    refused += head[3] == 3  # RST_STREAM
            await until(lambda: world.server.streams == STREAMS_PER_CONNECTION)
            other = world.stream(delta=True, node="other")
            await other.ask(types.CLUSTER)
            await other.receive()
        finally:
            writer.close()
        await until(lambda: world.server.streams == 1, 20, "the streams end with their connection")


async def opened(port: int) -> Stream:
    """A stream on a connection of its own that has asked for something."""
    stream = Stream(connection(port), DELTA, delta=True, node="front")
    await stream.ask(types.CLUSTER)
    return stream


async def test_streams_past_the_limit_of_an_address_are_refused_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    settings = StreamSettings(quota=QuotaLimits(address=3))
    async with served(CONTENT, settings) as world:
        kept = [await opened(world.port) for _ in range(3)]
        for stream in kept:
            await stream.receive()
        for method in (DELTA, f"{CSDS}/StreamClientStatus"):
            # It writes nothing: for a write to a refused stream gRPC's client may say INTERNAL (grpc issue 36066).
            code, text = await Stream(connection(world.port), method, delta=True, node="front").status()
            assert (code, ADDRESS in text) == (EXHAUSTED, True)

        assert samples(world.server) == {("refused_streams_total", ADDRESS): 2, ("refused_streams_total", TOTAL): 0}
        warnings = [one.message for one in caplog.records if one.levelno == logging.WARNING]
        assert warnings == ["streams from ipv4:127.0.0.1 are refused: too many are open (limit per address: 3)"]

        kept[0].call.cancel()
        await until(lambda: world.server.streams == 2)
        await (await opened(world.port)).receive()


def samples(server: AdsServer) -> dict[tuple[str, ...], float]:
    metrics = XdsMetrics(server.cache, lambda: server.streams, lambda: server.quota.refused)
    found = parsed(expose(metrics.registry, "")[0].decode())
    return {name: value for name, value in found.items() if name[0] == "refused_streams_total"}


async def test_heartbeats_are_limited_by_a_quota_of_their_own() -> None:
    server = grpc.aio.server()
    heartbeat = HeartbeatServer("cart", FailureDetector(), now_ns=lambda: 0, on_claim=lambda: None)
    heartbeat.quota = StreamQuota(QuotaLimits(total=2))
    heartbeat.register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        calls: list[Any] = [connection(port).stream_stream(METHOD)() for _ in range(2)]
        for call in calls:
            await call.initial_metadata()
        refused: Any = connection(port).stream_stream(METHOD)()
        async with asyncio.timeout(20):
            assert await refused.code() is EXHAUSTED
        assert heartbeat.quota.refused == {TOTAL: 1}
    finally:
        await server.stop(0)


class Context:
    """What the quota asks of a gRPC context."""

    def __init__(self, peer: str) -> None:
        self.peer = lambda: peer

    async def abort(self, code: grpc.StatusCode, _: str) -> None:
        raise ConnectionAbortedError(code)


async def test_one_address_leaves_room_for_others_and_nothing_is_kept_of_streams_that_ended() -> None:
    quota, stacks = StreamQuota(QuotaLimits(address=2, total=3)), []
    first, second, third = "ipv4:10.0.0.1", "ipv6:[::1]", "ipv4:10.0.0.2"
    peers = [(first, True), (first, True), (first, False), (second, True), (third, False)]
    for number, (peer, fits) in enumerate(peers):
        held = quota.held(Context(f"{peer}:{4000 + number}"))  # type: ignore[arg-type]
        if fits:
            await held.__aenter__()
            stacks.append(held)
        else:
            with pytest.raises(ConnectionAbortedError):
                await held.__aenter__()
    assert (quota.open, dict(quota.refused)) == (3, {ADDRESS: 1, TOTAL: 1})
    for held in stacks:
        await held.__aexit__(None, None, None)
    assert (quota.open, len(quota._by_address)) == (0, 0)
