"""etcd on two sites without a third: where its members are, and the take-over by the rendered Jobs, with real etcds."""

import re
import shutil
from datetime import UTC, datetime

import kubernetes_validate
import pytest

from tests.deploy.kubernetes.conftest import find, render
from tests.deploy.kubernetes.hardening import habit_faults, standard_faults
from tests.deploy.kubernetes.references import faults
from tests.harness.commands import ask, commands
from tests.harness.etcd import etcd_binary
from tests.harness.waiting import free_port, until
from understudy.deploy.kubernetes.preflight.findings import Level
from understudy.deploy.kubernetes.preflight.load_manifests import load
from understudy.deploy.kubernetes.preflight.manifests import judge_manifests

MEMBERS = ("etcd-east-0", "etcd-east-1", "etcd-west-0")
VERSIONS = ("1.25", kubernetes_validate.latest_version())


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    result, out = render(tmp_path_factory.mktemp("sites"), "--etcd-sites", "east,west")
    assert result.exit_code == 0, result.output
    return out


def container_of(objects, kind, name):
    return find(objects, kind, name)["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_knows_every_field_and_nothing_is_missing(sites, version):
    trial = load(sites / "overlays" / "trial")
    for step in ("look", "do"):
        objects = [*trial, *load(sites / "take-over" / step)]
        assert [*faults(trial), *standard_faults(objects), *habit_faults(objects)] == []
        for body in objects:
            kubernetes_validate.validate(body, version, strict=True)


def test_two_members_are_in_the_zone_of_the_first_site_and_one_in_the_other(sites):
    trial = load(sites / "overlays" / "trial")
    found = {}
    for one in trial:
        if one["kind"] == "StatefulSet" and one["metadata"]["name"].startswith("etcd"):
            (term,) = one["spec"]["template"]["spec"]["affinity"]["nodeAffinity"][
                "requiredDuringSchedulingIgnoredDuringExecution"
            ]["nodeSelectorTerms"]
            found[one["metadata"]["name"]] = (one["spec"]["replicas"], term["matchExpressions"][0])
    zone = {"key": "topology.kubernetes.io/zone", "operator": "In"}
    assert found == {"etcd-east": (2, {**zone, "values": ["east"]}), "etcd-west": (1, {**zone, "values": ["west"]})}
    endpoints = find(trial, "ConfigMap", "understudy-etcd")["data"]["UNDERSTUDY_ETCD"].split(",")
    assert [re.match(r"http://([\w-]+)\.etcd\.", one)[1] for one in endpoints] == list(MEMBERS)
    job = find(load(sites / "take-over" / "do"), "Job", "take-over-do")
    claims = [one["persistentVolumeClaim"]["claimName"] for one in job["spec"]["template"]["spec"]["volumes"][1:]]
    assert claims == ["data-etcd-west-0"]


def test_the_preflight_counts_the_members_of_both_sites(sites):
    trial = load(sites / "overlays" / "trial")
    what = "etcd survives the loss of a member"
    assert [one.level for one in judge_manifests(trial, datetime.now(UTC)) if one.what == what] == [Level.OK] * 2
    trial.remove(find(trial, "StatefulSet", "etcd-west"))
    assert [one.level for one in judge_manifests(trial, datetime.now(UTC)) if one.what == what] == [Level.WARN]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--etcd-sites", "east"), "names two zones"),
        (("--etcd-sites", "east,east"), "names two zones"),
        (("--etcd-sites", "east,We_st"), "use at most 40 of a-z 0-9 -"),
        (("--etcd-sites", "east,west", "--etcd", "etcd.data.svc:2379"), "'--etcd trial'"),
    ],
)
def test_sites_that_cannot_be_are_refused(tmp_path, arguments, why):
    result, _ = render(tmp_path, *arguments)
    assert (result.exit_code, why in " ".join(result.output.split())) == (2, True), result.output


