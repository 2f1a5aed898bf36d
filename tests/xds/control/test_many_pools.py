"""One or two control servers for several pools: what happens to one pool leaves the others alone."""

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.harness.certificates import Authority
from tests.harness.commands import ask
from tests.harness.etcd import EtcdServer, running_etcd
from tests.harness.waiting import free_port, stays, until
from tests.xds.control.control_pool import SPEC, Control, ControlPool
from tests.xds.control.test_replicas import ALL_TYPES, serve_application
from tests.xds.server.client import ADS, Stream
from understudy.deploy.data.pools import delete_pool, require_content
from understudy.proxy.front.envoy import EnvoyProcess, EnvoySettings
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.heartbeat.heartbeat import METHOD, Beat
from understudy.statesync.pool.records import ControlServer, MemberState
from understudy.statesync.tls.peer_tls import Identity
from understudy.statesync.tls.pem_files import PemFiles
from understudy.xds.control import served_pools
from understudy.xds.control.controller import Controller
from understudy.xds.control.server import serve_until
from understudy.xds.control.settings import ControlSettings
from understudy.xds.server import types, wire

A, B, C = "cart", "desk", "mail"
ALL: list[str] = []
"""The pools in the settings of a control server that serves all of them."""
SETTLED = 1.0


class Pools:
    """Several pools in one etcd, and control servers that serve all of them."""

    def __init__(self, etcd: EtcdServer, client: EtcdClient, home: Path) -> None:
        self.etcd, self.client, self.home = etcd, client, home
        self.pools: dict[str, ControlPool] = {}
        self.controls: dict[str, Control] = {}

    def __getitem__(self, name: str) -> ControlPool:
        return self.pools[name]

    async def apply(self, *names: str) -> None:
        for name in names:
            directory = self.home / name
            directory.mkdir(exist_ok=True)
            pool = ControlPool(self.etcd, self.client, directory, SPEC.model_copy(update={"pool": name}))
            pool.controls = self.controls
            self.pools[name] = pool
            await pool.apply(pool.spec)

    def control(self, name: str = "control-1", pools: list[str] = ALL, **settings: Any) -> Control:
        control = Control(next(iter(self.pools.values())), name)
        control.log = self.home / f"{name}.log"
        control.settings |= {"pools": pools, "settled": SETTLED, **settings}
        self.controls[name] = control
        control.start()
        return control

    async def with_table(self, name: str) -> None:
        """Two members join a pool, and have its slots."""
        pool = self[name]
        await pool.join(f"{name}-1", f"{name}-2")
        everyone = pool.members.keys()
        seen = await pool.table_with(lambda table: {order[0] for order in table.orders if order} == everyone, "a table")
        await pool.claim_all(seen)

    def close(self) -> None:
        for pool in self.pools.values():
            pool.close()


@contextlib.asynccontextmanager
async def running_pools(home: Path, *names: str) -> AsyncIterator[Pools]:
    async with running_etcd() as etcd, EtcdClient(etcd.endpoints) as client:
        pools = Pools(etcd, client, home)
        try:
            await pools.apply(*names)
            yield pools
        finally:
            pools.close()


async def status(control: Control, pool: str) -> dict[str, Any]:
    told: dict[str, Any] = await control.ask(f"/v1/status?pool={pool}")
    return told


async def served(control: Control) -> dict[str, bool]:
    """The pools that a control server serves, and whether each is ready."""
    return {row["pool"]: row["ready"] for row in (await control.ask("/v1/pools"))["pools"]}


async def all_ready(control: Control, *pools: str) -> None:
    await until(lambda: _are_ready(control, pools), 40, f"{control.name} serves {pools} (log: {control.log})")


async def _are_ready(control: Control, pools: tuple[str, ...]) -> bool:
    return await served(control) == dict.fromkeys(pools, True)


async def led(control: Control) -> set[str]:
    return {row["pool"] for row in (await control.ask("/v1/pools"))["pools"] if row["leads"]}


