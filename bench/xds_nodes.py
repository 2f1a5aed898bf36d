"""Simulated Envoys, a process full: real gRPC streams, each on a connection of its own, driven by lines on stdin.

Each stream asks for what a front Envoy asks for and acknowledges every response; the monotonic time of each receipt
is taken before the response is looked at.
"""

import asyncio
import gc
import json
import sys
import time

import grpc
import grpc.aio

from bench.xds_content import METHOD, subscriptions
from understudy.xds.server import wire

_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))
_OPENING_AT_ONCE = 64


class Node:
    def __init__(self, name: str, port: int) -> None:
        self.name, self.port = name, port
        self.held: dict[str, dict[str, str]] = {}
        self.receipts: list[int] = []
        self.resources = 0
        self._channel: grpc.aio.Channel | None = None
        self._reader: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=_OPTIONS)
        call = self._channel.stream_stream(METHOD)()
        for number, (type_url, names) in enumerate(SUBSCRIPTIONS):
            request = wire.DeltaDiscoveryRequest(
                type_url=type_url,
                resource_names_subscribe=names,
                initial_resource_versions=self.held.get(type_url, {}),
            )
            if not number:
                request.node.id = self.name
            try:
                await call.write(request.SerializeToString())
            except grpc.aio.AioRpcError as error:
                told = f"{self.name}: {await call.code()} {await call.details()}: {await call.debug_error_string()}"
                raise RuntimeError(told) from error
        self._reader = asyncio.create_task(self._read(call))

    async def _read(self, call: "grpc.aio.StreamStreamCall[bytes, bytes]") -> None:
        while True:
            data = await call.read()
            now = time.monotonic_ns()
            if not isinstance(data, bytes):
                return
            self.receipts.append(now)
            response = wire.DeltaDiscoveryResponse.FromString(data)
            ack = wire.DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce)
            await call.write(ack.SerializeToString())
            self.resources += len(response.resources)
            held = self.held.setdefault(response.type_url, {})
            held.update((one.name, one.version) for one in response.resources)

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._channel is not None:
            await self._channel.close()


async def open_all(nodes: list[Node], at_once: int) -> None:
    gate = asyncio.Semaphore(at_once)

    async def one(node: Node) -> None:
        async with gate:
            await node.open()

    await asyncio.gather(*(one(node) for node in nodes))


async def main() -> None:
    nodes: list[Node] = []
    reader = asyncio.StreamReader(limit=1 << 26)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        order = json.loads(line)
        answer: dict[str, object] = {}
        if order["do"] == "open":
            more = [Node(f"{order['name']}-{len(nodes) + n}", order["port"]) for n in range(order["count"])]
            nodes += more
            await open_all(more, _OPENING_AT_ONCE)
            gc.collect()
            gc.freeze()
        elif order["do"] == "take":
            answer = {
                "receipts": [time_ for node in nodes for time_ in node.receipts],
                "resources": sum(node.resources for node in nodes),
            }
            for node in nodes:
                node.receipts.clear()
                node.resources = 0
        elif order["do"] == "drop":
            await asyncio.gather(*(node.close() for node in nodes))
        elif order["do"] == "reopen":
            began = time.monotonic_ns()
            await open_all(nodes, len(nodes))
            answer = {"began": began}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


SUBSCRIPTIONS = subscriptions()

if __name__ == "__main__":
    asyncio.run(main())
