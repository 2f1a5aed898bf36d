"""A pool under load is upgraded from the released engine to this one, member by member, and back: no client notices.

The released code is the commit before replication between members. It runs with the packages that are installed here.
In a checkout without its history (a shallow clone, an archive) these tests are skipped.

The fork server has loaded this release: programs of the other one are started in the usual way.
"""

import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.harness import forkserver
from tests.harness.commands import ROOT
from tests.harness.local_pools import killed_at_the_end, settled
from tests.harness.sidecars import PATIENT
from tests.harness.waiting import until
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.load.history_checker import check_history
from understudy.deploy.load.http_load import Load
from understudy.deploy.local import local_pool
from understudy.deploy.local.processes import Program
from understudy.proxy.front.pdeathsig import tethered
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.ownership import is_valid
from understudy.statesync.pool.spec_reader import parse_spec

RELEASED = "1f8a33fe37b31131caf16793a8bee78888d98ea3"
PACKAGES = ("understudy", "xds", "proxy", "statesync", "telemetry", "deploy")
SLOTS = 48
SPEC = parse_spec(f"pool: cart\nslots: {SLOTS}\ncopies: 3\n{PATIENT}", where="test")
STOP_SECONDS = 30.0
"""Longer than a sidecar tries to hand its slots over (10 s)."""
RUN = (
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module(sys.argv.pop(1), None, '__main__', True)"
)
"""Runs a module with the packages of a folder; both are the first arguments."""


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the released packages."""
    command = ("git", "-C", str(ROOT), "archive", "--format=tar", RELEASED, *PACKAGES)
    found = subprocess.run(command, capture_output=True, check=False)
    if found.returncode:
        pytest.skip(f"the released code is not in this checkout: {found.stderr.decode().strip()}")
    home = tmp_path_factory.mktemp("released")
    subprocess.run(("tar", "-x", "-C", home), input=found.stdout, check=True)
    package = home / "understudy"
    for name in PACKAGES[1:]:
        (home / name).rename(package / name)
    return home


def started(program: Path, *arguments: str) -> list[str]:
    """How a program of a pool is started."""
    return tethered(program, *arguments) if RUN in arguments else forkserver.forked_program(program, *arguments)


class Releases:
    """A local pool whose programs are of one release or the other; its front Envoy is always of this one."""

    def __init__(self, pool: local_pool.LocalPool, etcd: EtcdClient, released: Path) -> None:
        self.pool, self.etcd = pool, etcd
        self._released = released
        self._programs: dict[str, Program] = {}

    def planned(self, programs: Sequence[Program]) -> list[Program]:
        """The programs of a pool, as those of the released engine."""
        self._programs = {program.name: replace(program, grace=STOP_SECONDS) for program in programs}
        return [self._of(name, old=name.startswith(("control", "cart"))) for name in self._programs]

    def _of(self, name: str, *, old: bool) -> Program:
        program = self._programs[name]
        if not old:
            return program
        python, path, module_flag, module, *arguments = program.command
        assert (path, module_flag) == ("-P", "-m")
        return replace(program, command=(python, path, "-c", RUN, str(self._released), module, *arguments))

    async def replace_control(self, *, old: bool) -> None:
        """The control server ends, and one of the other release begins."""
        await self._replace(self.pool.layout.controls[0].name, old=old)

    async def replace_member(self, member: str, *, old: bool) -> None:
        """A member is stopped as Kubernetes stops a pod, and one of the other release begins under its name."""
        app, sidecar = self.pool.member_processes(member)
        await self.pool.processes.terminate(sidecar)
        await self._replace(app, sidecar, old=old)
        await self._serves(member)

    async def kill(self, member: str) -> None:
        """``kill -9`` of a member; the same release begins again when the others serve its slots."""
        programs = self.pool.member_processes(member)
        self.pool.processes.kill(*programs)

        async def gone() -> bool:
            state, _ = await read_pool(self.etcd, "cart")
            return member not in {at.record.active for at in state.owners.values()}

        await until(gone, 60, f"others serve the slots of {member}")
        await self.pool.processes.start_again(*programs)
        await self._serves(member)

    async def _replace(self, *names: str, old: bool) -> None:
        await self.pool.processes.terminate(*names)
        await self.pool.processes.start(*(self._of(name, old=old) for name in names))

    async def _serves(self, member: str) -> None:
        """Wait until a member is registered as able to serve."""

        async def up() -> bool:
            state, _ = await read_pool(self.etcd, "cart")
            return str(state.members[member].record.state) == "UP"

        await until(up, 60, f"{member} is up")

    async def sets(self) -> Counter[int]:
        """How many slots have a valid sync record, by the processes in it."""
        state, _ = await read_pool(self.etcd, "cart")
        valid = [at for slot, at in state.sync_sets.items() if is_valid(state.owners[slot].record, at)]
        return Counter(len(at.record.members) for at in valid)

    @asynccontextmanager
    async def under_load(self) -> AsyncIterator[None]:
        """Clients make requests meanwhile. None has failed, and each session has each acknowledged write once."""
        load = Load(self.pool.layout.front_url, sessions=40, rate=25.0)
        try:
            await load.open_sessions()
            load.start()
            await until(lambda: len(load.history) > 40, 60, "clients make requests")
            yield
            await load.stop()
            result = check_history(load.history, await load.final_contents(), pacing=load.pacing)
        finally:
            await load.close()
        assert (result.lost_writes, result.duplicated_writes, result.stale_reads, result.unexplained_items) == (0,) * 4
        assert result.failures == ()
        assert result.acknowledged_writes > 100


@asynccontextmanager
async def released_pool(home: Path, released: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Releases]:
    """A pool of three members of the released engine."""
    forkserver.start()
    made = local_pool.programs
    pool = local_pool.LocalPool(local_pool.LocalSettings(home, SPEC, environment={}))
    async with EtcdClient(pool.etcd_endpoints) as etcd:
        releases = Releases(pool, etcd, released)
        monkeypatch.setattr(local_pool, "programs", lambda *plan: releases.planned(made(*plan)))
        monkeypatch.setattr("understudy.deploy.local.processes.tethered", started)
        async with pool, killed_at_the_end(pool):
            await settled(pool.layout, etcd)
            yield releases


@pytest.mark.nightly
async def test_a_pool_is_upgraded_and_rolled_back_member_by_member_and_no_client_notices(
    tmp_path: Path, released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with released_pool(tmp_path, released, monkeypatch) as pool:
        assert await pool.sets() == {}
        async with pool.under_load():
            await upgrade(pool)
        async with pool.under_load():
            await roll_back(pool)


async def upgrade(pool: Releases) -> None:
    await pool.replace_control(old=False)
    await pool.replace_member("cart-1", old=False)
    await settled(pool.pool.layout, pool.etcd)
    await pool.kill("cart-1")
    await pool.replace_member("cart-2", old=False)
    await pool.replace_member("cart-3", old=False)
    await settled(pool.pool.layout, pool.etcd)

    async def protected() -> bool:
        return await pool.sets() == {3: SLOTS}

    await until(protected, 60, "every slot has three copies")
    await pool.kill("cart-1")
    await settled(pool.pool.layout, pool.etcd)


async def roll_back(pool: Releases) -> None:
    for member in ("cart-3", "cart-2", "cart-1"):
        await pool.replace_member(member, old=True)
    await pool.replace_control(old=True)
    await settled(pool.pool.layout, pool.etcd)
    assert await pool.sets() == {}
