"""Heartbeat streams over connections that lose everything, and streams that end."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio

from tests.harness.cable import cable_to
from tests.harness.waiting import until
from understudy.proxy.member.signal import Signal
from understudy.proxy.sidecar.heartbeat_client import HeartbeatClient
from understudy.statesync.heartbeat.heartbeat import METHOD, SERVICE, Beat, BeatAnswer
from understudy.statesync.pool.records import MemberState
from understudy.xds.membership.failure_detector import FailureDetector
from understudy.xds.membership.heartbeat_server import HeartbeatServer
from understudy.xds.membership.member_health import LivenessState

WHO = ("m1", "boot")
BEAT = Beat("cart", *WHO, MemberState.UP, 1, sent=7, answers=True)


@asynccontextmanager
async def beating(address: str, heard: list[BeatAnswer]) -> AsyncIterator[None]:
    """A member's heartbeats to one control server."""
    client = HeartbeatClient(lambda: {address}, lambda _: BEAT, lambda _, answer: heard.append(answer), None, Signal())
    task = asyncio.create_task(client.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def serving(*handlers: grpc.GenericRpcHandler, heartbeat: HeartbeatServer | None = None) -> AsyncIterator[str]:
    """A gRPC server; where it listens."""
    server = grpc.aio.server(options=[("grpc.http2.min_ping_interval_without_data_ms", 1_000)])
    server.add_generic_rpc_handlers(handlers)
    if heartbeat is not None:
        heartbeat.register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_a_stream_that_falls_silent_is_replaced_on_both_sides() -> None:
    loop, connections, heard = asyncio.get_running_loop(), list[str](), []
    detector = FailureDetector()
    heartbeat = HeartbeatServer("cart", detector, now_ns=lambda: round(loop.time() * 1e9), on_claim=lambda: None)

    def connected(*_: int) -> str:
        connections.append(f"connection {len(connections)}")
        return connections[-1]

    def alive_on() -> frozenset[int]:
        known = detector.members.get(WHO)
        return known.streams if known is not None and known.liveness is LivenessState.ALIVE else frozenset()

    async with (
        serving(heartbeat=heartbeat) as address,
        cable_to(address, connected) as cable,
        beating(cable.address, heard),
    ):
        running = asyncio.create_task(heartbeat.run())
        first = await until(lambda: heard and alive_on(), 40, "the first stream beats, and is answered")
        for connection in connections:
            cable.cut(source=connection)  # for good: what is lost on it never comes
        await until(lambda: alive_on() and not alive_on() & first, 40, "a new stream beats, and the first has ended")
        heard.clear()
        await until(lambda: heard, 40, "the new stream is answered")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    assert heard[0].sent == BEAT.sent


async def test_a_stream_that_the_server_ends_between_two_beats_is_opened_anew() -> None:
    streams = itertools.count(1)
    beats: list[int] = []

    async def short(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        number = next(streams)
        await context.send_initial_metadata(())
        async for _ in requests:
            beats.append(number)
            if len(beats) % 3 == 0:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the server has enough")

    name = METHOD.rsplit("/", 1)[1]
    handler = grpc.method_handlers_generic_handler(SERVICE, {name: grpc.stream_stream_rpc_method_handler(short)})
    async with serving(handler) as address, beating(address, []):
        await until(lambda: 4 in beats, 40, "three streams were ended, and the fourth beats")
