"""Fixtures for all tests: etcd, shared by the tests of one worker or private to a test, and a pool name of its own."""

import os
import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from hypothesis import settings

from statesync.etcd import EtcdClient
from tests.harness.etcd import EtcdServer, running_etcd

# Machines are shared: how long an example takes says nothing about the code.
# In CI the examples are the same each time, so that it judges the change and not its luck; elsewhere they are new ones.
settings.register_profile("understudy", deadline=None, print_blob=True, derandomize="CI" in os.environ)
settings.load_profile("understudy")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """What ``-n auto`` means: a worker per core, and three at the least, since most tests wait for real servers."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # xdist reads it itself
    return max(3, len(os.sched_getaffinity(0)))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def etcd() -> AsyncIterator[EtcdServer]:
    """One etcd server for all tests of this worker: never stop it, and stay under your own ``pool_name``."""
    async with running_etcd() as server:
        yield server


@pytest_asyncio.fixture
async def etcd_server() -> AsyncIterator[EtcdServer]:
    """An etcd server of this test alone, to be killed, stopped and restarted at will."""
    async with running_etcd() as server:
        yield server


@pytest.fixture
def pool_name() -> str:
    """A pool name that no other test uses."""
    return f"pool-{uuid.uuid4().hex[:12]}"


@pytest_asyncio.fixture
async def client(etcd: EtcdServer) -> AsyncIterator[EtcdClient]:
    """A client of the shared server."""
    async with etcd.client() as shared:
        yield shared