@contextlib.asynccontextmanager
async def stream(control: Control, cluster: str, node: str = "front-1") -> AsyncIterator[Stream]:
    async with grpc.aio.insecure_channel(control.grpc) as channel:
        yield Stream(channel, f"{ADS}/DeltaAggregatedResources", delta=True, node=node, cluster=cluster)


async def names_served(control: Control, pool: str) -> set[str]:
    """The names of the clusters that a stream of this pool gets."""
    async with stream(control, pool) as one:
        await one.ask(types.CLUSTER)
        return {resource.name for resource in (await one.receive()).resources}


async def refusal(control: Control, pool: str) -> tuple[grpc.StatusCode, str]:
    async with stream(control, pool) as one:
        await one.ask(types.CLUSTER)
        return await one.status()


async def test_a_stream_is_that_of_the_pool_that_it_names_and_an_unknown_pool_is_refused_by_name(tmp_path: Path):
    async with running_pools(tmp_path, A, B) as pools:
        control = pools.control()
        await all_ready(control, A, B)
        assert (await ask(control.http, "/readyz")) == {"status": "ready"}
        await asyncio.gather(pools.with_table(A), pools.with_table(B))
        for pool in (A, B):
            await until(lambda pool=pool: _all_of(control, pool), 40, "the pool's own clusters")

        code, text = await refusal(control, "crat")
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "pool 'crat' is not served here" in text
        assert f"{A}, {B}" in text
        assert (await refusal(control, ""))[0] is grpc.StatusCode.FAILED_PRECONDITION
        async with grpc.aio.insecure_channel(control.grpc) as channel:
            call = channel.stream_stream(METHOD)()
            await call.write(Beat("crat", "x", "boot", MemberState.UP, 1).encode())
            assert await call.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert f"{A}, {B}" in await call.details()
            await asyncio.wait_for(_status_of_nodes(channel), 30)

        for path in ("/v1/status", "/v1/table", "/v1/xds", "/v1/records", "/v1/fronts", "/v1/traffic", "/v1/failovers"):
            problem = await control.ask(path)
            assert (path, problem["status"], f"{A}, {B}" in problem["detail"]) == (path, 400, True)
            assert (await control.ask(f"{path}?pool=crat"))["status"] == 404
            assert "status" not in await control.ask(f"{path}?pool={A}") or path == "/v1/status"
        members = {pool: {one["member"] for one in (await status(control, pool))["members"]} for pool in (A, B)}
        assert members == {pool: set(pools[pool].members) for pool in (A, B)}


async def _all_of(control: Control, pool: str) -> bool:
    names = await names_served(control, pool)
    return bool(names) and all(name.startswith(f"{pool}/") for name in names)


async def _status_of_nodes(channel: grpc.aio.Channel) -> None:
    """The client status service wants a pool as well."""
    fetch = channel.unary_unary("/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus")
    with pytest.raises(grpc.aio.AioRpcError, match=r"node.cluster: no pool is named"):
        await fetch(b"")
    await fetch(wire.delimited(2, wire.delimited(2, A.encode())))


async def test_a_proxy_of_a_mesh_gets_the_routes_of_the_pool_that_it_asks_for(tmp_path: Path):
    async with running_pools(tmp_path, A, B) as pools:
        control = pools.control()
        await all_ready(control, A, B)
        async with grpc.aio.insecure_channel(control.grpc) as channel:
            method = "envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes"
            proxy = Stream(channel, method, delta=True, node="sidecar~10.0.0.1~web", cluster=f"{A}.default")
            await proxy.ask(types.ROUTES, f"{B}/mesh/routes")
            await until(lambda: _connected(control, B, "sidecar~10.0.0.1~web"), 40, "it is a proxy of its pool")
            assert await control.ask(f"/v1/xds?pool={A}") == []


async def _connected(control: Control, pool: str, node: str) -> bool:
    return any(row["node"] == node for row in await control.ask(f"/v1/xds?pool={pool}"))


