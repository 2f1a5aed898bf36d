"""A site is lost with its members of etcd, and comes back with nothing. Each site has a member of the pool.

With 2 + 1 members of etcd the site that is left takes over, and the etcd of before is kept out. With a witness etcd
goes on.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import AsyncMock

import pytest

from tests.harness.commands import Commands, commands
from tests.harness.etcd import EtcdServer, running_cluster
from tests.harness.records import SeenSyncSet
from tests.harness.sidecars import PATIENT, SidecarPool, sidecar_pool
from tests.harness.waiting import until
from understudy.deploy.common.errors import DeployError
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.local.local_pool import find_etcd
from understudy.deploy.operate import site_take_over
from understudy.deploy.operate.lone_etcd import EtcdData
from understudy.statesync.audit.entry import Actor
from understudy.statesync.etcd.key_range import KeyRange, prefix_range

SITES = {"cart-e": "east", "cart-w": "west"}
ORDERS = (("cart-e", "cart-w"), ("cart-w", "cart-e"))
SPEC = f"slots: 8\ncopies: 2\n{PATIENT}"


@dataclass
class TwoSites:
    """The pool over both sites. ``east``, ``west`` and ``witness`` are the members of etcd there and elsewhere."""

    pool: SidecarPool
    east: list[EtcdServer]
    west: EtcdServer
    commands: Commands
    witness: list[EtcdServer]

    @property
    def endpoints(self) -> str:
        return ",".join(member.endpoint for member in (*self.east, self.west, *self.witness))

    async def write(self, number: int, value: str) -> int:
        """Write a session of a slot that east serves (0) or west serves (1), on west; returns the status."""
        key = self.pool.key_in(ORDERS, ORDERS[number][0])
        return (await self.pool.call("cart-w", "PUT", f"/{key}", value))[0]

    async def read(self, member: str, number: int) -> bytes:
        key = self.pool.key_in(ORDERS, ORDERS[number][0])
        return (await self.pool.call(member, "GET", f"/{key}"))[2]

    async def written(self, value: str) -> None:
        """Both sessions are written on west, as soon as it serves them."""
        for number in (0, 1):

            async def accepted(number: int = number) -> bool:
                return await self.write(number, value) in (200, 201, 204)

            await until(accepted, what=f"west accepts {value}")

    def lose_east(self) -> None:
        """Kill everything on east; etcd first, so that no member on west takes over before its majority is gone."""
        for member in self.east:
            member.kill()
        self.pool.kill("cart-e")

    async def take_over(self, *more: str) -> tuple[int, str]:
        """Run ``site take-over west``."""
        data = str(self.west.home / "data")
        return await self.commands.run("site", "take-over", "west", "--data-dir", data, *more)

    async def join_again(self, member: EtcdServer) -> None:
        """Add a member of etcd of east with no data, as docs/sites.md says; etcd refuses it soon after another."""
        member.wipe()
        add = ("member", "add", member.name, f"--peer-urls={member.peer_url}")
        said: str = await until(lambda: self.west.ctl(*add), what="etcd accepts another member", every=0.5)
        named = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
        member.cluster = named["ETCD_INITIAL_CLUSTER"].strip('"')
        member.arguments = ["--initial-cluster-state=existing"]
        await member.start()


@asynccontextmanager
async def two_sites(home: Path, *, witness: bool) -> AsyncIterator[TwoSites]:
    async with (
        running_cluster() as (first, second, west),
        sidecar_pool(west, "cart", SPEC) as pool,
        commands(home) as run,
    ):
        pool.flags, pool.logs = lambda member: ("--site", SITES[member]), home
        east, elsewhere = ([first], [second]) if witness else ([first, second], [])
        sites = TwoSites(pool, east, west, run, elsewhere)
        await pool.start("cart-e", "cart-w", etcd=sites.endpoints)
        await pool.settle(*ORDERS)
        await pool.await_copies("cart-e", "cart-w")
        await until(lambda: pool.protected(2), what="both members are in all sync sets, as west's etcd has it")
        await sites.written("before")
        yield sites


async def sessions_in(etcd: EtcdServer, pool: SidecarPool) -> dict[str, int]:
    """The sessions that an etcd has, with the revision of the last write of each."""
    async with etcd.client() as client:
        page = await client.range(prefix_range(pool.keys.sessions))
    return {kv.key: kv.mod_revision for kv in page.kvs}


async def test_the_site_that_is_left_goes_on_and_the_etcd_of_before_is_kept_out(tmp_path: Path) -> None:
    async with two_sites(tmp_path, witness=False) as sites:
        pool, west = sites.pool, sites.west
        west.stop()
        code, said = await sites.take_over("--yes")
        assert (code, "more than half of etcd's members answer" in said) == (1, True), said
        await west.start()

        sites.lose_east()
        code, said = await sites.take_over("--yes")
        assert (code, "etcd runs on it; stop this member" in said) == (2, True), said
        west.stop()
        code, said = await sites.take_over("--dry-run")
        assert code == 0, said
        assert "have seen 0 later revisions" in said
        assert "pool cart, site east: 4 slots go on from memory, and lose nothing" in said
        code, said = await sites.take_over("--yes", "--reason", "east burned down")
        assert code == 0, said
        assert f"etcdctl member add etcd1 --peer-urls {sites.east[0].peer_url}" in said, said
        await west.start()

        await sites.written("after")
        assert len(west.ctl("member", "list").splitlines()) == 1
        async with west.client() as client:
            state, _ = await read_pool(client, "cart")
        assert state.take_over is not None
        assert (state.take_over.record.site, state.take_over.record.why) == ("west", "east burned down")
        assert (
            "site take-over west" in (await sites.commands.run("audit", "--etcd", west.endpoint, "--pool", "cart"))[1]
        )

        # Without west's etcd the lost members have a majority again, with their old data: nothing counts there.
        west.stop()
        for member in sites.east:
            member.spawn()
        for member in sites.east:
            await member.ready()
        before = await sessions_in(sites.east[0], pool)
        pool.members["cart-e"].application.start()
        late = pool.members["cart-e"].sidecar
        late.command = pool._command(pool.members["cart-e"], ",".join(member.endpoint for member in sites.east))
        late.start()
        assert await late.ended() == 2
        assert "site west has taken over without this etcd: cart-w knows of 1 take-overs" in pool.log("cart-e")
        assert await sites.write(1, "lost") == 503
        assert await sessions_in(sites.east[0], pool) == before

        # As soon as they reach west's etcd they end.
        west.spawn()
        await until(lambda: all(member._ended() for member in sites.east), what="the lost members of etcd end")
        await west.ready()
        await sites.written("again")

        for member in sites.east:
            await sites.join_again(member)
        await pool.start("cart-e", etcd=sites.endpoints)
        await pool.await_copies("cart-e")
        await pool.settle(*ORDERS)
        assert [await sites.read("cart-e", number) for number in (0, 1)] == [b"again", b"again"]


async def interrupted_take_over(etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command ends when it has given up the lost members of etcd, and has written nothing yet."""
    data, login = EtcdData(etcd.home / "data", find_etcd(os.environ)), site_take_over.Login()
    known = await site_take_over.estimate(data, "west", await site_take_over.check(data, force=False), login, None)
    monkeypatch.setattr(site_take_over, "_skip", AsyncMock(side_effect=DeployError("interrupted")))
    with pytest.raises(DeployError, match="interrupted"):
        await site_take_over.take_over(data, "west", known, Actor("test", "here", "test"), "", login)
    monkeypatch.undo()


