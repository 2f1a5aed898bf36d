"""A real Envoy that serves several pools of a control server: a change of one touches no connection of another."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from aiohttp import ClientSession, TCPConnector

from tests.harness.certificates import Authority
from tests.harness.keep_alive import KeepAlive, get, kept_alive
from tests.harness.waiting import free_port, stays, until
from tests.xds.control.control_pool import SPEC, Control
from tests.xds.control.test_many_pools import A, B, C, Pools, all_ready, refusal, running_pools, status, stream
from tests.xds.control.test_replicas import serve_application
from understudy.proxy.front.envoy import EnvoyProcess, EnvoySettings
from understudy.statesync.audit.entry import Chain, unseal
from understudy.statesync.audit.log import read_newest
from understudy.statesync.pool.front_node import cluster_of_front
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_front import Front, FrontTls
from understudy.xds.server import types

SHOP, HELP = "shop.example", "help.example"
NEW_KEY = ({"header": "x-neighbour"},)


def spec_of(pool: str, **changes: object) -> PoolSpec:
    return PoolSpec.model_validate({**SPEC.model_dump(exclude_none=True), "pool": pool, **changes})


class TunableEnvoy(EnvoyProcess):
    """An Envoy whose runtime can be changed at its admin address."""

    def _bootstrap(self, directory: Path) -> dict[str, Any]:
        runtime = {"layers": [{"name": "admin", "admin_layer": {}}]}
        return {**super()._bootstrap(directory), "layered_runtime": runtime}


class World:
    """Pools, a control server of all of them, and an Envoy in front."""

    def __init__(self, pools: Pools, control: Control, stack: contextlib.AsyncExitStack) -> None:
        self.pools, self.control, self.stack = pools, control, stack
        self.envoy: EnvoyProcess

    async def serve(self, spec: PoolSpec) -> None:
        """A pool with two members, and with its spec as it is to be."""
        await self.pools.apply(spec.pool)
        await self.change(spec)
        await self.pools.with_table(spec.pool)
        for member in self.pools[spec.pool].members.values():
            await serve_application(self.stack, member.record.app)

    async def change(self, spec: PoolSpec) -> None:
        await self.pools[spec.pool].apply(spec)

    def addresses(self, pool: str) -> set[str]:
        return {member.record.app for member in self.pools[pool].members.values()}

    async def front(self) -> None:
        settings = EnvoySettings(
            node_id="front-1",
            every_pool=True,
            listen="127.0.0.1:0",
            xds_addresses=(self.control.grpc,),
            concurrency=1,
            drain=0.0,
        )
        self.envoy = await self.stack.enter_async_context(TunableEnvoy(settings))
        assert await self.envoy.ready(40)

    async def answers(
        self, port: int, host: str, path: str, wanted: set[str], tls: ssl.SSLContext | None = None
    ) -> None:
        """Wait until a request is answered with one of these texts; ``{"404"}``: until there is no route."""

        async def right() -> bool:
            scheme = "https" if tls else "http"
            async with (
                ClientSession(connector=TCPConnector(ssl=tls or True)) as http,
                http.get(
                    f"{scheme}://127.0.0.1:{port}{path}", headers={"host": host}, server_hostname=host if tls else None
                ) as answer,
            ):
                return (await answer.text() if answer.status == 200 else str(answer.status)) in wanted

        await until(right, 60, f"{host}{path} at {port} is answered by {sorted(wanted)}")


@contextlib.asynccontextmanager
async def world(home: Path) -> AsyncIterator[World]:
    async with running_pools(home) as pools, contextlib.AsyncExitStack() as stack:
        await pools.apply(A)
        yield World(pools, pools.control(), stack)


async def test_pools_come_change_and_go_on_one_port_without_a_touch_on_other_connections(tmp_path: Path):
    port, tcp = free_port(), free_port()
    async with world(tmp_path) as here:
        front_of_a = Front(port=port, hosts=(SHOP,), paths=("/cart",))
        await here.serve(spec_of(A, front=front_of_a))
        await here.front()
        await here.answers(port, SHOP, "/cart/1", here.addresses(A))
        await here.answers(port, SHOP, "/cartoon", {"404"})
        await here.answers(port, f"{SHOP}:{port}", "/cart", here.addresses(A))
        async with kept_alive(KeepAlive(port, get(SHOP, "/cart/1"))) as clients:
            await clients.more()
            front_of_b = Front(port=port, hosts=(SHOP, HELP))
            await here.serve(spec_of(B, front=front_of_b))
            await here.answers(port, SHOP, "/", here.addresses(B))
            await here.answers(port, HELP, "/cart", here.addresses(B))
            await clients.more()

            await here.change(spec_of(B, front=front_of_b, session_key=({"header": "x-user"},)))
            await until(lambda: _has_in_routes(here.envoy, "x-user"), 40, "Envoy has the session key")
            await _reject_patterns(here.envoy)
            pattern = {"cookie": "SID", "pattern": "([A-Za-z0-9]+)[.].*"}
            await here.change(spec_of(B, front=front_of_b, session_key=(pattern,)))
            await until(lambda: _front_fault(here.control, B, "rejects its configuration"), 40, "the rejection is told")
            await here.change(spec_of(A, front=front_of_a, session_key=({"header": "x-visitor"},)))
            await until(
                lambda: _has_in_routes(here.envoy, "x-visitor"), 40, "the other pool's change comes all the same"
            )
            assert await _has_in_routes(here.envoy, "x-user")
            assert await _front_fault(here.control, A, "")
            await clients.more()
            await _two_pools_are_rejected_and_the_control_server_dies(here, port, pattern)
            await clients.more()

            await here.change(spec_of(B, front=front_of_b, limits={"requests_per_second": 1}))
            await here.answers(port, HELP, "/", {"429"})
            tcp_pool = {"protocol": "tcp", "tcp": {"send_proxy_protocol": "none"}}
            await here.serve(spec_of(C, front=Front(port=tcp), session_key=({"source_address": True},), **tcp_pool))
            await here.answers(tcp, SHOP, "/", here.addresses(C))
            await clients.more()

            late = spec_of("late", front=Front(port=port, hosts=(SHOP,), paths=("/cart",)))
            await here.pools.apply("late")
            await here.change(late)
            await all_ready(here.control, A, B, C, "mail-2", "late")
            assert f"pool '{A}' has host {SHOP}" in (await status(here.control, "late"))["xds"]["front_fault"]
            assert await _front_fault(here.control, A, "")

            for pool in (B, C):
                for member in here.pools[pool].members.values():
                    await member.vanish()
                await here.pools.client.delete(here.pools[pool].keys.everything)
            await here.answers(port, SHOP, "/", {"404"})
            await until(lambda: _refuses(tcp), 40, "the port of the tcp pool is closed")
            here.pools[A].members[f"{A}-1"].kill()
            await clients.more()
        clients.untouched()
        assert clients.opened == 4
        assert clients.bodies <= here.addresses(A)
        assert {row["node"] for row in await here.control.ask(f"/v1/xds?pool={A}")} == {"front-1"}

        code, text = await refusal(here.control, cluster_of_front(["nobody", A]))
        assert (code, "nobody" in text, "--all-pools" in text) == (grpc.StatusCode.FAILED_PRECONDITION, True, True)


async def _two_pools_are_rejected_and_the_control_server_dies(here: World, port: int, pattern: dict[str, str]) -> None:
    """Pool B is rejected already. Another one is too, and a control server that knows nothing of both starts."""
    front = Front(port=port, hosts=("mail.example",))
    await here.serve(spec_of("mail-2", front=front))
    await here.answers(port, "mail.example", "/", here.addresses("mail-2"))
    await until(lambda: _proven_at(here, "mail-2"), 40, "the accepted spec is in etcd")
    written = await _proven_at(here, "mail-2")
    await here.change(spec_of("mail-2", front=front, session_key=(pattern,)))
    await until(lambda: _front_fault(here.control, "mail-2", "accepted routes stay"), 40, "the second one is held")
    here.control.kill()
    here.control.start()
    for pool in (B, "mail-2"):
        await until(
            lambda pool=pool: _front_fault(here.control, pool, "accepted routes stay"), 60, f"{pool} is held again"
        )
    await here.change(spec_of(A, front=Front(port=port, hosts=(SHOP,), paths=("/cart",)), session_key=NEW_KEY))
    await until(lambda: _has_in_routes(here.envoy, "x-neighbour"), 40, "a neighbour's change comes all the same")
    assert await _has_in_routes(here.envoy, "x-user"), "pool B has its routes of the spec that was accepted"
    await here.answers(port, "mail.example", "/", here.addresses("mail-2"))
    assert "understudy_front_held 1.0" in await _metrics(here.control, B)
    assert await _proven_at(here, "mail-2") == written, "no further write"
    await here.change(spec_of("mail-2", front=front, session_key=({"header": "x-mended"},)))
    await until(lambda: _has_in_routes(here.envoy, "x-mended"), 40, "a corrected spec is served")
    await until(lambda: _told_of(here, "mail-2", "front release"), 40, "the audit log tells that the hold is over")
    assert await _told_of(here, "mail-2", "front hold") == 1, "the control server that started again adds none"
    assert await _front_fault(here.control, "mail-2", "")


async def _proven_at(here: World, pool: str) -> int:
    """The revision at which the accepted spec was written; 0 if it was not."""
    found = await here.pools.client.get(here.pools[pool].keys.front_spec)
    return found.mod_revision if found else 0


async def _metrics(control: Control, pool: str) -> str:
    async with ClientSession() as http, http.get(f"http://{control.http}/metrics?pool={pool}") as answer:
        return await answer.text()


async def _told_of(here: World, pool: str, what: str) -> int:
    """How many such acts the audit log of a pool has."""
    kvs, _ = await read_newest(here.pools.client, here.pools[pool].keys, Chain.OPERATORS, 0)
    return [unseal(kv.value).entry.what for kv in kvs].count(what)


async def _has_in_routes(envoy: EnvoyProcess, text: str) -> bool:
    async with (
        ClientSession() as http,
        http.get(f"http://{envoy.admin}/config_dump?resource=dynamic_route_configs") as dump,
    ):
        return text in await dump.text()


async def _reject_patterns(envoy: EnvoyProcess) -> None:
    """From now on Envoy rejects routes with a pattern for a cookie, as if that were too large."""
    async with (
        ClientSession() as http,
        http.post(f"http://{envoy.admin}/runtime_modify?re2.max_program_size.error_level=25") as answer,
    ):
        assert answer.status == 200


async def _front_fault(control: Control, pool: str, text: str) -> bool:
    """Whether the pool's status tells of this fault at front Envoys; '' for none."""
    fault = (await status(control, pool))["xds"]["front_fault"]
    return text in fault if text else not fault


