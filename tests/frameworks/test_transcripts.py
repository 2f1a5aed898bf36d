"""Web frameworks, unmodified: the same application gives the same answers with a sidecar as with a real Redis."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from tests.frameworks.applications import EXAMPLES_OF_ALL, OTHER_STORES, Example, running
from tests.frameworks.transcript import SESSION_SECONDS, refused, transcript
from tests.harness.redis_client import redis_client
from tests.harness.sidecars import sidecar_pool
from tests.harness.waiting import free_port, until
from tests.statesync.redis.server import running_redis

pytestmark = [pytest.mark.heavy, pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def redis(tmp_path_factory) -> Iterator[str]:
    port = free_port()
    with running_redis(tmp_path_factory.mktemp("redis"), port):
        yield f"redis://127.0.0.1:{port}/0"


async def expires(address: str) -> bool:
    """Whether sessions of both members expire: until their clocks agree, none does."""
    async with redis_client(address) as client:
        for number in range(8):
            await client("SET", f"key-{number}", "v", "PX", 1)
        await asyncio.sleep(0.1)
        return not await client("EXISTS", *(f"key-{number}" for number in range(8)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sidecar(etcd) -> AsyncIterator[str]:
    async with sidecar_pool(etcd, f"pool-{uuid.uuid4().hex[:12]}") as pool:
        await pool.start("a", "b")
        await pool.settle(("a", "b"), ("b", "a"))
        await until(lambda: expires(pool.members["a"].redis), 90, "the members agree on the time")
        yield f"redis://{pool.members['a'].redis}/0"


def _case(example: Example) -> object:
    """One store for each framework in every run; its others in the nightly one."""
    marks = [pytest.mark.nightly] if example in OTHER_STORES else []
    return pytest.param(example, id=example.name, marks=marks)


@pytest.mark.parametrize("example", map(_case, EXAMPLES_OF_ALL))
async def test_the_answers_are_the_same_with_a_sidecar_as_with_redis(example, redis, sidecar, tmp_path):
    async with AsyncExitStack() as stack:
        urls = []
        for variable, store in (("REDIS_URL", redis), ("UNDERSTUDY_REDIS_URL", sidecar)):
            (directory := tmp_path / variable).mkdir()
            environment = {variable: store, "SESSION_SECONDS": str(SESSION_SECONDS)}
            urls.append(await stack.enter_async_context(running(example, directory, **environment)))
        expected, seen = await asyncio.gather(*(transcript(url, example.cookie) for url in urls))
        if not example.keeps_elsewhere:
            acknowledged, kept = await refused(urls[1], example.cookie)
            assert acknowledged == kept, "an item that was not stored was acknowledged"
    assert seen == expected
    statuses = {answer[3] for answers in expected.values() for answer in answers}
    assert statuses == {200}
    assert _items(expected["its session expires"], 1) == '["tea"]'
    assert _items(expected["its session expires"], -1) == '["coffee"]'
    assert "other" not in _items(expected["shops"], -1)


def _items(answers: list, number: int) -> str:
    return answers[number][5].partition('"items":')[2].strip().rstrip("}\n ")
