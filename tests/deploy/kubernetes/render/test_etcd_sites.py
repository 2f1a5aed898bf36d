"""etcd on sites: where its members and others are, who leads, and the take-over by rendered Jobs, with real etcds."""

import re
import shutil
from datetime import UTC, datetime

import kubernetes_validate
import pytest

from tests.deploy.kubernetes.conftest import MIRROR, find, render
from tests.deploy.kubernetes.hardening import habit_faults, standard_faults
from tests.deploy.kubernetes.references import faults
from tests.harness.commands import ask, commands
from tests.harness.etcd import etcd_binary
from tests.harness.places import ROOT
from tests.harness.waiting import free_port, until
from understudy.deploy.common.etcd_clusters import led_by
from understudy.deploy.kubernetes.preflight.findings import Level
from understudy.deploy.kubernetes.preflight.load_manifests import load
from understudy.deploy.kubernetes.preflight.manifest_index import workloads
from understudy.deploy.kubernetes.preflight.manifests import judge_manifests
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.xds.control.etcd_leader import STEADY, PreferredLeader

MEMBERS = ("etcd-east-0", "etcd-east-1", "etcd-west-0")
WITH_WITNESS = ("etcd-east-0", "etcd-west-0", "etcd-north-0")
PAGE_LINES = re.findall(r"^etcdctl member .*", (ROOT / "docs/kubernetes.md").read_text(), re.MULTILINE)
VERSIONS = ("1.25", kubernetes_validate.latest_version())


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    result, out = render(tmp_path_factory.mktemp("sites"), "--etcd-sites", "east,west")
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def witness(tmp_path_factory):
    arguments = ("--etcd-sites", "east,west,north", *MIRROR)
    result, out = render(tmp_path_factory.mktemp("witness"), *arguments)
    assert result.exit_code == 0, result.output
    return out


def zones_of(pod):
    """The zones in which a pod may be; none if it may be anywhere."""
    affinity = pod.get("affinity", {}).get("nodeAffinity")
    if affinity is None:
        return []
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    (wanted,) = term["matchExpressions"]
    assert (wanted["key"], wanted["operator"]) == ("topology.kubernetes.io/zone", "In")
    return wanted["values"]


def endpoints_of(objects):
    return find(objects, "ConfigMap", "understudy-etcd")["data"]["UNDERSTUDY_ETCD"].split(",")


def pods_at(urls):
    return [re.match(r"http://([\w-]+)\.etcd\.", one)[1] for one in urls]


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
    found = {one.body["metadata"]["name"]: (one.replicas, zones_of(one.pod)) for one in workloads(trial)}
    assert {name: where for name, where in found.items() if where[1]} == {
        "etcd-east": (2, ["east"]),
        "etcd-west": (1, ["west"]),
    }
    assert pods_at(endpoints_of(trial)) == list(MEMBERS)
    job = find(load(sites / "take-over" / "do"), "Job", "take-over-do")
    claims = [one["persistentVolumeClaim"]["claimName"] for one in job["spec"]["template"]["spec"]["volumes"][1:]]
    assert claims == ["data-etcd-west-0"]


def test_the_preflight_counts_the_members_of_both_sites(sites):
    trial = load(sites / "overlays" / "trial")
    what = "etcd survives the loss of a member"
    assert [one.level for one in judge_manifests(trial, datetime.now(UTC)) if one.what == what] == [Level.OK] * 2
    trial.remove(find(trial, "StatefulSet", "etcd-west"))
    assert [one.level for one in judge_manifests(trial, datetime.now(UTC)) if one.what == what] == [Level.WARN]


@pytest.mark.parametrize("version", VERSIONS)
def test_with_a_witness_kubernetes_knows_every_field_and_nothing_is_missing(witness, version):
    trial = load(witness / "overlays" / "trial")
    assert [*faults(trial), *standard_faults(trial), *habit_faults(trial)] == []
    for body in trial:
        kubernetes_validate.validate(body, version, strict=True)