class Fronts:
    """A real Envoy in front of each of some pools."""

    def __init__(self, control: Control) -> None:
        self.control = control

    async def synced(self, pool: str) -> bool:
        rows = await self.control.ask(f"/v1/xds?pool={pool}")
        return {row["type_url"] for row in rows} == ALL_TYPES and {row["state"] for row in rows} == {"SYNCED"}

    async def opened(self, pool: str) -> list[str]:
        """The connections that a pool's Envoys have: another one after a stream was opened again."""
        return sorted({row["peer"] for row in await self.control.ask(f"/v1/xds?pool={pool}")})


@contextlib.asynccontextmanager
async def fronts(pools: Pools, control: Control, *names: str) -> AsyncIterator[Fronts]:
    async with contextlib.AsyncExitStack() as stack:
        world = Fronts(control)
        for name in names:
            for member in pools[name].members.values():
                await serve_application(stack, member.record.app)
            settings = EnvoySettings(
                node_id="front-1",  # the same name in every pool
                pool=name,
                listen=f"127.0.0.1:{free_port()}",
                xds_addresses=(control.grpc,),
                concurrency=1,
                drain=0.0,
            )
            await stack.enter_async_context(EnvoyProcess(settings))
            await until(lambda name=name: world.synced(name), 40, f"Envoy of {name}")
        yield world


async def test_what_is_wrong_with_one_pool_touches_no_stream_of_another(tmp_path: Path):
    async with running_pools(tmp_path, A, B, C) as pools:
        control = pools.control()
        await all_ready(control, A, B, C)
        await asyncio.gather(pools.with_table(A), pools.with_table(B))
        async with fronts(pools, control, A, B) as world:
            before = {pool: await world.opened(pool) for pool in (A, B)}

            await pools.client.put(pools[A].keys.spec, b"{no spec")
            await until(lambda: _faulty(control, A), 40, "the broken spec is told")
            async with stream(control, A, "front-2") as bad:
                await bad.ask(types.CLUSTER)
                await bad.acknowledge(await bad.receive(), error="no such thing")
                await until(lambda: _rejects(control, A), 40, "a NACK in one pool")
                assert not await _rejects(control, B)
            await pools.apply("late")
            await until(lambda: _serves(control, "late"), 40, "a pool that was applied later is served")
            content = await require_content(pools.client, C, EtcdSettings(), force=False)
            assert content.leaving == ("control-1",)
            await delete_pool(pools.client, C)
            await until(lambda: _serves(control, C, serves=False), 40, "a removed pool is not served any more")
            code, text = await refusal(control, C)
            assert (code, f"{A}, {B}, late" in text) == (grpc.StatusCode.FAILED_PRECONDITION, True)
            left = await pools.client.range(pools[C].keys.everything, keys_only=True)
            assert left.kvs == ()

            assert {pool: await world.opened(pool) for pool in (A, B)} == before
            pools[B].members[f"{B}-1"].kill()
            await until(lambda: _lost(control, B, f"{B}-1"), 40, "a death in the other pool is found")
            await until(lambda: world.synced(B), 40, "and its Envoy has acknowledged it")
            assert (await world.opened(B)) == before[B]


async def _faulty(control: Control, pool: str) -> bool:
    return bool((await status(control, pool))["faults"])


async def _rejects(control: Control, pool: str) -> bool:
    return any(row["state"] == "ERROR" for row in await control.ask(f"/v1/xds?pool={pool}"))


async def _serves(control: Control, pool: str, *, serves: bool = True) -> bool:
    return ((await served(control)).get(pool, False)) is serves and (serves or pool not in await served(control))


async def _lost(control: Control, pool: str, member: str) -> bool:
    found = [one["state"] for one in (await status(control, pool))["members"] if one["member"] == member]
    return found in ([], ["LOST"])


async def test_a_pool_whose_spec_is_deleted_is_served_for_as_long_as_it_has_members(tmp_path: Path):
    async with running_pools(tmp_path, A, B) as pools:
        control = pools.control()
        await all_ready(control, A, B)
        await pools.with_table(A)
        await pools.client.delete(pools[A].keys.spec)
        await until(lambda: _gone(control, A), 40, "it knows")
        await stays(lambda: _serves(control, A), 3, "it is still served")
        for member in pools[A].members.values():
            await member.vanish()
        await until(lambda: _serves(control, A, serves=False), 40, "nobody is left")


