"""The servers of the xDS benchmark, driven by lines on stdin: ours, and two to compare it with.

``xds``: a ResourceCache behind an AdsServer with the metrics of a control server. ``naive``: the same stream loop
reduced to its bones, but every stream encodes its own response with betterproto2, as a straightforward server does.
``floor``: the same bones, and all streams write the same ready bytes: what grpc.aio itself costs.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment
from envoy_data_plane.envoy.service.discovery.v3 import DeltaDiscoveryResponse, Resource
from envoy_data_plane.google.protobuf import Any as AnyMessage

from bench.xds_content import METHOD, content, one_change
from understudy.xds.control.gc_tuning import collect_now, defer_collection
from understudy.xds.server import types, wire
from understudy.xds.server.ads import _OPTIONS, AdsServer
from understudy.xds.server.cache import AckEvent, PushEvent, ResourceCache
from understudy.xds.server.metrics import XdsMetrics

TYPES = 4


def resident() -> int:
    """Bytes of resident memory of this process in a calm moment."""
    collect_now()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Ours:
    def __init__(self) -> None:
        self.cache = ResourceCache()
        self.server = AdsServer(self.cache)
        self.metrics = XdsMetrics(self.cache, lambda: self.server.streams)
        self.cache.on_push, self.cache.on_ack = self._pushed, self._acked
        self.built = 0
        self.acked: list[int] = []
        self.written: list[int] = []
        pack = wire.delta_response

        def counted(*arguments: Any) -> bytes:
            self.built += 1
            return pack(*arguments)

        wire.delta_response = counted

    def _pushed(self, event: PushEvent) -> None:
        self.metrics.on_push(event)
        self.written.append(event.written_at_ns)

    def _acked(self, event: AckEvent) -> None:
        self.metrics.on_ack(event)
        self.acked.append(event.acked_at_ns)

    async def start(self) -> int:
        await self.cache.set_all(content())
        self.cache.ready()
        return await self.server.start("127.0.0.1:0")

    async def ready(self, streams: int) -> dict[str, Any]:
        while not self._asked_for_all(streams):
            await asyncio.sleep(0.005)
        await self.cache.acknowledged(120)
        at = time.monotonic_ns()
        counters = self.cache.counters
        return {"at": at, "resources": counters.pushed_resources, "pushes": counters.pushes}

    def _asked_for_all(self, streams: int) -> bool:
        clients = self.cache._clients
        return len(clients) == streams and all(len(one.stream_state._in_order) == TYPES for one in clients)

    async def change(self, healthy: bool) -> dict[str, Any]:
        counters = self.cache.counters
        before = sum(counters.encoded.values()), self.built, counters.pushes, counters.pushed_resources
        change = one_change(healthy)
        self.acked.clear()
        self.written.clear()
        cpu, began = time.process_time_ns(), time.monotonic_ns()
        await self.cache.update(types.ENDPOINTS, change)
        await self.cache.acknowledged(60)
        return {
            "began": began,
            "cpu": (time.process_time_ns() - cpu) / 1e6,
            "acked": list(self.acked),
            "written": list(self.written),
            "encoded": sum(counters.encoded.values()) - before[0],
            "built": self.built - before[1],
            "pushes": counters.pushes - before[2],
            "resources": counters.pushed_resources - before[3],
        }

    async def gone(self) -> None:
        while self.server.streams:
            await asyncio.sleep(0.01)


class Bones:
    """A server that only fans out: ``response`` makes the bytes for one stream."""

    def __init__(self, response: Callable[[str], bytes]) -> None:
        self._response = response
        self.streams: dict[asyncio.Event, int] = {}
        self.acked: list[int] = []
        self.all_acked = asyncio.Event()

    async def start(self) -> int:
        server = self.grpc = grpc.aio.server(options=_OPTIONS)
        service, method = METHOD.strip("/").split("/")
        handler = grpc.stream_stream_rpc_method_handler(self._serve)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return port

    async def _serve(self, requests: AsyncIterator[bytes], context: Any) -> None:
        awake = asyncio.Event()
        self.streams[awake] = 0
        reader = asyncio.create_task(self._read(requests, awake))
        try:
            while True:
                await awake.wait()
                awake.clear()
                await context.write(self._response(f"{id(awake):x}"))
        finally:
            reader.cancel()
            self.streams.pop(awake, None)

    async def _read(self, requests: AsyncIterator[bytes], awake: asyncio.Event) -> None:
        async for data in requests:
            if wire.read_delta_request(data).nonce:
                self.acked.append(time.monotonic_ns())
                if len(self.acked) == len(self.streams):
                    self.all_acked.set()
            else:
                self.streams[awake] += 1

    async def ready(self, streams: int) -> dict[str, Any]:
        while list(self.streams.values()) != [TYPES] * streams:
            await asyncio.sleep(0.005)
        return {"at": time.monotonic_ns()}

    async def change(self, _healthy: bool) -> dict[str, Any]:
        self.acked.clear()
        self.all_acked.clear()
        cpu, began = time.process_time_ns(), time.monotonic_ns()
        for awake in self.streams:
            awake.set()
        await self.all_acked.wait()
        return {"began": began, "acked": list(self.acked), "cpu": (time.process_time_ns() - cpu) / 1e6}


def naive_response() -> Callable[[str], bytes]:
    """What a server does that builds each stream's response from messages."""
    ((name, value),) = one_change(healthy=False).items()
    assignment = ClusterLoadAssignment.parse(value)

    def response(nonce: str) -> bytes:
        resource = Resource(name=name, version="0123456789abcdef", resource=AnyMessage.pack(assignment))
        made = DeltaDiscoveryResponse(
            system_version_info="0123456789abcdef", type_url=types.ENDPOINTS, resources=[resource], nonce=nonce
        )
        return bytes(made)

    return response


def floor_response() -> Callable[[str], bytes]:
    """The same bytes, made once."""
    ready = naive_response()("0123456789ab")
    return lambda _: ready


async def main(kind: str) -> None:
    server: Any = Ours() if kind == "xds" else Bones({"naive": naive_response, "floor": floor_response}[kind]())
    reader = asyncio.StreamReader(limit=1 << 26)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    answer: dict[str, Any] = {"port": await server.start()}
    defer_collection()  # as a control server does; for all kinds, so that they can be compared
    healthy = True
    while True:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
        line = await reader.readline()
        if not line:
            return
        order = json.loads(line)
        answer = {}
        if order["do"] == "ready":
            answer = await server.ready(order["streams"])
            collect_now()
        elif order["do"] == "change":
            healthy = not healthy
            answer = await server.change(healthy)
        elif order["do"] == "gone":
            await server.gone()
        elif order["do"] == "memory":
            answer = {"bytes": resident()}


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