async def _refuses(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return True
    writer.close()
    return False


async def test_a_control_server_that_cannot_read_a_pool_takes_no_routes_of_it_away(tmp_path: Path):
    port = free_port()
    async with world(tmp_path) as here:
        await here.serve(spec_of(A, front=Front(port=port)))
        await here.pools.apply(B)
        unmanned = spec_of(B, front=Front(port=port, paths=("/desk",)))
        await here.change(unmanned)
        await here.front()
        await here.answers(port, SHOP, "/desk", {"503"})
        await until(lambda: _pools_of_reports(here.control), 40, "Envoy reports the request with its pool")
        assert await _pools_of_reports(here.control) == {B}
        await here.answers(port, SHOP, "/", here.addresses(A))
        await until(lambda: _counted(here.control, A), 40, "Envoy counts the requests of the one pool")
        assert {front["failed"] for front in await _counted(here.control, A)} == {0}
        (told,) = await _counted(here.control, B)
        assert (told["failed"], told["keyless"]) == (told["requests"], told["requests"])
        async with kept_alive(KeepAlive(port, get(SHOP, "/"))) as clients:
            await here.pools.client.put(here.pools[B].keys.spec, b"{no spec")
            here.control.kill()
            here.control.start()
            await until(lambda: _is_refused(here.control, A), 40, "an Envoy that has routes of both is refused")
            await stays(lambda: _synced(here.control, A, 0), 2, "the Envoy is refused too")
            await here.answers(port, SHOP, "/desk", {"503"})
            await here.change(unmanned)
            await until(lambda: _synced(here.control, A, 1), 40, "the Envoy is served")
            await here.answers(port, SHOP, "/desk", {"503"})
            await clients.more()
        clients.untouched()


async def _pools_of_reports(control: Control) -> set[str]:
    """The pools of the requests that Envoy reported as failed."""
    told = await control.ask(f"/v1/requests?since=0&until={time.time_ns()}&pool={B}")
    return {report["attributes"]["understudy.pool"] for report in told["reports"]}


async def _counted(control: Control, pool: str) -> list[dict[str, Any]]:
    """What front Envoys counted for a pool."""
    told: list[dict[str, Any]] = (await control.ask(f"/v1/fronts?pool={pool}"))["fronts"]
    return [front for front in told if front["requests"]]


async def _is_refused(control: Control, pool: str) -> bool:
    """Whether an Envoy of all pools is refused that has something of pool B already, although ``pool`` is ready."""
    async with stream(control, cluster_of_front([])) as one:
        await one.ask(types.CLUSTER, initial_resource_versions={f"{B}/any": "1"})
        code, text = await one.status()
    return code is grpc.StatusCode.UNAVAILABLE and f"pool {B} has not been published" in text


async def _synced(control: Control, pool: str, envoys: int) -> bool:
    rows = await control.ask(f"/v1/xds?pool={pool}")
    return len({row["node"] for row in rows}) == envoys and all(row["state"] == "SYNCED" for row in rows)


async def test_certificates_go_by_host_and_a_new_one_comes_without_a_touch_on_connections(tmp_path: Path):
    port = free_port()
    authority = Authority(tmp_path / "authority")
    for name, host in (("shop", SHOP), ("help", HELP)):
        authority.issue(name, f"DNS:{host}")
    trust = ssl.create_default_context(cafile=str(authority.ca))

    def front(name: str, host: str) -> Front:
        files = {kind: str(authority.directory / f"{name}.{kind}") for kind in ("pem", "key")}
        return Front(port=port, hosts=(host,), tls=FrontTls(cert=files["pem"], key=files["key"]))

    async with world(tmp_path) as here:
        await here.serve(spec_of(A, front=front("shop", SHOP)))
        await here.front()
        await here.answers(port, SHOP, "/", here.addresses(A), trust)
        async with kept_alive(KeepAlive(port, get(SHOP, "/"), trust, SHOP)) as clients:
            await clients.more()
            await here.serve(spec_of(B, front=front("help", HELP)))
            await here.answers(port, HELP, "/", here.addresses(B), trust)
            before = await _serial(port, SHOP, trust), await _serial(port, HELP, trust)
            await clients.more()

            authority.issue("shop", f"DNS:{SHOP}")
            await until(lambda: _has_new(port, trust, before[0]), 40, "Envoy shows the new certificate")
            assert await _serial(port, HELP, trust) == before[1]
            await clients.more()

            for member in here.pools[B].members.values():
                await member.vanish()
            await here.pools.client.delete(here.pools[B].keys.everything)
            await until(lambda: _shows_nothing(port, trust), 40, "no certificate is shown for the host of the other")
            await clients.more()
        clients.untouched()
        assert clients.opened == 4


async def _serial(port: int, host: str, trust: ssl.SSLContext) -> str:
    """The serial number of the certificate that is shown for a host."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust, server_hostname=host)
    shown = writer.get_extra_info("peercert")
    writer.close()
    return str(shown["serialNumber"])


async def _has_new(port: int, trust: ssl.SSLContext, old: str) -> bool:
    return await _serial(port, SHOP, trust) != old


async def _shows_nothing(port: int, trust: ssl.SSLContext) -> bool:
    try:
        await _serial(port, HELP, trust)
    except (OSError, ssl.SSLError):
        return True
    return False
