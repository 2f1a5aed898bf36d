"""Drills of a cut link: which link, in which direction, and that packets are lost and come through again."""

import contextlib
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.harness.netns import Network, network, unable
from understudy.deploy.cli.commands_drill import drill
from understudy.deploy.cli.commands_local import up
from understudy.deploy.common.errors import DeployError, NegativeAnswer
from understudy.deploy.common.layout import FrontAddresses, Layout, SiteNetwork
from understudy.deploy.drill.conditions import ClientView, DrillKind, missed
from understudy.deploy.drill.fault_injectors import CommandInjector, LocalInjector
from understudy.deploy.drill.link import Link, by_site, link_of, taken
from understudy.deploy.drill.settings import DrillSettings
from understudy.deploy.local.local_layout import ETCD_PEERS_FILE, LocalSettings, plan_layout
from understudy.deploy.local.ports import PortPicker
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import FailoverRecord, Member, MemberState
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Objectives
from understudy.statesync.pool.state import At, PoolState


def pool_on(*sites: str) -> PoolState:
    state = PoolState(PoolKeys("cart"))
    for number, site in enumerate(sites, 1):
        name = f"cart-{number}"
        state.members[name] = At(Member(name, f"{name}-a", "", "", MemberState.UP, site=site), 1)
    return state


def test_each_pair_of_sites_has_its_turn() -> None:
    state = pool_on("east", "west", "north")
    assert [link_of(state, (), number) for number in range(4)] == [
        "east,north",
        "east,west",
        "north,west",
        "east,north",
    ]
    assert link_of(state, ("west", "east"), 5) == "west,east"


@pytest.mark.parametrize(
    ("sites", "wanted", "reason"),
    [
        (("east", "east"), (), "no two sites"),
        (("", ""), (), "no two sites"),
        (("east", "west"), ("east", "south"), "no member on site 'south'; its sites are east, west"),
    ],
)
def test_a_link_needs_two_sites_that_have_members(sites, wanted, reason) -> None:
    with pytest.raises(NegativeAnswer, match=reason):
        link_of(pool_on(*sites), wanted, 0)


def test_slots_are_counted_by_the_site_that_lost_them_in_takeovers() -> None:
    before, state = pool_on("east", "west", "west"), pool_on("east", "west", "west")
    for trace, source, planned, slots in (
        ("a", "cart-1", False, (1, 2)),
        ("b", "cart-2", False, (3,)),
        ("c", "cart-3", False, (4,)),
        ("d", "cart-3", True, (5, 6)),
    ):
        record = FailoverRecord(trace, "cart-9", source, "silent", planned, slots, slots, 1.0)
        state.failovers[trace] = At(record, 2)
    before.failovers["c"] = state.failovers["c"]
    assert by_site(taken(state, before), state) == {"east": 2, "west": 1}


def test_a_second_writer_misses_every_objective() -> None:
    assert missed(ClientView(9, 0, second_writers=0), Objectives()) == []
    assert missed(ClientView(9, 0, second_writers=2), Objectives())[0].startswith("two writers: 2 ")


def test_the_command_that_repeats_a_drill_names_the_link_and_the_direction() -> None:
    settings = DrillSettings(DrillKind.LINK, rate=30, one_way=True, command="cut {from} {to}", undo="mend {from} {to}")
    assert settings.command_again("cart", "east,west") == (
        "understudy drill link --link east,west --direction one-way --load 30 --for 5s --command COMMAND --undo UNDO "
        "--pool cart"
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["kill", "--link", "east,west"], "it is for link and link-witness"),
        (["link-witness", "--direction", "one-way"], "it is for link"),
        (["link", "--link", "east"], "names two sites"),
        (["link", "--link", "east,east"], "names two sites"),
        (["link", "--direction", "one-way"], "needs --link FROM,TO"),
        (["link", "--command", "cut {from}", "--undo", "mend {from} {to}"], "does not say which direction"),
    ],
)
def test_options_that_name_no_link_are_refused(arguments, reason) -> None:
    result = CliRunner().invoke(drill, [*arguments, "--pool", "cart"])
    assert (result.exit_code, reason in result.output) == (2, True), result.output


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--links"], "needs two sites"),
        (["--links", "--sites", "east,witness"], "another name"),
        (["--links", "--sites", "east,west", "-f", "a.yaml", "-f", "b.yaml"], "one pool"),
    ],
)
def test_networks_are_made_for_two_sites_of_one_pool(arguments, reason) -> None:
    result = CliRunner().invoke(up, arguments)
    assert (result.exit_code, reason in result.output) == (2, True), result.output


async def test_the_operators_command_runs_once_for_each_direction_and_is_undone(tmp_path: Path) -> None:
    note = tmp_path / "note"
    injector = CommandInjector(
        f"sh -c 'echo cut {{from}} {{to}} >> {note}'", f"sh -c 'echo mend {{from}} {{to}} >> {note}'"
    )
    for source, target in Link("east,west").directions:
        await injector.cut(source, target)
    await injector.undo()
    await injector.undo()
    assert note.read_text().splitlines() == ["cut east west", "cut west east", "mend east west", "mend west east"]
    assert Link("east,west", both=False).directions == (("east", "west"),)


def layout_of(*networks: SiteNetwork) -> Layout:
    return Layout("cart", 1, (), (), (), FrontAddresses("front-1", "", ""), (), networks=networks)


async def test_a_pool_without_networks_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="--links"):
        await LocalInjector(tmp_path, layout_of()).cut("east", "west")


def test_networks_are_in_the_notes_of_the_pool() -> None:
    layout = layout_of(SiteNetwork("east", "understudy-1-up-east", "198.18.0.1"))
    assert Layout.decode(layout.encode()) == layout


@pytest.mark.parametrize(("links", "saved", "how"), [(True, "127.0.0.1", "without"), (False, "198.18.0.1", "with")])
def test_data_of_etcd_is_used_only_at_the_addresses_that_it_knows(tmp_path: Path, links, saved, how) -> None:
    (tmp_path / ETCD_PEERS_FILE).write_text(f'["http://{saved}:1", "http://{saved}:2", "http://{saved}:3"]')
    settings = LocalSettings(tmp_path, PoolSpec(pool="cart"), etcds=3, sites=("east", "west"), links=links)
    ports = PortPicker()
    with pytest.raises(DeployError, match=f"a pool {how} --links"):
        plan_layout(settings, ports)
    ports.close()


def sent(net: Network, source: str, target: str) -> bool:
    """Whether a packet from one party arrives at another."""
    with net.entered(target):
        there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with net.entered(source):
        here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with there, here:
        there.bind((net.addresses[target], 7000))
        there.settimeout(0.1)
        for _ in range(10):
            here.sendto(b"x", (net.addresses[target], 7000))
            with contextlib.suppress(TimeoutError):
                return there.recv(1) == b"x"
    return False


@pytest.mark.skipif(bool(unable()), reason=unable())
async def test_a_cut_loses_packets_of_one_direction_until_it_is_undone(tmp_path: Path) -> None:
    with network(["east", "west"]) as net:
        notes = [SiteNetwork(party, net.namespace(party), address) for party, address in net.addresses.items()]
        injector = LocalInjector(tmp_path, layout_of(*notes))
        assert sent(net, "east", "west")
        await injector.cut("east", "west")
        assert not sent(net, "east", "west")
        assert sent(net, "west", "east")
        await injector.undo()
        assert sent(net, "east", "west")
