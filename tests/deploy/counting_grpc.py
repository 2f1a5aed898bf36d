"""A gRPC application for tests: ``test.Counter/Count`` counts the messages of a session, whoever served those before.

Each message of the stream adds one to the session's count and is answered with the member's name and the count; the
session is named by the metadatum ``x-session-id``. ``Total`` is the unary way to ask. It speaks no HTTP/1.1; whether it
is well it says by gRPC's health checking protocol.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import grpc

from understudy.deploy.examples.cart import Sessions

SERVICE = "test.Counter"
SERVING = b"\x08\x01"


async def serve() -> None:
    sessions, member = Sessions(os.environ["UNDERSTUDY_URL"]), os.environ["UNDERSTUDY_MEMBER"]

    def session_of(context: Any) -> str:
        return str(dict(context.invocation_metadata())["x-session-id"])

    async def count(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        key = session_of(context)
        async for _ in messages:
            answer = await sessions.call("GET", key)
            counted = json.loads(answer.body)["count"] + 1 if answer.status == 200 else 1
            await sessions.call("PUT", key, {"count": counted}, If_Match=answer.headers.get("ETag"))
            yield json.dumps({"member": member, "count": counted}).encode()

    async def total(_: bytes, context: Any) -> bytes:
        answer = await sessions.call("GET", session_of(context))
        return json.dumps({"member": member, "count": json.loads(answer.body)["count"]}).encode()

    async def check(_: bytes, __: Any) -> bytes:
        return SERVING

    counter = {
        "Count": grpc.stream_stream_rpc_method_handler(count),
        "Total": grpc.unary_unary_rpc_method_handler(total),
    }
    health = {"Check": grpc.unary_unary_rpc_method_handler(check)}
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(SERVICE, counter),
            grpc.method_handlers_generic_handler("grpc.health.v1.Health", health),
        )
    )
    server.add_insecure_port(f"{os.environ['HOST']}:{os.environ['PORT']}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve())
