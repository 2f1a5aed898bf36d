"""The network policies allow exactly the connections that the parts need, and nothing else."""

import itertools

import pytest

from understudy.deploy.kubernetes.base.names import (
    COMPONENT,
    CONTROL,
    ETCD,
    ETCD_METRICS_PORT,
    FRONT,
    FRONT_ADMIN_PORT,
    INJECTOR,
    MEMBER,
    MIRROR,
    OPERATOR,
    POOL,
    SESSION_API_PORT,
    SPEC,
    labels,
)
from understudy.deploy.kubernetes.preflight.lint_flows import API_SERVER, CLIENTS, FLOWS, PROMETHEUS
from understudy.deploy.kubernetes.preflight.lint_reach import Outside, Pod, Policies
from understudy.deploy.kubernetes.preflight.load_manifests import load
from understudy.deploy.kubernetes.preflight.manifest_index import workloads

INSIDE = (CONTROL, FRONT, OPERATOR, SPEC, ETCD, INJECTOR, MIRROR)
APP = 8080


@pytest.fixture(scope="module")
def everything(rendered):
    """The trial with monitoring: all policies that there are but those of an etcd elsewhere."""
    return [*load(rendered / "overlays" / "trial"), *load(rendered / "components" / "monitoring")]


@pytest.fixture(scope="module")
def parts(everything):
    """One pod of each part, as its workload makes it, and the places outside."""
    made = {one.labels.get(COMPONENT): one.as_pod() for one in workloads(everything) if COMPONENT in one.labels}
    members = [one.as_pod() for one in workloads(everything) if one.namespace == "cart"]
    return {
        **made,
        MEMBER: members[0],
        CLIENTS: Outside("203.0.113.9"),
        API_SERVER: Outside("10.0.0.1"),
        PROMETHEUS: Pod("monitoring", {"app": "prometheus"}),
    }


def ports():
    own = {flow.port or APP for flow in FLOWS}
    return sorted(own | {SESSION_API_PORT, FRONT_ADMIN_PORT, ETCD_METRICS_PORT, 1, 65535})


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: f"{flow.source} to {flow.target} {flow.port}")
def test_what_is_needed_is_allowed(everything, parts, flow):
    source, target = parts[flow.source], parts[flow.target]

    assert Policies(everything).allow(source, target, flow.port or APP), flow.why


def test_nothing_else_reaches_a_part(everything, parts):
    policies = Policies(everything)
    needed = {(flow.source, flow.target, flow.port or APP) for flow in FLOWS}
    # Where no label tells who asks, anybody does: clients, and the API server, which is no pod.
    open_to_all = {(target, port) for source, target, port in needed if source in (CLIENTS, API_SERVER)}
    strangers = {"stranger next door": Pod("cart", {"app": "other"}), "stranger": Pod("elsewhere", {POOL: "cart"})}
    sources = {**parts, **strangers, "member of another pool": Pod("cart", {POOL: "shop"})}

    reached = {
        (source, target, port)
        for source, target, port in itertools.product(sources, (*INSIDE, MEMBER), ports())
        if policies.allow(sources[source], parts[target], port)
    }

    surplus = {one for one in reached - needed if one[1:] not in open_to_all}
    # etcd is shared by the pools of a cluster, so members of any pool reach it.
    surplus -= {(source, ETCD, 2379) for source in ("stranger", "member of another pool")}
    assert surplus == set()


def test_nothing_of_ours_connects_to_the_world(everything, parts):
    policies = Policies(everything)
    world = Outside("198.51.100.7")

    for part in (CONTROL, FRONT, OPERATOR, SPEC, ETCD):
        assert not any(policies.allow(parts[part], world, port) for port in (*ports(), 53, 80, 443)), part
    assert [port for port in (*ports(), 80, 443, 6443) if policies.allow(parts[INJECTOR], world, port)] == [443, 6443]


def test_everybody_resolves_names(everything, parts):
    policies = Policies(everything)
    resolver = Pod("kube-system", {"k8s-app": "kube-dns"})

    for part in INSIDE:
        for protocol in ("UDP", "TCP"):
            assert policies.allow(parts[part], resolver, 53, protocol)
        assert not policies.allow(parts[part], Pod("kube-system", {"k8s-app": "other"}), 53, "UDP")


