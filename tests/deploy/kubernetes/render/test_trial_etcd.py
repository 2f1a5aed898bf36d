"""The trial's etcd, started with its rendered command line: three members find each other, compact and have a quota."""

import re

from tests.deploy.kubernetes.conftest import find
from tests.harness.commands import ask, commands
from tests.harness.etcd import etcd_binary
from tests.harness.waiting import free_port, until
from understudy.deploy.kubernetes.preflight.etcd import judge_etcd, look_at_etcd
from understudy.deploy.kubernetes.preflight.findings import Level
from understudy.deploy.kubernetes.preflight.load_manifests import load
from understudy.deploy.local.programs import ETCD_QUOTA_BYTES
from understudy.statesync.etcd.settings import EtcdSettings

MEMBERS = 3


def here(text, name, ports, home):
    """A rendered argument with a port of this machine for each port of each pod."""
    text = text.replace("$(POD_NAME)", name).replace("/var/lib/etcd", str(home))
    host = r"(etcd-\d)\.etcd\.understudy\.svc\.cluster\.local:(\d+)"
    text = re.sub(host, lambda found: f"127.0.0.1:{ports[found[1], int(found[2])]}", text)
    return re.sub(r"0\.0\.0\.0:(\d+)", lambda found: f"127.0.0.1:{ports[name, int(found[1])]}", text)


async def test_three_members_form_a_cluster_that_the_preflight_finds_well(tmp_path, rendered):
    objects = load(rendered / "overlays" / "trial")
    container = find(objects, "StatefulSet", "etcd")["spec"]["template"]["spec"]["containers"][0]
    names = [f"etcd-{number}" for number in range(MEMBERS)]
    ports = {(name, port): free_port() for name in names for port in (2379, 2380, 2381)}
    probe = container["readinessProbe"]["httpGet"]
    assert probe == {"path": "/health", "port": "metrics"}
    async with commands(tmp_path) as running:
        for name in names:
            home = tmp_path / f"{name}-data"
            home.mkdir(mode=0o700)
            arguments = [here(one, name, ports, home) for one in container["args"]]
            await running.program(name, str(etcd_binary()), *arguments, "--log-level=error")
        for name in names:

            async def healthy(name=name):
                return (await ask(f"127.0.0.1:{ports[name, 2381]}", probe["path"]))["health"] == "true"

            await until(healthy, 30, f"{name} is ready")

        told = find(objects, "ConfigMap", "understudy-etcd")["data"]["UNDERSTUDY_ETCD"]
        settings = EtcdSettings(tuple(here(one, "", ports, tmp_path) for one in told.split(",")))
        async with settings.client() as client:

            async def well():
                """They may elect a leader just now."""
                report = await look_at_etcd(settings, client, "cart")
                assert [fact.quota for fact in report.facts] == [ETCD_QUOTA_BYTES] * MEMBERS
                bad = [one.what for one in judge_etcd(report) if one.level in (Level.FAIL, Level.WARN)]
                assert bad == ["the version is safe"] * MEMBERS, "the tests' etcd is 3.5.1"
                return True

            await until(well, 40, "the cluster is well")
