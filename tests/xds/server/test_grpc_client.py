"""grpcio's own xDS client: a proxyless client that finds its backends through our server."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from tests.harness.processes import bound_to
from tests.harness.waiting import until
from tests.xds.server.client import served
from tests.xds.server.made import api_listener, cluster, endpoints, routes
from understudy.xds.server import types
from understudy.xds.server.stream import UNNAMED

CALLER = """
import sys, grpc
with grpc.insecure_channel("xds:///shop") as channel:
    call = channel.unary_unary("/test.Shop/Who")
    for line in sys.stdin:
        try:
            print(call(b"", wait_for_ready=True, timeout=60).decode(), flush=True)
        except grpc.RpcError as fault:
            print(fault.code(), fault.details(), flush=True)
"""


@contextlib.asynccontextmanager
async def backend(name: bytes) -> AsyncIterator[int]:
    async def who(request: bytes, context: object) -> bytes:
        return name

    server = grpc.aio.server()
    handlers = {"Who": grpc.unary_unary_rpc_method_handler(who)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Shop", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def caller(xds_port: int, node: str = "proxyless-1") -> AsyncIterator[asyncio.subprocess.Process]:
    bootstrap = {
        "xds_servers": [
            {
                "server_uri": f"127.0.0.1:{xds_port}",
                "channel_creds": [{"type": "insecure"}],
                "server_features": ["xds_v3"],
            }
        ],
        "node": {"id": node, "locality": {"zone": "z"}} if node else {},
    }
    process = await asyncio.create_subprocess_exec(
        *bound_to(os.getpid(), [sys.executable, "-c", CALLER]),
        env={**os.environ, "GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(bootstrap)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


async def asked(process: asyncio.subprocess.Process) -> str:
    process.stdin.write(b"\n")
    async with asyncio.timeout(90):
        return (await process.stdout.readline()).decode().strip()


@pytest.mark.parametrize("node", ["proxyless-1", ""])
async def test_a_proxyless_grpc_client_reaches_the_right_backend_and_fails_over(node: str):
    async with backend(b"one") as one, backend(b"two") as two:
        content = {
            types.CLUSTER: {"c": cluster("c")},
            types.ENDPOINTS: {"c": endpoints("c", one, two)},
            types.LISTENER: {"shop": api_listener("shop", "r")},
            types.ROUTES: {"r": routes("r", "c")},
        }
        async with served(content) as world, caller(world.port, node) as client:
            assert await asked(client) == "one"
            await world.cache.acknowledged(30)
            (told,) = {status.node for status in world.cache.status()}
            assert told == node or (not node and told.startswith(UNNAMED))

            await world.cache.update(types.ENDPOINTS, {"c": endpoints("c", one, two, down=(one,))})
            await world.cache.acknowledged(30)

            async def answers_two() -> bool:
                return await asked(client) == "two"

            await until(answers_two, 40, "the other backend")
            assert world.cache.counters.nacks == 0


async def test_rule_14_a_name_that_appears_later_reaches_a_waiting_client():
    async with backend(b"one") as one, served({}) as world, caller(world.port) as client:
        answer = asyncio.create_task(asked(client))
        await until(world.cache.status, 40, "the client's request")
        await world.cache.set_all(
            {
                types.CLUSTER: {"c": cluster("c")},
                types.ENDPOINTS: {"c": endpoints("c", one)},
                types.LISTENER: {"shop": api_listener("shop", "r")},
                types.ROUTES: {"r": routes("r", "c")},
            }
        )
        assert await answer == "one"