def test_an_etcd_of_the_operators_is_reached_by_those_who_use_it(rendered):
    objects = load(rendered / "overlays" / "production")
    policies, made = Policies(objects), {one.labels[COMPONENT]: one.as_pod() for one in workloads(objects)}
    in_cluster, by_address = Pod("data", {"app": "etcd"}), Outside("10.9.8.7")

    for part in (CONTROL, OPERATOR, SPEC, MIRROR):
        assert policies.allow(made[part], in_cluster, 2379)
        assert policies.allow(made[part], by_address, 2379)
        assert policies.allow(made[part], Outside("192.0.2.1"), 12379), "a name: wherever it leads to"
        assert not policies.allow(made[part], Outside("10.9.8.6"), 2379)
    assert policies.allow(made[MIRROR], Outside("10.1.0.2"), 2379), "etcd of the other site"
    assert not policies.allow(made[CONTROL], Outside("10.1.0.2"), 2379)
    assert not policies.allow(made[FRONT], in_cluster, 2379)


def test_sidecars_get_out_of_a_namespace_that_denies_it(rendered):
    deny = {
        "kind": "NetworkPolicy",
        "metadata": {"name": "deny", "namespace": "cart"},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"]},
    }
    objects = [*load(rendered / "overlays" / "production"), deny]
    member, control = Pod("cart", {POOL: "cart"}), Pod("understudy", labels(CONTROL, "cart"))
    assert not Policies(objects).allow(member, control, 18000)

    opened = Policies([*objects, *load(rendered / "components" / "closed-application")])

    assert opened.allow(member, control, 18000)
    assert opened.allow(member, Pod("cart", {POOL: "cart"}), 7601)
    assert opened.allow(member, Pod("data", {}), 2379)
    assert opened.allow(member, Pod("kube-system", {"k8s-app": "kube-dns"}), 53, "UDP")
    assert not opened.allow(member, Outside("198.51.100.7"), 443)


def policy(**spec):
    return {"kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "a"}, "spec": {"podSelector": {}, **spec}}


SAME, OTHER = Pod("a", {"x": "1"}, {"web": 80}), Pod("b", {"x": "1"})


@pytest.mark.parametrize(
    ("spec", "source", "target", "port", "allowed"),
    [
        ({}, OTHER, SAME, 80, False),
        ({}, SAME, OTHER, 80, True),
        ({"egress": [{}]}, OTHER, SAME, 80, False),
        ({"ingress": [{}]}, OTHER, SAME, 80, True),
        ({"ingress": [{"from": []}]}, OTHER, SAME, 80, True),
        ({"ingress": [{"from": [{"podSelector": {}}]}]}, OTHER, SAME, 80, False),
        ({"ingress": [{"from": [{"podSelector": {}}]}]}, SAME, SAME, 80, True),
        ({"ingress": [{"from": [{"namespaceSelector": {}}]}]}, OTHER, SAME, 80, True),
        ({"ingress": [{"from": [{"namespaceSelector": {}}]}]}, Outside("192.0.2.1"), SAME, 80, False),
        ({"ingress": [{"ports": [{"port": "web"}]}]}, OTHER, SAME, 80, True),
        ({"ingress": [{"ports": [{"port": "web"}]}]}, OTHER, SAME, 81, False),
        ({"ingress": [{"ports": [{"port": "gone"}]}]}, OTHER, SAME, 80, False),
        ({"ingress": [{"ports": [{"port": 80, "endPort": 90}]}]}, OTHER, SAME, 85, True),
        ({"ingress": [{"ports": [{"port": 80, "protocol": "UDP"}]}]}, OTHER, SAME, 80, False),
        (
            {"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]}]},
            Outside("10.1.2.3"),
            SAME,
            80,
            False,
        ),
        (
            {"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]}]},
            Outside("10.2.2.3"),
            SAME,
            80,
            True,
        ),
        (
            {
                "podSelector": {"matchExpressions": [{"key": "x", "operator": "NotIn", "values": ["1"]}]},
            },
            OTHER,
            SAME,
            80,
            True,
        ),
    ],
)
def test_the_rules_are_those_of_kubernetes(spec, source, target, port, allowed):
    assert Policies([policy(**spec)]).allow(source, target, port) is allowed
