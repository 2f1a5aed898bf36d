"""Fixtures for all tests: etcd, shared by the tests of one worker or private to a test, and a pool name of its own."""

import os
import sys
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from hypothesis import settings

from statesync.etcd import EtcdClient
from tests.harness import forkserver
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


def pytest_collection_finish() -> None:
    """Have the fork server load while there is still something else to do, if a module with tests has use for it."""
    if any(
        vars(module).get("forked") is forkserver.forked
        for module in list(sys.modules.values())
        if module is not forkserver
    ):
        forkserver.start()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Begin when it has: it is not to take time from a test."""
    forkserver.ready()


@pytest.fixture(autouse=True, scope="module")
def forked_local_pools(request: pytest.FixtureRequest) -> Iterator[None]:
    """Local pools that a test runs within its own process have their programs from the fork server."""
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(request.module, "LocalPool"):
            patch.setattr("deploy.processes.tethered", forkserver.forked_program)
        yield


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