async def _gone(control: Control, pool: str) -> bool:
    return "gone" in (await status(control, pool))["spec"]["fault"]


async def test_leaders_even_out_and_the_death_of_a_replica_moves_its_pools_only(tmp_path: Path):
    names = ("one", "two", "three", "four")
    async with running_pools(tmp_path, *names) as pools:
        first = pools.control("control-1")
        await until(lambda: _leads(first, 4), 40, "the first leads all pools")
        second = pools.control("control-2")
        await until(lambda: _leads(second, 2), 40, "the second one gets its share")
        await until(lambda: _leads(first, 2), 40, "the first one keeps its own")
        kept = await _terms(pools, await led(second))
        await stays(lambda: _leads(second, 2), 3 * SETTLED, "it stays like that")
        assert await _terms(pools, await led(second)) == kept

        pools.controls["control-1"].kill()
        await until(lambda: _leads(second, 4), 40, "the other one leads all pools")
        assert await _terms(pools, set(kept)) == kept
        first.start()
        await until(lambda: _leads(first, 2), 60, "it is back, and has a share again")
        second.signal(signal.SIGTERM)
        assert await second.ended() == 0
        await until(lambda: _leads(first, 4), 40, "a replica that stops gives its pools away")


async def _leads(control: Control, count: int) -> bool:
    return len(await led(control)) == count


async def _terms(pools: Pools, names: set[str]) -> dict[str, int]:
    """The revision at which each pool's present leader was elected."""
    found = {name: await pools.client.get(pools[name].keys.leader) for name in names}
    return {name: kv.create_revision for name, kv in found.items() if kv is not None}


async def test_pools_can_be_given_by_name_and_a_missing_one_holds_nothing_up(tmp_path: Path):
    async with running_pools(tmp_path, A, B, C) as pools:
        control = pools.control(pools=[A, "later"])
        await until(lambda: _serves(control, A), 40, "the pool that is there is served")
        await until(lambda: _log_has(control, "there is no pool 'later' in etcd"), 40, "the other one is named")
        assert (await ask(control.http, "/readyz")) == {"status": "ready"}
        assert (await served(control)).keys() == {A, "later"}
        code, text = await refusal(control, "later")
        assert (code, "not loaded" in text) == (grpc.StatusCode.UNAVAILABLE, True)
        await pools.apply("later")
        await all_ready(control, A, "later")
        record = ControlServer.decode((await pools.client.get(pools[A].keys.control("control-1"))).value)
        assert not record.every_pool


def _log_has(control: Control, text: str) -> bool:
    assert control.log is not None
    return text in control.log.read_text()


async def test_metrics_are_those_of_one_pool_or_of_the_process(tmp_path: Path):
    async with running_pools(tmp_path, A, B) as pools:
        control = pools.control()
        await all_ready(control, A, B)
        of_process = await ask(control.http, "/metrics")
        assert 'understudy_control_pools{kind="ready"} 2.0' in of_process
        assert "understudy_pool_info" not in of_process
        assert f'understudy_pool_info{{pool="{B}"}} 1.0' in await ask(control.http, f"/metrics?pool={B}")
        targets = await control.ask("/v1/targets")
        assert [one["labels"].get("__param_pool") for one in targets] == [None, A, B]
        assert Counter(one["targets"][0] for one in targets) == {control.http: 3}


class Broken(Exception):
    """What a part of one pool ends with."""


