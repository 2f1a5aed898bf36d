"""One living process per member name: who comes second is refused, and who was replaced unseen ends."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
from aiohttp import web

from tests.harness.etcd import EtcdServer
from tests.harness.sidecars import sidecar_pool
from tests.harness.sidecars_here import sidecars_here
from tests.harness.waiting import free_port, until
from tests.proxy.members import probe_of
from understudy.proxy.member.identity import MemberIdentity
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.peers.peer_client import PeerClient
from understudy.proxy.sidecar.listen import CannotStart
from understudy.proxy.sidecar.name_holder import NameHolder, NameTaken
from understudy.proxy.sidecar.sidecar import SidecarSettings, running_sidecar
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.heartbeat.probe import PROBE_PATH
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Member, MemberState
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Liveness
from understudy.statesync.pool.state import At

LEASE = 10


class Process:
    """As much of a member's process as holds its name: a record, and a peer API that may be shut."""

    def __init__(self, holder: NameHolder, record: Member, peers: web.AppRunner) -> None:
        self.holder = holder
        self.record = record
        self._peers = peers

    async def fall_silent(self) -> None:
        await self._peers.cleanup()


@asynccontextmanager
async def process(client: EtcdClient, pool: str, boot: str, name: str = "cart-1") -> AsyncIterator[Process]:
    async def probe(_: web.Request) -> web.Response:
        return web.json_response({"member": name, "boot": boot, "serving": True})

    app = web.Application()
    app.router.add_get(PROBE_PATH, probe)
    runner, port = web.AppRunner(app), free_port()
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    peers, view = PeerClient(), PoolView(MemberIdentity(name, boot, PoolKeys(pool)))
    view.state.spec = At(PoolSpec(pool=pool, liveness=Liveness(unanswered_ms=20_000)), 1)
    record = Member(name, boot, "127.0.0.1:1", f"127.0.0.1:{port}", MemberState.UP, since=1.8e9, node="east-7")
    try:
        yield Process(NameHolder(view, client, probe_of(peers, view)), record, runner)
    finally:
        await peers.close()
        await runner.cleanup()


async def test_a_second_process_is_told_who_has_its_name_and_changes_nothing(
    client: EtcdClient, pool_name: str
) -> None:
    async with (
        process(client, pool_name, "first") as first,
        process(client, pool_name, "second") as second,
        client.lease(LEASE) as lease,
    ):
        await second.holder.check()  # nobody has the name yet
        assert await first.holder.write(first.record, lease.id)

        for refused in (second.holder.check(), second.holder.write(second.record, lease.id)):
            with pytest.raises(NameTaken) as told:
                await refused
            for fact in ("'cart-1'", "boot first", first.record.peer, "on east-7", "since 2027-01-15", "--member"):
                assert fact in str(told.value), told.value
        kv = await client.get(PoolKeys(pool_name).member("cart-1"))
        assert kv is not None
        assert Member.decode(kv.value).boot == "first"
        assert await first.holder.write(replace(first.record, reason="well"), lease.id)


async def test_a_silent_process_is_replaced_and_gives_the_name_up_when_it_is_back(
    client: EtcdClient, pool_name: str
) -> None:
    async with (
        process(client, pool_name, "first") as first,
        process(client, pool_name, "second") as second,
        client.lease(LEASE) as lease,
    ):
        assert await first.holder.write(first.record, lease.id)
        await first.fall_silent()
        await second.holder.check()
        assert await second.holder.write(second.record, lease.id)

        first.holder._pool.state.members["cart-1"] = At(second.record, second.holder._revision)  # by its informer
        assert first.holder.replaced
        assert not second.holder.replaced
        with pytest.raises(NameTaken, match="boot second"):
            await first.holder.write(first.record, lease.id)


async def test_a_record_that_is_gone_or_nobody_can_read_keeps_nobody_from_its_name(
    client: EtcdClient, pool_name: str
) -> None:
    key = PoolKeys(pool_name).member("cart-1")
    async with process(client, pool_name, "first") as first, client.lease(LEASE) as lease:
        await client.put(key, b"[" * 1000)
        await first.holder.check()
        assert await first.holder.write(first.record, lease.id)
        await client.delete(key)
        assert await first.holder.write(first.record, lease.id)
        await client.put(key, first.record.encode(), lease=lease.id)  # as after a write whose outcome was not known
        assert await first.holder.write(first.record, lease.id)


async def test_a_second_sidecar_of_a_living_member_does_not_start(etcd: EtcdServer, pool_name: str) -> None:
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(sidecar_pool(etcd, pool_name))
        sidecars = await stack.enter_async_context(sidecars_here(pool, "cart-1"))
        await pool.settle(("cart-1",))
        api, peer = (f"127.0.0.1:{free_port()}" for _ in range(2))
        second = SidecarSettings(
            "cart-1", pool_name, pool.members["cart-1"].app, api, peer, etcd=EtcdSettings((etcd.endpoint,))
        )

        with pytest.raises(CannotStart, match="belongs to another process, which answers"):
            await stack.enter_async_context(running_sidecar(second))

        assert {owner.boot for owner in (await pool.owners()).values()} == {sidecars["cart-1"].pool.identity.boot}


async def test_a_sidecar_whose_name_was_taken_unseen_ends(etcd: EtcdServer, pool_name: str) -> None:
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(sidecar_pool(etcd, pool_name))
        other = await stack.enter_async_context(process(pool.client, pool_name, "other"))
        sidecar = (await stack.enter_async_context(sidecars_here(pool, "cart-1")))["cart-1"]
        await pool.client.put(pool.keys.member("cart-1"), other.record.encode())
        await until(sidecar.registration.displaced.is_set, what="the sidecar knows that it was replaced")
        kv = await pool.client.get(pool.keys.member("cart-1"))
        assert kv is not None
        assert Member.decode(kv.value).boot == "other"
