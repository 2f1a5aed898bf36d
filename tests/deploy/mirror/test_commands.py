"""``understudy mirror`` and ``understudy home`` as an operator runs them, between two etcds without members."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from tests.deploy.mirror.pairs import Pair
from tests.harness.commands import Commands, commands
from tests.harness.etcd import EtcdServer
from tests.harness.waiting import free_port, until
from understudy.statesync.pool.home import Role


class Operator:
    """Runs commands for the pool of a pair."""

    def __init__(self, shell: Commands, pair: Pair, east: EtcdServer, west: EtcdServer) -> None:
        self.shell, self.pool = shell, pair.keys.pool
        self.addresses = {"east": east.endpoint, "west": west.endpoint}

    def at(self, site: str, *arguments: str, peer: bool = True) -> tuple[str, ...]:
        other = "west" if site == "east" else "east"
        place = ("--pool", self.pool, "--etcd", self.addresses[site])
        return (*arguments, *place, *(("--peer", f"{other}={self.addresses[other]}") if peer else ()))

    async def home(self, site: str, *arguments: str, peer: bool = True) -> tuple[int, str]:
        return await self.shell.run(*self.at(site, "home", *arguments, peer=peer))

    async def mirror(self, site: str, *arguments: str) -> None:
        await self.shell.start(f"mirror-{site}", *self.at(site, "mirror", "--site", site, *arguments))


@pytest_asyncio.fixture
async def operator(pair: Pair, etcd: EtcdServer, west_etcd: EtcdServer, tmp_path: Path) -> AsyncIterator[Operator]:
    for side in (pair.east, pair.west):
        await side.client.delete(pair.keys.home)
    async with commands(tmp_path) as shell:
        yield Operator(shell, pair, etcd, west_etcd)


async def test_a_pair_from_its_beginning_to_a_move_and_back_to_an_ordinary_pool(operator: Operator, pair: Pair) -> None:
    code, said = await operator.home("east", "pair", "--site", "east", "--mirror", "west", peer=False)
    assert (code, "at home on east, with a mirror on west" in said) == (0, True), said
    metrics = f"127.0.0.1:{free_port()}"
    await operator.mirror("west", "--metrics", metrics)
    await operator.mirror("east")
    await pair.same(await pair.write(1, "copied"))
    await pair.same(await pair.write(1, "kept"))

    async def calm() -> str:
        code, said = await operator.home("west", "status")
        return said if code == 0 else ""

    shown = await until(calm, 40, "nothing is degraded")
    assert f"pool {operator.pool} is at home on east\nsite west: mirror, term 1\nsite east: home, term 1" in shown
    assert "if east died now: at most " in shown
    async with aiohttp.ClientSession() as http, http.get(f"http://{metrics}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    assert 'understudy_home_role{role="mirror"} 1.0' in lines
    assert "understudy_mirror_whole 1.0" in lines
    assert "understudy_mirror_writes_total 1.0" in lines
    assert 'understudy_mirror_info{peer="east",site="west"} 1.0' in lines

    code, said = await operator.home("east", "move", "--to", "west", "-o", "json")
    moved = json.loads(said[said.index("{") :])
    assert (code, moved["site"], moved["term"], moved["slots"], moved["lost"]) == (0, "west", 2, 4, None)
    assert await pair.sessions(pair.west) == {pair.keys.session(0, "k0001"): b"kept"}

    async def at_west() -> bool:
        return {(await pair.at(side)).record.role for side in (pair.east, pair.west)} == {Role.MIRROR, Role.HOME}

    await until(at_west, 40, "east is the mirror")
    code, said = await operator.home("east", "unpair", peer=False)
    assert (code, "site east is not the home" in said) == (1, True), said
    code, said = await operator.home("west", "unpair", peer=False)
    assert (code, await pair.west.home()) == (0, None), said
    code, said = await operator.shell.run("audit", "--pool", operator.pool, "--etcd", operator.addresses["west"])
    assert "home move" in said
    assert "home unpair" in said


@pytest.mark.parametrize(
    ("site", "why"),
    [("north", "belongs to site east"), ("east", "the mirror of site")],
)
async def test_a_mirror_process_at_the_wrong_etcd_says_so_and_ends(
    operator: Operator, pair: Pair, site: str, why: str
) -> None:
    await operator.home("east", "pair", "--site", "east", "--mirror", "south", peer=False)
    place = "east" if site == "north" else "west"
    other = "west" if place == "east" else "east"
    code, said = await operator.shell.run(
        *("mirror", "--site", site if site == "north" else "west", "--pool", operator.pool),
        *("--etcd", operator.addresses[place], "--peer", f"{other}={operator.addresses[other]}"),
    )
    assert (code, why in said) == (2, True), said


async def test_a_mirror_is_not_made_of_a_pool_with_sessions(operator: Operator, pair: Pair) -> None:
    await operator.home("east", "pair", "--site", "east", "--mirror", "west", peer=False)
    await pair.west.client.put(pair.keys.session(0, "own"), b"own")
    code, said = await operator.shell.run(*operator.at("west", "mirror", "--site", "west"))
    assert (code, "has sessions of a pool" in said) == (2, True), said
    assert await pair.sessions(pair.west) == {pair.keys.session(0, "own"): b"own"}


async def test_what_needs_a_reason_is_refused_without_one(operator: Operator) -> None:
    for arguments in (("take-over", "--yes"), ("move", "--to", "west", "--force"), ("confirm", "--force")):
        code, said = await operator.home("east", *arguments, peer=arguments[0] != "confirm")
        assert (code, "--reason" in said) == (2, True), said


async def test_the_status_of_an_ordinary_pool_says_that_it_has_no_mirror(operator: Operator) -> None:
    code, said = await operator.home("east", "status", peer=False)
    assert (code, "it is not part of a pair" in said) == (1, True), said
