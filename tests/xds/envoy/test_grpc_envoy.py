"""gRPC through a real Envoy to real gRPC members: who answers, and what a death does to calls and streams."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from tests.harness.waiting import until
from tests.xds.envoy.grpc_member import SERVICE
from tests.xds.envoy.served_pool import MEMBERS, UNHURRIED, ServedPool, served_pool
from understudy.statesync.pool.spec import PoolSpec


class Client:
    """One channel to Envoy, which keeps it whatever happens to members."""

    def __init__(self, front: ServedPool) -> None:
        self.front = front
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{front.port}")

    def say(self, **metadata: str) -> Any:
        return self.channel.unary_unary(f"/{SERVICE}/Say")(b"", metadata=_pairs(metadata))

    def count(self, **metadata: str) -> Any:
        return self.channel.unary_stream(f"/{SERVICE}/Count")(b"", metadata=_pairs(metadata))

    def talk(self, **metadata: str) -> Any:
        return self.channel.stream_stream(f"/{SERVICE}/Talk")(metadata=_pairs(metadata))


async def end_of(stream: Any) -> grpc.StatusCode:
    """How a stream of messages ends."""
    try:
        while await stream.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def _pairs(metadata: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((name.replace("_", "-"), value) for name, value in metadata.items())


@pytest_asyncio.fixture(params=["http2", "as_client"])
async def client(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    async with client_of(tmp_path, UNHURRIED.model_copy(update={"protocol": request.param})) as client:
        yield client


@pytest_asyncio.fixture(params=["http2", "as_client"])
async def limited(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    """In a pool whose requests may take a second."""
    timeouts = UNHURRIED.timeouts.model_copy(update={"request_seconds": 1})
    async with client_of(
        tmp_path, UNHURRIED.model_copy(update={"protocol": request.param, "timeouts": timeouts})
    ) as client:
        yield client


@contextlib.asynccontextmanager
async def client_of(directory: Path, spec: PoolSpec) -> AsyncIterator[Client]:
    async with served_pool(directory, spec=spec, program="tests.xds.envoy.grpc_member") as front:
        client = Client(front)
        for member in MEMBERS:
            key = front.key_of(member)

            async def answers(member: str = member, key: str = key) -> bool:
                return await client.say(x_session_id=key) == member.encode()

            await until(answers, timeout=60, what=f"{member} behind Envoy")
        try:
            yield client
        finally:
            await client.channel.close()


async def test_calls_and_streams_go_to_the_member_of_their_slot_and_to_the_next_when_it_dies(client: Client):
    front = client.front
    key = front.key_of("cart-1")
    second = front.order_of(key)[1].encode()
    counting, talking = client.count(x_session_id=key), client.talk(x_session_id=key)
    assert await counting.read() == b"cart-1"
    await talking.write(b"tea")
    assert await talking.read() == b"cart-1 tea"

    front.kill("cart-1")

    assert {await end_of(counting), await end_of(talking)} <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL}
    assert await client.say(x_session_id=key) == second
    assert await client.count(x_session_id=key).read() == second
    again = client.talk(x_session_id=key)
    await again.write(b"tea")
    assert await again.read() == second + b" tea"


async def test_a_stream_outlives_the_time_limit_of_requests(limited: Client):
    stream = limited.count(x_session_id=limited.front.key_of("cart-2"))
    begin = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() < begin + 1.5:
        assert await stream.read() == b"cart-2"
    stream.cancel()


async def test_a_call_under_way_is_repeated_only_with_an_idempotency_key(client: Client):
    front = client.front
    key = front.key_of("cart-3")
    second = front.order_of(key)[1]
    plain = client.say(x_session_id=key, x_request="plain", x_wait="1")
    keyed = client.say(x_session_id=key, x_request="keyed", x_wait="1", idempotency_key="1")
    await until(lambda: front.who_saw("plain") == ["cart-3"] and "cart-3" in front.who_saw("keyed"), what="both there")

    front.kill("cart-3")
    front.answer_now()

    assert await keyed == second.encode()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await plain
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert Counter(front.who_saw("plain")) == {"cart-3": 1}
