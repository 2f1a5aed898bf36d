"""Fixtures for all tests: etcd, shared by the tests of one worker or private to a test, and a pool name of its own."""

import contextlib
import gc
import importlib
import os
import sys
import uuid
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import settings

from tests.harness import forkserver, quick
from tests.harness.etcd import EtcdServer, running_etcd
from tests.harness.examples import NIGHTLY, examples
from understudy.statesync.etcd.client import EtcdClient

# Machines are shared: how long an example takes says nothing about the code.
# In CI the examples are the same each time, so that it judges the change and not its luck; elsewhere they are new ones.
settings.register_profile(
    "understudy",
    deadline=None,
    print_blob=True,
    derandomize="CI" in os.environ and not NIGHTLY,
    max_examples=examples(100),
)
settings.load_profile("understudy")


# One processor for etcd, here and in local pools: else its idle threads look for work, a fifth of what it costs.
os.environ.setdefault("GOMAXPROCS", "1")

TESTS = Path(__file__).parent
LONG = {
    *("test_local_pool.py", "test_drill.py", "test_tcp_pool.py", "test_pool_faults.py", "test_observability.py"),
    *("test_slo_requests.py", "test_traces.py", "test_broken_streams.py", "test_rollout.py", "test_rendered_runs.py"),
    *("test_gateway.py", "test_sidecars.py", "test_security_encryption.py", "test_security_etcd.py"),
    *("test_two_releases.py", "test_wheel.py"),
    *("test_browser.py", "test_mcp.py", "test_rebalance.py", "test_run_injected.py", "test_front_of_pools.py"),
    *("test_blue_green.py", "test_site_take_over.py", "test_two_sites.py", "test_many_pools.py", "test_etcd_sites.py"),
    *("test_lease.py", "test_election.py", "test_controller.py"),
}
"""Files with tests that take many seconds, most of which they wait."""
LONG_FOLDERS = {"faults", "replicas", "frameworks"}
"""Folders of such tests."""
_gc_unfreeze = gc.unfreeze
WORKERS = 4
"""Workers at the least: a test with real servers waits for most of its time.

Seven are a tenth quicker on two quick cores. Where cores are slow or shared, the programs of seven wait for each other
until one is taken for dead.
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only the tests that start no process")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``--quick`` leave out files whose tests can start processes."""
    if config.getoption("quick") and collection_path.suffix == ".py" and quick.leaves_out_file(collection_path):
        return True
    return None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """What ``-n auto`` means: a worker per core, and some more if most tests wait for real servers."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # xdist reads it itself
    cores = len(os.sched_getaffinity(0))
    return cores if config.getoption("quick") else max(WORKERS, cores)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Leave the modules of all tests out of every later garbage collection: looking through them takes 0.25 s."""
    gc.disable()
    try:
        _import_own_share_first(session.config)
        return (yield)
    finally:
        gc.enable()
        _freeze()


def _import_own_share_first(config: pytest.Config) -> None:
    """Import the test modules in an order of this worker's own: the share that only it begins with, then the others'.

    In a fresh checkout pytest has to rewrite and compile them, which takes 15 s of CPU, and saves the result. All
    workers would do that for all modules, since they come to each one at the same time.
    """
    if config.getoption("quick") or not hasattr(config, "workerinput"):
        return
    folders = [config.rootpath / argument for argument in config.args]
    files = [path for path in sorted(TESTS.rglob("test_*.py")) if any(map(path.is_relative_to, folders))]
    begin = len(files) * int(config.workerinput["workerid"].removeprefix("gw")) // config.workerinput["workercount"]
    for path in (*files[begin:], *files[:begin]):
        if (path.parent / "__init__.py").exists():
            with contextlib.suppress(Exception, pytest.skip.Exception):  # pytest imports it again and reports it
                importlib.import_module(".".join(path.relative_to(TESTS.parent).with_suffix("").parts))


def _freeze() -> None:
    gc.collect()
    gc.freeze()
    gc.unfreeze = _unfreeze


def _unfreeze() -> None:
    """What ``gc.unfreeze`` is from then on; to ask ``gc.get_freeze_count`` instead takes 50 ms, for each module."""
    gc.unfreeze = _gc_unfreeze
    gc.unfreeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have every worker begin its long tests early and one by one, so that none of them is left for the end.

    xdist hands out equal shares of the order, and who is done takes from the end of another's share. Tests of a module
    that share something, such as a pool, stay together: each worker that has one of them makes its own.
    """
    if config.getoption("quick"):
        items[:] = filter(quick.is_quick, items)
    workers = getattr(config, "workerinput", {}).get("workercount", 0)
    if not workers:
        return
    together = _together([item for item in items if _is_long(item)])
    short = _together([item for item in items if not _is_long(item)])
    shares = [
        _mixed(together[number::workers], short[len(short) * number // workers : len(short) * (number + 1) // workers])
        for number in range(workers)
    ]
    items[:] = [item for share in shares for item in share]


def _is_long(item: pytest.Item) -> bool:
    return item.path.parent.name in LONG_FOLDERS or item.path.name in LONG


def _together(items: list[pytest.Item]) -> list[list[pytest.Item]]:
    """The tests in their order; those of a module that share a fixture as one."""
    found: dict[object, list[pytest.Item]] = {}
    for item in items:
        found.setdefault(item.path if _shares(item) else item, []).append(item)
    return list(found.values())


def _shares(item: pytest.Item) -> bool:
    """Whether a test uses a fixture of its module, in the scope of the module."""
    fixtures = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009 - no public way tells the scopes
    return any(one[-1].scope == "module" and one[-1].baseid == item.nodeid.partition("::")[0] for one in fixtures)


def _mixed(long: list[list[pytest.Item]], short: list[list[pytest.Item]]) -> list[pytest.Item]:
    """Both in their order, the long ones evenly among the first half of the short ones.

    Tests that share something stay together here too: pytest ends what a module shares before a test of another one.
    """
    placed = [(number / len(long) / 2, one) for number, one in enumerate(long)]
    placed += [(number / len(short), one) for number, one in enumerate(short)]
    return [item for _, one in sorted(placed, key=lambda place: place[0]) for item in one]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have the fork server load while there is still something else to do, if a module with tests has use for it."""
    if session.config.getoption("quick"):
        quick.forbid_processes()
    elif any(
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
def modules_left_out_of_collections() -> None:
    """Leave them out again: a control server that ran in this process has undone it."""
    if gc.unfreeze is _gc_unfreeze:
        _freeze()


@pytest.fixture(autouse=True, scope="module")
def forked_local_pools(request: pytest.FixtureRequest) -> Iterator[None]:
    """Local pools that a test runs within its own process have their programs from the fork server.

    A module runs one if it names ``LocalPool`` or what makes such pools for it.
    """
    with pytest.MonkeyPatch.context() as patch:
        if {"LocalPool", "DistantPools", "open_desk"} & vars(request.module).keys():
            patch.setattr("understudy.deploy.local.processes.tethered", forkserver.forked_program)
        yield


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def etcd() -> AsyncIterator[EtcdServer]:
    """One etcd server for all tests of this worker: never stop it, and stay under your own ``pool_name``."""
    async with running_etcd(timing=("100", "500")) as server:
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