async def test_an_etcd_that_lagged_gets_what_memory_has_and_uses_no_version_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While west's etcd is away, each slot changes its owner, and sessions are written and removed.

    The take-over is interrupted, and done again.
    """
    async with two_sites(tmp_path, witness=False) as sites:
        pool, west = sites.pool, sites.west
        keys = [pool.key_in(ORDERS, order[0]) for order in ORDERS]
        gone = [pool.key_in(ORDERS, order[0], 1) for order in ORDERS]
        for key in gone:
            assert (await pool.call("cart-w", "PUT", f"/{key}", "soon gone"))[0] == 201
            await until(lambda key=key: pool.stored_body(key), what="west's etcd has the session")  # type: ignore[misc]
        west.stop()
        old_tags = []
        async with sites.east[0].client() as client:
            pool.client, wests = client, pool.client
            await pool.settle(*reversed(ORDERS))
            for member, key, removed in zip(reversed(SITES), keys, gone, strict=True):
                status, headers, _ = await pool.call(member, "PUT", f"/{key}", "late")
                assert (status, (await pool.call(member, "DELETE", f"/{removed}"))[0]) == (200, 204)
                old_tags.append(headers["etag"])
            old_epochs = [owner.epoch for owner in (await pool.owners()).values()]
            pool.client = wests
        sites.lose_east()
        await interrupted_take_over(west, monkeypatch)
        code, said = await sites.take_over("--yes")
        assert (code, f"etcdctl member add etcd1 --peer-urls {sites.east[0].peer_url}" in said) == (0, True), said
        await west.start()
        for number, (key, removed) in enumerate(zip(keys, gone, strict=True)):

            async def saved(key: str = key, removed: str = removed) -> bool:
                return [await pool.stored_body(one) for one in (key, removed)] == [b"late", None]

            await until(saved, what=f"etcd has the newest version of session {number}, and not the removed one")
            assert await sites.read("cart-w", number) == b"late"
            assert (await pool.call("cart-w", "GET", f"/{removed}"))[0] == 404
        await sites.written("after")
        assert min(owner.epoch for owner in (await pool.owners()).values()) > max(old_epochs) + 900
        for key, tag in zip(keys, old_tags, strict=True):
            assert (await pool.call("cart-w", "PUT", f"/{key}", "of an old version", If_Match=tag))[0] == 412
        assert set((await pool.losses()).values()) == {0}


async def test_with_a_witness_a_site_that_lost_everything_is_full_by_itself_before_it_owns_a_slot(
    tmp_path: Path,
) -> None:
    async with two_sites(tmp_path, witness=True) as sites:
        pool, (lost,) = sites.pool, sites.east
        sites.lose_east()
        await sites.written("meanwhile")
        line = next(line for line in sites.west.ctl("member", "list").splitlines() if f", {lost.name}," in line)
        sites.west.ctl("member", "remove", line.partition(",")[0])
        await sites.join_again(lost)
        await pool.start("cart-e", etcd=sites.endpoints)
        await pool.settle(*ORDERS)
        back = await pool.record("cart-e")
        assert back is not None
        for slot in (slot for slot, owner in (await pool.owners()).items() if owner.active == "cart-e"):
            (owner,) = (await pool.client.range(just(pool.keys.owner(slot)))).kvs
            before = await pool.client.range(just(pool.keys.sync_set(slot)), revision=owner.mod_revision - 1)
            assert ("cart-e", back.boot) in SeenSyncSet.read(before.kvs[0].value).members, f"slot {slot}"
        assert [await sites.read("cart-e", number) for number in (0, 1)] == [b"meanwhile", b"meanwhile"]


def just(key: str) -> KeyRange:
    """The range of one key."""
    return KeyRange(key, key + "\0")
