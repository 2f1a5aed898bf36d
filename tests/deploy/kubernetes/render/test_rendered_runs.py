"""What is rendered is what runs: the containers' own command lines, with addresses of this machine in them.

The control server, the Job that applies the spec, a member and the front Envoy are started with what their manifests
say, on a real etcd, and a request goes through all of them. Only a kubelet's part is played by the test: variables,
mounted files, probes and the preStop hook.
"""

import asyncio
import json
import os
import sqlite3
from contextlib import closing

import aiohttp
import pytest

from tests.deploy.kubernetes.conftest import render
from tests.deploy.kubernetes.render.on_this_machine import Cluster
from tests.harness.commands import ask, commands
from tests.harness.waiting import until
from understudy.deploy.common.layout import ControlAddresses, FrontAddresses, Layout
from understudy.deploy.kubernetes.preflight.load_manifests import load
from understudy.deploy.kubernetes.render.front import drain_command
from understudy.deploy.kubernetes.render.plan import Plan, Pool, choose_images, parse_certificates
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.programs import programs
from understudy.proxy.front.bootstrap import bootstrap
from understudy.statesync.pool.spec import PoolSpec

SPEC = "slots: 8\nsession_key: [{header: x-session-id}]\n"


def rendered_cluster(home, pool, etcd, *arguments, certificates=None):
    rendered, out = render(home, *arguments, spec=f"pool: {pool}\n{SPEC}")
    assert rendered.exit_code == 0, rendered.output
    return Cluster(load(out / "overlays" / "trial"), pool, etcd.endpoint, home, certificates)


@pytest.fixture
def cluster(tmp_path, pool_name, etcd):
    return rendered_cluster(tmp_path, pool_name, etcd)


@pytest.fixture
def secured(tmp_path, pool_name, etcd):
    """The same with certificates of an issuer; the authority that plays its part is the test's own."""
    issuer = "csi:understudy:ClusterIssuer"
    certificates = parse_certificates(issuer)
    return rendered_cluster(tmp_path, pool_name, etcd, "--certificates", issuer, certificates=certificates)


async def start(cluster, running):
    await cluster.start_control(running)
    await cluster.start_member(running)
    await cluster.start_front(running)


async def beats_arrive(cluster):
    """What a member has applied is told by its heartbeats alone, at the address that the control server advertises."""

    async def told():
        (member,) = (await ask(f"127.0.0.1:{cluster.here[18001]}", "/v1/status"))["members"]
        return member["state"] == "UP" and member["applied"]

    await until(told, 40, "the member is UP, and its heartbeats arrive")


async def test_a_request_goes_through_everything_that_was_rendered(tmp_path, cluster):
    status, front = (f"127.0.0.1:{cluster.here[port]}" for port in (19000, 8080))
    async with commands(tmp_path) as running, aiohttp.ClientSession() as http:
        await start(cluster, running)

        async def answered():
            async with http.post(f"http://{front}/cart") as reply:
                return reply.status == 201 and reply.headers.get("x-session-id")

        assert await until(answered, 40, "a cart is made through the front Envoy", every=0.2)

        async with http.get(f"http://{status}/ready") as reply:
            assert reply.status == 200, "the readiness probe"
        async with http.get(f"http://{status}/stats/prometheus") as reply:
            assert "envoy_cluster_upstream_rq_total" in await reply.text()
        for path in ("/quitquitquit", "/config_dump", "/ready/../config_dump", "/"):
            async with http.post(f"http://{status}{path}") as reply:
                assert reply.status == 404, path
        await beats_arrive(cluster)
        nodes = await ask(f"127.0.0.1:{cluster.here[18001]}", "/v1/xds")
        assert {one["node"] for one in nodes} == {"front-abc-1"}, "each Envoy has its pod's name"


async def test_with_certificates_it_goes_through_as_well_and_nobody_gets_in_without(tmp_path, secured):
    front, grpc = (f"127.0.0.1:{secured.here[port]}" for port in (8080, 18000))
    async with commands(tmp_path) as running, aiohttp.ClientSession() as http:
        await start(secured, running)

        async def answered():
            async with http.post(f"http://{front}/cart") as reply:
                return reply.status == 201

        assert await until(answered, 40, "a cart is made through the front Envoy", every=0.2)

        await beats_arrive(secured)
        for address in (grpc, f"127.0.0.1:{secured.members['cart-0'][7601]}"):
            with pytest.raises(aiohttp.ClientError):
                await http.get(f"http://{address}/peer/v1/status")
    assert "--insecure" not in json.dumps(secured.objects)


