"""``understudy render kubernetes -f a.yaml -f b.yaml``: one plane for several pools."""

import json

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from tests.deploy.kubernetes.conftest import OWN_ETCD, find
from tests.deploy.kubernetes.hardening import habit_faults, standard_faults
from tests.deploy.kubernetes.references import faults
from tests.deploy.kubernetes.render.test_command_lines import parsed
from understudy.deploy.cli.main import cli
from understudy.deploy.kubernetes.base.names import COMPONENT, POOL
from understudy.deploy.kubernetes.preflight.lint_reach import Outside, Pod, Policies
from understudy.deploy.kubernetes.preflight.load_manifests import load
from understudy.deploy.kubernetes.preflight.manifest_index import workloads

CART = "pool: cart\nfront: {port: 8080, hosts: [shop.example], paths: [/cart]}\n"
DESK_TLS = "tls: {cert: /etc/understudy-front/desk/tls.crt, key: /etc/understudy-front/desk/tls.key}"
DESK = f"pool: desk\nfront: {{port: 443, hosts: [desk.example], {DESK_TLS}}}\n"
LEDGER = "pool: ledger\nprotocol: tcp\nfront: {port: 5432}\n"


def render(directory, *arguments, specs=(CART, DESK, LEDGER)):
    files = []
    for number, spec in enumerate(specs):
        file = directory / f"{number}.yaml"
        file.write_text(spec)
        files += ["-f", str(file)]
    out = directory / "manifests"
    wanted = ["render", "kubernetes", *files, "--out", str(out), "--registry", "registry.example", *arguments]
    return CliRunner().invoke(cli, wanted), out


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    wanted = (*OWN_ETCD, "--etcd-tls-secret", "etcd", "--certificates", "csi:us:ClusterIssuer")
    ports = ("--app-port", "desk=9000", "--app-namespace", "desk=support", "--front-tls-secret", "desk")
    result, out = render(tmp_path_factory.mktemp("several"), *wanted, *ports)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def made(several):
    return load(several / "overlays" / "production")


def pod(objects, kind, name):
    return find(objects, kind, name)["spec"]["template"]["spec"]


def test_one_plane_serves_all_pools_with_objects_that_fit_together(made):
    assert [one["metadata"]["name"] for one in made if one["kind"] == "StatefulSet"] == ["control"]
    assert len([one for one in made if one["kind"] == "Job"]) == 3
    assert faults(made) == []
    assert standard_faults(made) == []
    assert habit_faults(made) == []
    for body in made:
        if not body["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(body, "1.25", strict=True)


def test_its_control_servers_and_envoys_are_told_to_serve_all(made):
    control = pod(made, "StatefulSet", "control")["containers"][0]["args"]
    assert "--all-pools" in control
    assert parsed(control) == "control"
    config = next(one for one in made if "bootstrap.json" in one.get("data", {}))
    node = json.loads(config["data"]["bootstrap.json"])["node"]
    assert (node["cluster"], node["metadata"]["understudy"]["listen"]) == ("pools:*", "0.0.0.0:0")


def test_the_service_has_the_ports_of_all_specs(made):
    ports = find(made, "Service", "front")["spec"]["ports"]
    assert [(one["name"], one["port"], one.get("appProtocol")) for one in ports] == [
        ("https-443", 443, "https"),
        ("tcp-5432", 5432, None),
        ("http-8080", 8080, "http"),
    ]
    front = pod(made, "Deployment", "front")
    assert front["securityContext"]["sysctls"] == [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]
    mounted = {one["mountPath"]: one["name"] for one in front["containers"][0]["volumeMounts"]}
    volume = next(one for one in front["volumes"] if one["name"] == mounted["/etc/understudy-front/desk"])
    assert volume["secret"]["secretName"] == "desk"


def test_certificates_have_the_names_that_a_plane_of_several_pools_needs(made):
    def names(kind, name):
        volume = next(one for one in pod(made, kind, name)["volumes"] if "csi" in one)
        told = volume["csi"]["volumeAttributes"]
        return told["csi.cert-manager.io/uri-sans"], told.get("csi.cert-manager.io/dns-names", "")

    assert names("Deployment", "front") == ("spiffe://understudy/fronts/${POD_NAME}", "")
    uris, hosts = names("StatefulSet", "control")
    assert uris.split(",") == [f"spiffe://understudy/{one}/control/${{POD_NAME}}" for one in ("cart", "desk", "ledger")]
    assert "${POD_NAME}" in hosts.split(",")


def test_each_pools_members_are_reached_at_their_port_and_not_by_other_pools(made):
    policies, parts = Policies(made), {one.labels[COMPONENT]: one.as_pod() for one in workloads(made)}
    cart, desk = Pod("cart", {POOL: "cart"}), Pod("support", {POOL: "desk"})

    assert policies.allow(parts["front"], desk, 9000)
    assert policies.allow(parts["front"], cart, 8080)
    assert not policies.allow(parts["front"], cart, 9000)
    assert policies.allow(desk, parts["control"], 18000)
    assert policies.allow(parts["control"], desk, 7601)
    assert not policies.allow(cart, desk, 7601)
    assert [port for port in (80, 443, 5432, 8080) if policies.allow(Outside("203.0.113.9"), parts["front"], port)] == [
        443,
        5432,
        8080,
    ]


def test_prometheus_gets_each_pools_metrics_under_an_instance_of_its_own(made):
    endpoints = find(made, "ServiceMonitor", "control")["spec"]["endpoints"]

    assert [one.get("params") for one in endpoints] == [None, *({"pool": [one]} for one in ("cart", "desk", "ledger"))]
    assert [one["relabelings"][0]["replacement"] for one in endpoints[1:]] == ["$1/cart", "$1/desk", "$1/ledger"]


def test_one_file_can_have_a_shared_plane_as_well(tmp_path):
    result, out = render(tmp_path, "--shared", specs=(CART,))

    assert result.exit_code == 0, result.output
    assert find(load(out / "overlays" / "trial"), "Deployment", "control")
    assert yaml.safe_load((out / "overlays/trial/kustomization.yaml").read_text())["kind"] == "Kustomization"


@pytest.mark.parametrize(
    ("specs", "arguments", "complaint"),
    [
        ((CART, "pool: desk\n"), (), "pool 'desk' has no front"),
        ((CART, "pool: desk\nfront: {port: 9901}\n"), (), "one of Envoy's own ports"),
        ((CART, CART), (), "two files have the same pool"),
        ((CART, CART.replace("pool: cart", "pool: desk")), (), "pool 'cart' has host shop.example"),
        ((CART, DESK), ("--app-port", "shop=1"), "no -f has pool 'shop'"),
        ((CART, DESK), ("--app-port", "desk=0"), "'0' of pool 'desk' is not a port"),
        ((CART, DESK), ("--app-namespace", "desk=understudy"), "namespace of Understudy itself"),
    ],
)
def test_what_cannot_be_on_one_plane_is_refused_by_name(tmp_path, specs, arguments, complaint):
    refused, out = render(tmp_path, *arguments, specs=specs)

    assert refused.exit_code == 2
    assert complaint in refused.output
    assert not out.exists()