def test_the_witness_zone_has_one_member_of_etcd_and_nothing_else(witness):
    trial = load(witness / "overlays" / "trial")
    found = {one.body["metadata"]["name"]: (one.replicas, zones_of(one.pod)) for one in workloads(trial)}
    etcd = {name: found.pop(name) for name in ("etcd-east", "etcd-west", "etcd-north")}
    assert etcd == {f"etcd-{site}": (1, [site]) for site in ("east", "west", "north")}
    others = {re.sub(r"-[0-9a-f]{8}$", "", name): zones for name, (_, zones) in found.items()}
    names = ("cart", "control-cart", "front-cart", "mirror-cart", "operator-cart", "spec-cart", "understudy-injector")
    assert others == {name: ["east", "west"] for name in names}


def test_pods_keep_their_other_affinity_beside_that_for_zones(witness, sites):
    for kind, name in (("Deployment", "control-cart"), ("StatefulSet", "cart")):
        with_witness, without = (
            find(load(out / "overlays" / "trial"), kind, name)["spec"]["template"]["spec"] for out in (witness, sites)
        )
        assert with_witness["affinity"]["podAntiAffinity"] == without["affinity"]["podAntiAffinity"]
        assert with_witness["topologySpreadConstraints"] == without["topologySpreadConstraints"]


def test_all_members_of_etcd_form_one_cluster_and_share_a_disruption_budget(witness):
    trial = load(witness / "overlays" / "trial")
    host = "etcd.understudy.svc.cluster.local:2380"
    for site in ("east", "west", "north"):
        cluster = variable_of(trial, "INITIAL_CLUSTER", f"etcd-{site}")
        assert cluster == ",".join(f"{name}=http://{name}.{host}" for name in WITH_WITNESS)
        assert variable_of(trial, "INITIAL_CLUSTER_STATE", f"etcd-{site}") == "new"
    assert pods_at(endpoints_of(trial)) == ["etcd-north-0", "etcd-east-0", "etcd-west-0"], "both sites reach the first"
    budget = find(trial, "PodDisruptionBudget", "etcd")["spec"]
    assert budget["maxUnavailable"] == 1
    wanted = budget["selector"]["matchLabels"].items()
    covered = {one.body["metadata"]["name"] for one in workloads(trial) if wanted <= one.labels.items()}
    assert covered == {"etcd-east", "etcd-west", "etcd-north"}


def test_a_witness_needs_no_take_over_and_no_image_for_it(witness, tmp_path):
    assert not (witness / "take-over").exists()
    for zones, code in (("east,west", 2), ("east,west,north", 0)):
        result, _ = render(tmp_path, "--etcd-sites", zones, "--image", "take-over=registry.example/us:latest")
        assert result.exit_code == code, result.output


def leader_of(objects):
    """The value of ``--etcd-leader`` of the control servers; none without the option."""
    arguments = container_of(objects, "Deployment", "control-cart")["args"]
    return arguments[arguments.index("--etcd-leader") + 1] if "--etcd-leader" in arguments else None


def test_control_servers_keep_the_lead_of_etcd_at_the_witness(witness, sites):
    trial = load(witness / "overlays" / "trial")
    leader = leader_of(trial)
    assert leader == "etcd-north-0.etcd.understudy.svc.cluster.local:2379"
    assert led_by(EtcdSettings(tuple(endpoints_of(trial))), leader, "").leader == leader
    assert leader_of(load(sites / "overlays" / "trial")) is None


def test_a_pool_gets_another_job_for_its_spec_because_jobs_cannot_be_changed(witness, sites):
    (with_witness,), (without,) = (
        [one["metadata"]["name"] for one in load(out / "base") if one["kind"] == "Job"] for out in (witness, sites)
    )
    assert with_witness != without


