"""A member that speaks gRPC, for tests: ``python -m tests.xds.envoy.grpc_member NAME PORT NOTES``.

Notes every call in a file that outlives it, with the call's ``x-request``. ``Say`` answers with the member's name, but
with ``x-wait`` only when the file ``NOTES.go`` exists. ``Count`` streams the name for ever; ``Talk`` prefixes each
message with it.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from tests.harness.waiting import until

SERVICE = "test.Echo"


async def serve(name: str, port: int, notes: Path) -> None:
    file = os.open(notes, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    go = notes.with_name(notes.name + ".go")

    def note(context: Any) -> dict[str, str]:
        said = dict(context.invocation_metadata())
        os.write(file, f"{name} {said.get('x-request', '-')}\n".encode())
        return said

    async def say(_: bytes, context: Any) -> bytes:
        if "x-wait" in note(context):
            await until(go.exists, timeout=60, what="leave to answer")
        return name.encode()

    async def count(_: bytes, context: Any) -> AsyncIterator[bytes]:
        note(context)
        while True:
            yield name.encode()
            await asyncio.sleep(0.02)

    async def talk(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        note(context)
        async for message in messages:
            yield f"{name} {message.decode()}".encode()

    handlers = {
        "Say": grpc.unary_unary_rpc_method_handler(say),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Talk": grpc.stream_stream_rpc_method_handler(talk),
    }
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
