"""``understudy render istio`` from the terminal: what is written, what is refused, and who is left alone."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from tests.deploy.kubernetes.istio.envoyfilter import Proxy, effective, value_of
from tests.deploy.kubernetes.istio.fields import refuse_unknown_fields
from tests.deploy.kubernetes.istio.meshlike import GATEWAY, envoy_filters, resources_of
from understudy.deploy.cli.main import cli
from understudy.deploy.kubernetes.istio.objects import proxy_versions
from understudy.deploy.kubernetes.istio.plan import MeshPlan
from understudy.deploy.kubernetes.istio.tree import PREPARE, ROUTE
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Mesh

SPEC = "pool: cart\nmesh: {host: cart-slots.shop.svc.cluster.local, port: 7681}\n"
TLS = ("--port", "443", "--listener-port", "8443", "--host", "cart.example.com", "--credential", "cart-tls")
CLIENT = ("--mode", "client", "--proxy-namespace", "web", "--selector", "app=web")


def render(directory: Path, *options: str, spec: str = SPEC):
    (directory / "pool.yaml").write_text(spec)
    command = ["render", "istio", "-f", str(directory / "pool.yaml"), "--out", str(directory / "out"), *options]
    return CliRunner().invoke(cli, command)


def written(directory: Path) -> list[dict]:
    texts = [
        path.read_text() for path in sorted((directory / "out").rglob("*.yaml")) if "kustomization" not in path.name
    ]
    return [body for text in texts for body in yaml.safe_load_all(text)]


@pytest.mark.parametrize("options", [(), CLIENT, ("--xds-tls", "none", "--port", "80", "--listener-port", "8080"), TLS])
def test_every_resource_and_every_fragment_in_it_has_only_fields_that_exist(tmp_path: Path, options: tuple[str, ...]):
    assert render(tmp_path, "--istio-version", "1.29.0", *options).exit_code == 0
    for body in written(tmp_path):
        refuse_unknown_fields(body)
        if body["kind"] == "EnvoyFilter":
            assert all(value_of(patch) for patch in body["spec"]["configPatches"])


def test_the_directories_are_told_in_the_order_in_which_they_are_applied(tmp_path: Path):
    told = render(tmp_path, "--istio-version", "1.30.1", "-o", "json")
    answer = json.loads(told.output)
    assert answer["steps"] == [str(tmp_path / "out" / PREPARE), str(tmp_path / "out" / ROUTE)]
    assert answer["files"] == sorted(
        str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.yaml")
    )
    assert render(tmp_path, "--istio-version", "1.30.1", *CLIENT).exit_code == 0
    assert not (tmp_path / "out" / PREPARE / "gateway.yaml").exists()


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
@pytest.mark.parametrize("folder", [PREPARE, ROUTE])
def test_kustomize_takes_the_directories(tmp_path: Path, folder: str):
    assert render(tmp_path, "--istio-version", "1.29").exit_code == 0
    built = subprocess.run(
        ["kubectl", "kustomize", tmp_path / "out" / folder], capture_output=True, text=True, check=True, timeout=60
    )
    ours = [body for body in written(tmp_path) if body in list(yaml.safe_load_all(built.stdout))]
    assert len(ours) == len(list(yaml.safe_load_all(built.stdout))) > 0


@pytest.mark.parametrize(
    ("options", "spec", "why"),
    [
        (("--istio-version", "1.28.5"), SPEC, "would scatter sessions unnoticed"),
        (("--istio-version", "latest"), SPEC, "write it like 1.29"),
        (("--istio-version", "1.29"), "pool: cart\n", "mesh: {host: cart-slots.cart.svc.cluster.local, port: 7680}"),
        (("--istio-version", "1.29"), "pool: cart\nmesh: {host: example.com}\n", "SERVICE.NAMESPACE.svc.cluster.local"),
        (("--istio-version", "1.29"), "pool: a.b\nmesh: {host: a.b.svc.cluster.local}\n", "without dots"),
        (("--istio-version", "1.29", "--mode", "client"), SPEC, "--selector"),
        (("--istio-version", "1.29", "--mode", "client", "--selector", "a=b"), SPEC, "--proxy-namespace"),
        (("--istio-version", "1.29", "--selector", "app"), SPEC, "KEY=VALUE"),
        (("--istio-version", "1.29", "--selector", "app=a b"), SPEC, "not a label"),
        (("--istio-version", "1.29", "--namespace", "Under_study"), SPEC, "not the name of a namespace"),
        (("--istio-version", "1.29", "--trust-domain", "a/b"), SPEC, "not a domain"),
        (("--istio-version", "1.29", "--host", "cart.example.com"), SPEC, "together with --credential"),
        (("--istio-version", "1.29", "--credential", "cart-tls"), SPEC, "give --host too"),
        (("--istio-version", "1.29", *CLIENT, "--host", "a.b", "--credential", "x"), SPEC, "are for gateways"),
    ],
)
def test_what_cannot_work_is_refused_by_name(tmp_path: Path, options: tuple[str, ...], spec: str, why: str):
    told = render(tmp_path, *options, spec=spec)
    assert told.exit_code == 2
    assert why in told.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("version", ["1.29.0", "1.29-alpha.2f", "1.30.2", "1.31.0-distroless", "1.100.0"])
def test_proxies_that_can_are_patched(version: str):
    assert re.search(proxy_versions(), version)


@pytest.mark.parametrize("version", ["1.28.9", "1.9.0", "1.2.9", "1.19.0", "11.29.0", "2.1.0"])
def test_proxies_that_cannot_keep_their_routes(version: str):
    plan = MeshPlan(PoolSpec(pool="cart", mesh=Mesh(host="cart-slots.cart.svc.cluster.local")), "gateway", (1, 29))
    filters = [*envoy_filters(plan, PREPARE), *envoy_filters(plan, ROUTE)]
    old = Proxy(GATEWAY.context, GATEWAY.namespace, GATEWAY.labels, version)
    assert effective(filters, old) == []
    assert len(effective(filters, GATEWAY)) == 3


def test_proxies_that_were_not_restarted_keep_their_routes():
    plan = MeshPlan(PoolSpec(pool="cart", mesh=Mesh(host="cart-slots.cart.svc.cluster.local")), "gateway", (1, 29))
    (config,) = (body for body in resources_of(plan, PREPARE) if body["kind"] == "ProxyConfig")
    environment = config["spec"]["environmentVariables"]
    told = {name.removeprefix("ISTIO_META_"): value for name, value in environment.items() if "ISTIO_META_" in name}
    before, after = (replace(GATEWAY, metadata=metadata) for metadata in ({}, told))
    assert effective(envoy_filters(plan, ROUTE), before) == []
    assert len(effective(envoy_filters(plan, ROUTE), after)) == 2


def test_a_gateway_of_two_pools_gets_two_clusters_of_control_servers():
    names = set()
    for pool in ("cart", "chat"):
        plan = MeshPlan(
            PoolSpec(pool=pool, mesh=Mesh(host=f"{pool}-slots.{pool}.svc.cluster.local")), "gateway", (1, 29)
        )
        (patch,) = (
            p for f in envoy_filters(plan, PREPARE) for p in f["spec"]["configPatches"] if p["applyTo"] == "BOOTSTRAP"
        )
        names.add(value_of(patch).static_resources.clusters[0].name)
    assert names == {"understudy-xds-cart", "understudy-xds-chat"}


def test_localities_and_outlier_detection_stay_off_and_mtls_on():
    plan = MeshPlan(PoolSpec(pool="cart", mesh=Mesh(host="cart-slots.cart.svc.cluster.local")), "gateway", (1, 29))
    by_kind = {
        body["kind"]: body["spec"] for body in resources_of(plan, PREPARE) if body["metadata"]["namespace"] == "cart"
    }
    policy = by_kind["DestinationRule"]["trafficPolicy"]
    assert policy["loadBalancer"]["localityLbSetting"] == {"enabled": False}
    assert "outlierDetection" not in policy
    assert policy["tls"] == {"mode": "ISTIO_MUTUAL"}
    assert by_kind["PeerAuthentication"]["mtls"] == {"mode": "STRICT"}


def test_groups_of_callers_have_their_own_and_share_what_is_beside_the_members():
    spec = PoolSpec(pool="cart", mesh=Mesh(host="cart-slots.cart.svc.cluster.local"))
    groups = [
        MeshPlan(spec, "client", (1, 29), proxy_namespace="shop", selector={"app": app}) for app in ("web", "job")
    ]
    one, two = (
        {(body["kind"], body["metadata"]["name"]): body for body in resources_of(group, "")} for group in groups
    )
    assert all(one[name] == two[name] for name in one.keys() & two.keys())
    assert {kind for kind, _ in one.keys() - two.keys()} == {"EnvoyFilter", "ProxyConfig", "NetworkPolicy"}