def test_the_preflight_counts_the_members_of_all_three_zones_and_finds_the_traffic_allowed(witness):
    judged = judge_manifests(load(witness / "overlays" / "trial"), datetime.now(UTC))
    wanted = ("etcd survives the loss of a member", "network policies allow the traffic between the parts")
    assert [one.level for one in judged if one.what in wanted] == [Level.OK] * 4


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--etcd-sites", "east"), "names two zones"),
        (("--etcd-sites", "east,east"), "names two zones"),
        (("--etcd-sites", "east,west,east"), "each once, and not 'east,west,east'"),
        (("--etcd-sites", "a,b,c,d"), "or two and a witness"),
        (("--etcd-sites", "east,west,No_rth"), "use at most 40 of a-z 0-9 -"),
        (("--etcd-sites", "east,west,north", "--etcd", "etcd.data.svc:2379"), "'--etcd trial'"),
        (("--etcd-sites", "east,We_st"), "use at most 40 of a-z 0-9 -"),
        (("--etcd-sites", "east,west", "--etcd", "etcd.data.svc:2379"), "'--etcd trial'"),
    ],
)
def test_sites_that_cannot_be_are_refused(tmp_path, arguments, why):
    result, _ = render(tmp_path, *arguments)
    assert (result.exit_code, why in " ".join(result.output.split())) == (2, True), result.output


class Pods:
    """The members of etcd as their pods would run: rendered arguments and variables, on ports of this machine."""

    def __init__(self, running, home, objects, names=MEMBERS):
        self.running, self.home, self.objects = running, home, objects
        self.ports = {(name, port): free_port() for name in names for port in (2379, 2380, 2381)}

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
        """``etcdctl member add`` in the pod that is left."""
        peer = self.ports[name, 2380]
        await self.etcdctl("etcd-west-0", f"etcdctl member add {name} --peer-urls=http://127.0.0.1:{peer}")

    async def etcdctl(self, pod, line):
        """A line of shell with etcdctl in a pod; etcd refuses changes of members soon after another."""
        there = f'etcdctl() {{ {etcd_binary("etcdctl")} --endpoints=127.0.0.1:{self.ports[pod, 2379]} "$@"; }}'

        async def done():
            await self.running.program("ctl", shutil.which("bash"), "-c", f"{there}\n{self.here(line, pod)}")
            return await self.running._running["ctl"].wait() == 0

        await until(done, 60, line, every=0.5)


@pytest.mark.nightly
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


async def test_the_witness_gets_the_lead_of_real_etcds_started_as_rendered(tmp_path, witness):
    objects = load(witness / "overlays" / "trial")
    async with commands(tmp_path) as running:
        pods = Pods(running, tmp_path, objects, WITH_WITNESS)
        for name in WITH_WITNESS[:2]:
            await pods.start(name)
        for name in WITH_WITNESS[:2]:
            await pods.healthy(name)
        await pods.start("etcd-north-0")
        await pods.healthy("etcd-north-0")

        endpoints = tuple(pods.here(one, "") for one in endpoints_of(objects))
        settings = led_by(EtcdSettings(endpoints), pods.here(leader_of(objects), ""), "--etcd-leader")
        async with settings.client() as client:
            preferred = PreferredLeader(client, settings)

            async def leader():
                (one,) = [status.endpoint for status in await client.status() if status.leader]
                return one

            at_witness = f"127.0.0.1:{pods.ports['etcd-north-0', 2379]}"
            assert await leader() != at_witness, "it came last"
            for _ in range(STEADY):
                await preferred.look()
            assert await leader() == at_witness


async def test_a_member_without_its_data_joins_again_by_the_pages_commands(tmp_path, witness):
    async with commands(tmp_path) as running:
        pods = Pods(running, tmp_path, load(witness / "overlays" / "trial"), WITH_WITNESS)
        for name in WITH_WITNESS:
            await pods.start(name)
        for name in WITH_WITNESS:
            await pods.healthy(name)
        await running.kill("etcd-east-0")
        shutil.rmtree(tmp_path / "etcd-east-0-data")
        for line in PAGE_LINES:
            await pods.etcdctl("etcd-north-0", line)
        await pods.start("etcd-east-0", INITIAL_CLUSTER_STATE="existing")
        await pods.healthy("etcd-east-0")


def variable_of(objects, name, workload="etcd-east"):
    env = container_of(objects, "StatefulSet", workload)["env"]
    return next(one["value"] for one in env if one["name"] == name)
