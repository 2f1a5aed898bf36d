"""Drills of a part of a member, of the witness and of everything: what they kill, what they refuse, what is judged."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.deploy.drill.test_drill import IN_SYNC, at_rest
from tests.harness.netns import network, unable
from understudy.deploy.cli.commands_drill import KINDS, drill
from understudy.deploy.common.errors import DeployError, NegativeAnswer
from understudy.deploy.common.layout import (
    PROCESSES_FILE,
    ControlAddresses,
    FrontAddresses,
    Layout,
    SiteNetwork,
    is_held,
    write_atomically,
)
from understudy.deploy.common.options import PoolLocation
from understudy.deploy.drill.conditions import ClientView, DrillKind, PoolSnapshot, all_sites, missed, refusals
from understudy.deploy.drill.drill import Drill
from understudy.deploy.drill.fault_injectors import CommandInjector, LocalInjector
from understudy.deploy.drill.settings import DrillSettings
from understudy.deploy.local.local_pool import as_json_text
from understudy.deploy.local.processes import Process, ProcessState, Program
from understudy.statesync.etcd.client import EndpointStatus, EtcdClient
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.pool.spec_parts import Objectives
from understudy.statesync.pool.state import At
from understudy.telemetry.slo.statement import FAILURES

ETCDS = tuple(f"http://127.0.0.1:{port}" for port in (11, 12, 13))
NAMES = ("etcd-1", "etcd-2", "etcd-3", "control-1", "front-1", "cart-1/app", "cart-1/sidecar")


def layout_of(*networks: SiteNetwork, sites: tuple[str, ...] = ("east", "west", "")) -> Layout:
    controls = (ControlAddresses("control-1", "", ""),)
    front = FrontAddresses("front-1", "", "")
    return Layout("cart", os.getpid(), ETCDS, (), controls, front, (), etcd_sites=sites, networks=networks)


@asynccontextmanager
async def children(directory: Path) -> AsyncIterator[dict[str, asyncio.subprocess.Process]]:
    """A process that repeats what it is told under each name, noted as those of a local pool are."""
    pipe = asyncio.subprocess.PIPE
    found = {name: await asyncio.create_subprocess_exec("cat", stdin=pipe, stdout=pipe) for name in NAMES}
    noted = [
        Process(Program(name, ("cat",), directory / "log", 0), ProcessState.RUNNING, child.pid)
        for name, child in found.items()
    ]
    write_atomically(directory / PROCESSES_FILE, as_json_text(tuple(noted)))
    try:
        yield found
    finally:
        for child in found.values():
            if child.returncode is None:
                child.kill()
            await child.wait()


async def killed(processes: dict[str, asyncio.subprocess.Process], *names: str) -> None:
    """Wait until these processes have been killed, and the others answer."""
    async with asyncio.timeout(60):
        assert {await processes[name].wait() for name in names} == {-9}
        for name in set(processes) - set(names):
            there, back = processes[name].stdin, processes[name].stdout
            assert there is not None
            assert back is not None
            there.write(b"well\n")
            assert await back.readline() == b"well\n"


@pytest.mark.parametrize("part", ["app", "sidecar"])
async def test_one_process_of_a_member_is_killed_alone(tmp_path: Path, part: str) -> None:
    async with children(tmp_path) as processes:
        await LocalInjector(tmp_path, layout_of()).kill_part("cart-1", part)
        await killed(processes, f"cart-1/{part}")
        assert [is_held(tmp_path, f"cart-1/{one}") for one in ("app", "sidecar")] == [part == "app", part == "sidecar"]


async def test_the_witness_alone_is_killed_and_kept_down_until_the_fault_is_undone(tmp_path: Path) -> None:
    layout = layout_of()
    async with children(tmp_path) as processes:
        injector = LocalInjector(tmp_path, layout)
        await injector.keep_away(layout.witness)
        await killed(processes, "etcd-3")
        assert [is_held(tmp_path, name) for name in ("etcd-3", "etcd-1", "cart-1/app")] == [True, False, False]
        await injector.undo()
        assert not is_held(tmp_path, "etcd-3")


async def test_everything_but_front_envoys_is_killed_at_once(tmp_path: Path) -> None:
    async with children(tmp_path) as processes:
        await LocalInjector(tmp_path, layout_of()).kill_all("east,west", ["cart-1"])
        await killed(processes, *(name for name in NAMES if name != "front-1"))
        assert not is_held(tmp_path, "etcd-3")


@pytest.mark.skipif(bool(unable()), reason=unable())
async def test_a_link_is_cut_in_both_directions_and_the_witness_is_away_until_both_are_undone(tmp_path: Path) -> None:
    with network(["east", "west", "witness"]) as net:
        layout = layout_of(*(SiteNetwork(party, net.namespace(party), at) for party, at in net.addresses.items()))

        async def drops(party: str, source: str) -> bool:
            rules = await asyncio.create_subprocess_exec(
                *net.inside(party), "iptables", "-w", "-S", "INPUT", stdout=asyncio.subprocess.PIPE
            )
            return f"-s {net.addresses[source]}/32 -j DROP" in (await rules.communicate())[0].decode()

        async with children(tmp_path) as processes:
            injector = LocalInjector(tmp_path, layout)
            await injector.cut_without(layout.witness, "east", "west")
            await killed(processes, "etcd-3")
            assert [await drops("west", "east"), await drops("east", "west")] == [True, True]
            await injector.undo()
            assert [await drops("west", "east"), await drops("east", "west")] == [False, False]
            assert not is_held(tmp_path, "etcd-3")


async def test_the_operators_command_gets_the_member_the_witness_or_both_sites_once(tmp_path: Path) -> None:
    note = tmp_path / "note"
    by_name = CommandInjector(f"sh -c 'echo {{name}} >> {note}'")
    await by_name.kill_part("cart-1", "app")
    await by_name.keep_away("witness")
    await by_name.kill_all("east,west", ["cart-1"])
    await CommandInjector(f"sh -c 'echo {{from}} {{to}} >> {note}'").cut_without("witness", "east", "west")
    assert note.read_text().splitlines() == ["cart-1", "witness", "east,west", "east west"]


@pytest.mark.parametrize("kind", [DrillKind.WITNESS, DrillKind.LINK_WITNESS])
def test_etcd_must_survive_the_loss_of_the_witness(kind: DrillKind) -> None:
    two = [EndpointStatus(f"127.0.0.1:{port}", "3.5.9", port == 1, 0, ()) for port in (1, 2)]
    (reason,) = refusals(PoolSnapshot(at_rest(), IN_SYNC, etcd=two), kind)
    assert "needs 3" in reason


def test_all_sites_are_those_that_have_members() -> None:
    state = at_rest()
    with pytest.raises(NegativeAnswer, match="have no site"):
        all_sites(state)
    for name, site in (("cart-1", "west"), ("cart-2", "east")):
        state.members[name] = At(replace(state.members[name].record, site=site), 1)
    assert all_sites(state) == "east,west"


def test_a_pool_that_cannot_serve_is_judged_by_what_it_lost_alone() -> None:
    seen = ClientView(100, 50, gap=(9e3, 9e3, 9e3), lost_writes=1)
    assert len(missed(seen, Objectives())) == 3
    (text,) = missed(seen, Objectives(), judge_service=False)
    assert text.startswith("rpo_sync_writes: 1 lost")


def a_drill(directory: Path, layout: Layout | None, **options: str | DrillKind) -> Drill:
    etcd = EtcdSettings(ETCDS)
    return Drill(DrillSettings(**options), PoolLocation(etcd, "cart", directory, layout), EtcdClient(ETCDS), print)


@pytest.mark.parametrize("kind", [DrillKind.WITNESS, DrillKind.LINK_WITNESS])
async def test_a_witness_that_a_command_takes_away_needs_a_command_that_brings_it_back(
    tmp_path: Path, kind: DrillKind
) -> None:
    with pytest.raises(DeployError, match="also needs --undo"):
        a_drill(tmp_path, None, kind=kind, command="stop")
    a_drill(tmp_path, None, kind=kind, command="stop", undo="start")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["witness", "--member", "cart-1"], "--member has no effect"),
        (["all-sites", "--site", "east"], "--site has no effect"),
        (["witness", "--link", "east,west"], "--link has no effect"),
        (["link-witness", "--link", "east"], "names two sites"),
        (["link-witness", "--command", "cut {from}", "--undo", "mend {from} {to}"], "does not say which direction"),
        (["app", "--command", "kill it"], "does not name its target"),
    ],
)
def test_options_of_another_kind_are_refused(arguments: list[str], reason: str) -> None:
    result = CliRunner().invoke(drill, [*arguments, "--pool", "cart"])
    assert (result.exit_code, reason in result.output) == (2, True), result.output


def test_each_row_of_the_statement_has_a_drill_of_its_own() -> None:
    kinds = [failure.drill for failure in FAILURES]
    assert len(set(kinds)) == len(kinds)
    assert set(kinds) == set(KINDS) - {"drain", "rolling"}