async def test_a_part_of_one_pool_that_fails_is_started_again_and_the_others_go_on(tmp_path, monkeypatch, caplog):
    failing = asyncio.Event()
    whole = Controller.services

    async def fails() -> None:
        await failing.wait()
        failing.clear()
        raise Broken("as the test wants it")

    def services(self: Controller) -> dict[str, Any]:
        more = {"broken part": fails()} if self.heartbeat._pool == A else {}
        return {**whole(self), **more}

    seen = asyncio.Event()
    monkeypatch.setattr(Controller, "services", services)
    monkeypatch.setattr(served_pools, "set_within", lambda *_: seen.wait())  # it rests until it was looked at
    async with running_pools(tmp_path, A, B) as pools:
        control, stop = Control(pools[A], "control-1"), asyncio.Event()
        etcd = EtcdSettings(pools.etcd.endpoints)
        settings = ControlSettings((), "control-1", etcd, grpc=control.grpc, http=control.http)
        serving = asyncio.create_task(serve_until(settings, stop))
        try:
            await all_ready(control, A, B)
            kept = await _terms(pools, {B})
            async with stream(control, A) as bad, stream(control, B, "front-2") as good:
                for one in (bad, good):
                    await one.ask(types.CLUSTER)
                    await one.acknowledge(await one.receive())
                failing.set()
                assert (await bad.status())[0] is grpc.StatusCode.OK
                code, text = await refusal(control, A)
                assert (code, "service broken part failed (Broken" in text) == (grpc.StatusCode.UNAVAILABLE, True)
                problem = await control.ask(f"/v1/status?pool={A}")
                assert problem["status"] == 503
                seen.set()
                await all_ready(control, A, B)
                assert await _terms(pools, {B}) == kept
                assert await _connected(control, B, "front-2")
            failures = {row["pool"]: row["failures"] for row in (await control.ask("/v1/pools"))["pools"]}
            assert failures == {A: 1, B: 0}
            assert f"service broken part failed (Broken: as the test wants it); pool {A} cannot go on" in caplog.text
            await until(lambda: _leads(control, 2), 40, "it leads the pool again")
        finally:
            stop.set()
            await asyncio.wait_for(serving, 40)


async def test_a_certificate_of_one_pool_opens_no_stream_of_another(tmp_path: Path):
    authority = Authority(tmp_path / "authority", A)
    server = authority.control("control-1")
    async with running_pools(tmp_path, A, B) as pools:
        control, stop = Control(pools[A], "control-1"), asyncio.Event()
        etcd, files = EtcdSettings(pools.etcd.endpoints), PemFiles(server.cert, server.key, server.ca)
        settings = ControlSettings((), "control-1", etcd, grpc=control.grpc, http=control.http, tls=files)
        serving = asyncio.create_task(serve_until(settings, stop))
        try:
            await all_ready(control, A, B)
            member = authority.member("x")
            plain = authority.issue("plain", "DNS:x")
            front = authority.issue("front", f"URI:{authority.trust.prefix}node/front-1")
            for identity, pool, accepted in ((member, A, True), (member, B, False), (plain, B, False)):
                async with _secured(control, identity) as channel:
                    call = channel.stream_stream(METHOD)()
                    await call.write(Beat(pool, "x", "boot", MemberState.UP, 1, answers=True).encode())
                    answer = await _answer(call)
                    assert (pool, isinstance(answer, bytes)) == (pool, accepted)
                    if not accepted:
                        assert await call.code() is grpc.StatusCode.PERMISSION_DENIED
            for pool, accepted in ((A, True), (B, False)):
                async with _secured(control, front) as channel:
                    method = f"{ADS}/DeltaAggregatedResources"
                    one = Stream(channel, method, delta=True, node="front-1", cluster=pool)
                    await one.ask(types.CLUSTER)
                    if accepted:
                        await one.receive()
                    else:
                        assert (await one.status())[0] is grpc.StatusCode.PERMISSION_DENIED
        finally:
            stop.set()
            await asyncio.wait_for(serving, 40)


def _secured(control: Control, identity: Identity) -> grpc.aio.Channel:
    parts = (identity.ca, identity.key, identity.cert)
    return grpc.aio.secure_channel(control.grpc, grpc.ssl_channel_credentials(*(part.read_bytes() for part in parts)))


async def _answer(call: Any) -> Any:
    """The first answer to a beat; None if the stream was refused."""
    try:
        async with asyncio.timeout(30):
            return await call.read()
    except grpc.aio.AioRpcError:
        return None
