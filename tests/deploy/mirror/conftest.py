"""Two etcds for the tests of a worker: east is the shared one, west another."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.deploy.mirror.pairs import Pair, paired
from tests.harness.etcd import EtcdServer, running_etcd


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def west_etcd() -> AsyncIterator[EtcdServer]:
    async with running_etcd(timing=("100", "500")) as server:
        yield server


@pytest_asyncio.fixture
async def pair(etcd: EtcdServer, west_etcd: EtcdServer) -> AsyncIterator[Pair]:
    async with paired(etcd, west_etcd) as pair:
        yield pair