class Pods:
    """The members of etcd as their pods would run: rendered arguments and variables, on ports of this machine."""

    def __init__(self, running, home, objects):
        self.running, self.home, self.objects = running, home, objects
        self.ports = {(name, port): free_port() for name in MEMBERS for port in (2379, 2380, 2381)}

    def here(self, text, name):
        text = text.replace("$(POD_NAME)", name).replace("/var/lib/etcd", str(self.home / f"{name}-data"))
        host = r"(etcd-[a-z]+-\d)\.etcd\.understudy\.svc\.cluster\.local:(\d+)"
        text = re.sub(host, lambda found: f"127.0.0.1:{self.ports[found[1], int(found[2])]}", text)
        return re.sub(r"0\.0\.0\.0:(\d+)", lambda found: f"127.0.0.1:{self.ports[name, int(found[1])]}", text)

    async def start(self, name, **changed):
        """Start a member; ``changed`` are variables that 'kubectl set env' gave it."""
        container = container_of(self.objects, "StatefulSet", name.rpartition("-")[0])
        variables = {one["name"]: one.get("value", "") for one in container["env"]} | changed
        (self.home / f"{name}-data").mkdir(mode=0o700, exist_ok=True)
        arguments = []
        for one in container["args"]:
            said = re.sub(r"\$\((INITIAL_\w+)\)", lambda found: variables[found[1]], one)
            arguments.append(self.here(said, name))
        await self.running.program(name, str(etcd_binary()), *arguments, "--log-level=error")

    async def healthy(self, name):
        async def well():
            return (await ask(f"127.0.0.1:{self.ports[name, 2381]}", "/health"))["health"] == "true"

        await until(well, 60, f"{name} is ready")

    async def add(self, name):
        """``etcdctl member add`` in the pod that is left; etcd refuses it soon after another."""
        west, peer = self.ports["etcd-west-0", 2379], self.ports[name, 2380]
        command = ("member", "add", name, f"--peer-urls=http://127.0.0.1:{peer}")

        async def added():
            await self.running.program("ctl", str(etcd_binary("etcdctl")), f"--endpoints=127.0.0.1:{west}", *command)
            return await self.running._running["ctl"].wait() == 0

        await until(added, 60, f"{name} is added", every=0.5)


async def test_the_rendered_jobs_take_over_and_the_lost_members_join_again_by_their_variables(tmp_path, sites):
    objects = load(sites / "overlays" / "trial")
    async with commands(tmp_path) as running:
        pods = Pods(running, tmp_path, objects)
        for name in MEMBERS:
            await pods.start(name)
        for name in MEMBERS:
            await pods.healthy(name)

        async def job(step):
            arguments = container_of(load(sites / "take-over" / step), "Job", f"take-over-{step}")["args"]
            binary = ("--etcd-binary", str(etcd_binary()))  # in the image it is on the PATH
            return await running.run(*(pods.here(one, "etcd-west-0") for one in arguments), *binary)

        await running.kill("etcd-west-0")
        code, said = await job("do")
        assert (code, "more than half of etcd's members answer" in said) == (1, True), said
        for name in MEMBERS[:2]:
            await running.kill(name)
        code, said = await job("look")
        assert (code, "no majority of etcd answers" in said) == (0, True), said
        code, said = await job("do")
        assert (code, "etcdctl member add etcd-east-0" in said) == (0, True), said
        await pods.start("etcd-west-0")
        await pods.healthy("etcd-west-0")

        cluster = [part for part in variable_of(objects, "INITIAL_CLUSTER").split(",") if "west" in part]
        for name in MEMBERS[:2]:
            shutil.rmtree(tmp_path / f"{name}-data")
            await pods.add(name)
            cluster.append(f"{name}=http://{name}.etcd.understudy.svc.cluster.local:2380")
            await pods.start(name, INITIAL_CLUSTER_STATE="existing", INITIAL_CLUSTER=",".join(cluster))
            await pods.healthy(name)


def variable_of(objects, name):
    env = container_of(objects, "StatefulSet", "etcd-east")["env"]
    return next(one["value"] for one in env if one["name"] == name)