@pytest.mark.nightly
async def test_the_first_failover_is_as_the_page_tells_it(tmp_path, secured):
    """Two members with certificates, one killed without warning; commands as an operator's pod runs them."""
    front = f"http://127.0.0.1:{secured.here[8080]}"
    async with commands(tmp_path) as running, aiohttp.ClientSession() as http:
        await start(secured, running)
        await secured.start_member(running, "cart-1")

        async def told(*arguments):
            code, output = await secured.operate(running, *arguments, "-o", "json")
            assert code == 0, output
            return json.loads(output)

        async def both_serve():
            members = (await told("status"))["members"]
            return len(members) == 2 and min(one["active"] for one in members) >= 3

        await until(both_serve, 40, "both members have their share", every=0.3)

        async def cart():
            async with http.post(f"{front}/cart") as reply:
                return reply.headers["x-session-id"]

        key = await until(cart, 40, "a cart is made", every=0.2)
        headers = {"x-session-id": key, "idempotency-key": "one"}
        async with http.post(f"{front}/cart/items", headers=headers, json={"sku": "tea", "quantity": 2}) as reply:
            assert reply.status == 200, await reply.text()

        async def in_sync():
            return (await told("status", "--sync"))["in_sync"]

        await until(in_sync, 40, "the standby has it too", every=0.3)
        serving = (await told("explain", key))["owner"]

        for part in ("sidecar", "app"):  # without its application a sidecar would hand over what it has
            await running.kill(f"{serving}-{part}")

        async with http.get(f"{front}/cart", headers={"x-session-id": key}) as reply:
            assert (reply.status, "tea" in await reply.text()) == (200, True), "the tea is still there"

        async def known():
            failovers = (await told("failovers"))["failovers"]
            return [one for one in failovers if (one["kind"], one["from"]) == ("takeover", [serving])]

        await until(known, 40, "the failover is on record", every=0.3)
        await until(lambda: told("trace"), 40, "and its trace")


async def test_the_pre_stop_hook_sends_clients_elsewhere_and_refuses_nobody(tmp_path, cluster):
    front = f"127.0.0.1:{cluster.here[8080]}"
    async with commands(tmp_path) as running, aiohttp.ClientSession() as http:
        await start(cluster, running)

        async def connection_kept():
            async with http.post(f"http://{front}/cart") as reply:
                return reply.status == 201 and reply.headers.get("Connection") != "close"

        await until(connection_kept, 40, "requests are answered, and the connection is kept", every=0.2)
        rendered = cluster.pod(f"front-{cluster.pool}")["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert rendered == drain_command()
        hook = await asyncio.create_subprocess_exec(
            *(one for one in drain_command(cluster.here[9901], seconds=1)), stdout=asyncio.subprocess.PIPE
        )
        output, _ = await hook.communicate()
        assert hook.returncode == 0
        assert output.startswith(b"HTTP/1.1 200")

        async def told_to_leave():
            async with http.post(f"http://{front}/cart") as reply:
                assert reply.status == 201, "answered all the time"
                return reply.headers.get("Connection") == "close"

        await until(told_to_leave, 40, "clients are told to connect elsewhere")

        async def counted():
            with closing(sqlite3.connect(tmp_path / "traces.sqlite")) as traces:
                return traces.execute("SELECT DISTINCT node FROM counts").fetchall()

        assert await until(counted, 40, "its requests are counted", every=0.3) == [("front-abc-1",)]


def options_of(command):
    return [one for one in command if one.startswith("--")]


def test_local_pool_and_manifests_start_control_servers_by_one_function(cluster, tmp_path):
    layout = Layout(
        pool=cluster.pool,
        pid=os.getpid(),
        etcd=("http://127.0.0.1:1",),
        etcd_peers=("http://127.0.0.1:2",),
        controls=(ControlAddresses("control-1", "127.0.0.1:3", "127.0.0.1:4"),),
        front=FrontAddresses("front-1", "127.0.0.1:5", "127.0.0.1:6"),
        members=(),
    )
    settings = LocalSettings(tmp_path, PoolSpec(pool=cluster.pool))
    local = next(one.command for one in programs(settings, layout, "etcd") if one.name == "control-1")
    local = local[local.index("control") :]

    rendered = cluster.pod(f"control-{cluster.pool}")["containers"][0]["args"]

    in_pods = {"--advertise-grpc", "--advertise-http", "--insecure"}
    assert [one for one in options_of(rendered) if one not in in_pods] == options_of(local)


def test_the_front_envoys_bootstrap_is_the_one_of_understudy_envoy(cluster):
    here = cluster.here
    rendered = cluster.bootstrap()
    address = f"127.0.0.1:{here[18000]}"
    own = bootstrap(
        node_id="front-1",
        pool=cluster.pool,
        listen=f"127.0.0.1:{here[8080]}",
        xds_addresses=[address],
        admin=f"127.0.0.1:{here[9901]}",
    )

    assert rendered["dynamic_resources"] == own["dynamic_resources"]
    assert rendered["admin"] == own["admin"]
    assert {**rendered["node"], "id": ""} == {**own["node"], "id": ""}
    theirs, ours = rendered["static_resources"]["clusters"][0], own["static_resources"]["clusters"][0]
    assert theirs["type"] == "STRICT_DNS"
    assert {**theirs, "type": ""} == {**ours, "type": ""}


def test_images_and_plan_have_defaults_that_are_pinned():
    plan = Plan((Pool(PoolSpec(pool="cart")),), choose_images("registry.example/", "1.2.3"))

    assert plan.images.sidecar == "registry.example/understudy-sidecar:1.2.3"
    assert plan.images.envoy.endswith(":v1.40.0")
