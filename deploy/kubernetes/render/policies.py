"""Network policies: they deny everything in Understudy's namespace that is not listed here. Pure.

``lint_flows`` lists the connections that the parts need, and a test compares the policies with it in both directions.
In the application's namespace only incoming traffic of the pool's pods is restricted: Understudy does not decide where
an application may connect to.
"""

import ipaddress
from collections.abc import Mapping, Sequence

from understudy.deploy.kubernetes.base.emit import Body, Manifest
from understudy.deploy.kubernetes.base.names import (
    COMPONENT,
    CONTROL,
    ETCD,
    ETCD_PEER_PORT,
    ETCD_PORT,
    FRONT,
    FRONT_STATUS_PORT,
    GRPC_PORT,
    HEALTH_PORT,
    HTTP_PORT,
    INJECTOR,
    INJECTOR_METRICS_PORT,
    INJECTOR_NAME,
    INJECTOR_PORT,
    METRICS_PORT,
    MIRROR,
    MIRROR_METRICS_PORT,
    NAMESPACE_NAME,
    OPERATOR,
    PEER_PORT,
    POOL,
    SPEC,
    control_name,
    front_name,
    mirror_name,
    operator_name,
    selector,
)
from understudy.deploy.kubernetes.base.objects import meta
from understudy.deploy.kubernetes.render.plan import Plan, Pool, client_ports, host_and_port

_ETCD_CLIENTS = "etcd-clients"
_NODE_LOCAL_DNS = "169.254.20.10/32"
_CLIENTS = {"matchExpressions": [{"key": COMPONENT, "operator": "In", "values": [CONTROL, SPEC, OPERATOR, MIRROR]}]}


def namespace_policies(plan: Plan) -> list[Manifest]:
    """For Understudy's own namespace: everything is denied except what follows."""
    everyone: Body = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    return [
        Manifest(
            _policy("default-deny", plan.namespace, everyone),
            about="Needs a network plugin that enforces policies; without one, plain text is open to the cluster.",
        ),
        Manifest(
            _policy("dns", plan.namespace, _dns()), about="Cluster DNS, also where nodes have a cache of their own."
        ),
        Manifest(_policy(control_name(plan.instance), plan.namespace, _control(plan))),
        Manifest(
            _policy(front_name(plan.instance), plan.namespace, _front(plan)),
            notes={"spec.ingress.0": "Clients: from anywhere. Confine it with an overlay if they are in the cluster."},
        ),
        Manifest(_policy(operator_name(plan.instance), plan.namespace, _operator(plan))),
        Manifest(
            _policy(INJECTOR_NAME, plan.namespace, _injector()),
            about=(
                "The API server is no pod, and its address differs from cluster to cluster: so anyone may ask the\n"
                "webhook, which serves TLS and decides nothing but what a pod gets."
            ),
        ),
    ]


def member_policies(plan: Plan) -> list[Manifest]:
    """For the applications' namespaces: who may connect to members."""
    return [
        Manifest(
            _policy(f"members-{pool.name}", pool.namespace, _members(plan, pool)),
            about=(
                "What else is to reach the application, such as a scraper of its own metrics, wants a policy beside\n"
                "this one. A sidecar's session API listens on the pod's loopback and needs none."
            ),
        )
        for pool in plan.pools
    ]


def member_egress(plan: Plan, etcd: Sequence[Body]) -> list[Manifest]:
    """For applications' namespaces that deny outgoing traffic: what sidecars need."""
    return [
        Manifest(
            _policy(
                f"members-{pool.name}-egress",
                pool.namespace,
                {
                    "podSelector": _pool(pool),
                    "policyTypes": ["Egress"],
                    "egress": [
                        {"to": [_in(plan.namespace, selector(CONTROL, plan.instance))], "ports": _ports(GRPC_PORT)},
                        {"to": [{"podSelector": _pool(pool)}], "ports": _ports(PEER_PORT, HEALTH_PORT)},
                        *etcd,
                        *_dns()["egress"],
                    ],
                },
            )
        )
        for pool in plan.pools
    ]


def monitoring_policies(plan: Plan) -> list[Manifest]:
    """Allow Prometheus in both namespaces."""
    prometheus = [{"namespaceSelector": {"matchLabels": {NAMESPACE_NAME: plan.monitoring_namespace}}}]
    targets = {
        control_name(plan.instance): (plan.namespace, selector(CONTROL, plan.instance), HTTP_PORT),
        front_name(plan.instance): (plan.namespace, selector(FRONT, plan.instance), FRONT_STATUS_PORT),
        INJECTOR_NAME: (plan.namespace, selector(INJECTOR), INJECTOR_METRICS_PORT),
        **{f"members-{pool.name}": (pool.namespace, {POOL: pool.name}, METRICS_PORT) for pool in plan.pools},
    }
    if plan.mirror is not None:
        targets |= {
            mirror_name(pool.name): (plan.namespace, selector(MIRROR, pool.name), MIRROR_METRICS_PORT)
            for pool in plan.pools
        }
    return [
        Manifest(
            _policy(
                f"{name}-metrics",
                namespace,
                {
                    "podSelector": {"matchLabels": match},
                    "policyTypes": ["Ingress"],
                    "ingress": [{"from": prometheus, "ports": _ports(number)}],
                },
            )
        )
        for name, (namespace, match, number) in targets.items()
    ]


def etcd_clients(plan: Plan, egress: Sequence[Body]) -> Manifest:
    """Allow outgoing traffic of etcd's clients."""
    spec = {
        "podSelector": _CLIENTS,
        "policyTypes": ["Egress"],
        "egress": list(egress),
    }
    return Manifest(_policy(_ETCD_CLIENTS, plan.namespace, spec), about="To etcd.")


def mirror_policy(plan: Plan, endpoints: Sequence[str]) -> Manifest:
    """Allow the mirrors to reach etcd of the other site."""
    spec: Body = {
        "podSelector": {"matchLabels": selector(MIRROR)},
        "policyTypes": ["Egress"],
        "egress": own_etcd_egress(endpoints),
    }
    return Manifest(_policy("mirror-peer", plan.namespace, spec), about="To etcd of the other site.")


def trial_etcd_egress(plan: Plan) -> list[Body]:
    """To the trial's etcd."""
    return [{"to": [_in(plan.namespace, selector(ETCD))], "ports": _ports(ETCD_PORT)}]


def own_etcd_egress(endpoints: Sequence[str]) -> list[Body]:
    """To an etcd of the operator: to its addresses, else to its namespace, else to its port anywhere."""
    rules: list[Body] = []
    for endpoint in endpoints:
        host, number = host_and_port(endpoint)
        rule: Body = {"ports": _ports(number)}
        parts = host.split(".")
        try:
            address = ipaddress.ip_address(host)
            rule = {"to": [{"ipBlock": {"cidr": f"{address}/{address.max_prefixlen}"}}], **rule}
        except ValueError:
            if "svc" in parts[2:]:
                namespace = parts[parts.index("svc") - 1]
                rule = {"to": [{"namespaceSelector": {"matchLabels": {NAMESPACE_NAME: namespace}}}], **rule}
        if rule not in rules:
            rules.append(rule)
    return rules


def trial_etcd_policies(plan: Plan) -> list[Manifest]:
    """For the trial's etcd: its clients, and its members among each other."""
    members = {"matchExpressions": [{"key": POOL, "operator": "Exists"}]}
    peers = {"podSelector": {"matchLabels": selector(ETCD)}}
    spec = {
        "podSelector": {"matchLabels": selector(ETCD)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [
            {
                "from": [{"podSelector": _CLIENTS}, {"namespaceSelector": {}, "podSelector": members}],
                "ports": _ports(ETCD_PORT),
            },
            {"from": [peers], "ports": _ports(ETCD_PEER_PORT)},
        ],
        "egress": [{"to": [peers], "ports": _ports(ETCD_PEER_PORT)}],
    }
    return [Manifest(_policy(ETCD, plan.namespace, spec))]


def _control(plan: Plan) -> Body:
    front = {"podSelector": {"matchLabels": selector(FRONT, plan.instance)}}
    return {
        "podSelector": {"matchLabels": selector(CONTROL, plan.instance)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [
            {"from": [front, *_members_of(plan)], "ports": _ports(GRPC_PORT)},
            {"from": [{"podSelector": {"matchLabels": selector(OPERATOR, plan.instance)}}], "ports": _ports(HTTP_PORT)},
        ],
        "egress": [{"to": _members_of(plan), "ports": _ports(PEER_PORT)}],
    }


def _front(plan: Plan) -> Body:
    return {
        "podSelector": {"matchLabels": selector(FRONT, plan.instance)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"ports": _ports(*client_ports(plan))}],
        "egress": [
            {"to": [{"podSelector": {"matchLabels": selector(CONTROL, plan.instance)}}], "ports": _ports(GRPC_PORT)},
            *({"to": [_of(pool)], "ports": _ports(pool.app_port, HEALTH_PORT)} for pool in plan.pools),
        ],
    }


def _operator(plan: Plan) -> Body:
    return {
        "podSelector": {"matchLabels": selector(OPERATOR, plan.instance)},
        "policyTypes": ["Ingress", "Egress"],
        "egress": [
            {"to": [{"podSelector": {"matchLabels": selector(CONTROL, plan.instance)}}], "ports": _ports(HTTP_PORT)},
            {"to": _members_of(plan), "ports": _ports(PEER_PORT)},
        ],
    }


def _members(plan: Plan, pool: Pool) -> Body:
    front = _in(plan.namespace, selector(FRONT, plan.instance))
    control = _in(plan.namespace, selector(CONTROL, plan.instance))
    operators = _in(plan.namespace, selector(OPERATOR, plan.instance))
    return {
        "podSelector": _pool(pool),
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [front], "ports": _ports(pool.app_port, HEALTH_PORT)},
            {"from": [control, operators], "ports": _ports(PEER_PORT)},
            {"from": [{"podSelector": _pool(pool)}], "ports": _ports(PEER_PORT, HEALTH_PORT)},
        ],
    }


def _injector() -> Body:
    return {
        "podSelector": {"matchLabels": selector(INJECTOR)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"ports": _ports(INJECTOR_PORT)}],
        "egress": [{"ports": _ports(443, 6443)}],
    }


def _dns() -> Body:
    resolver = {
        "namespaceSelector": {"matchLabels": {NAMESPACE_NAME: "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    }
    return {
        "podSelector": {},
        "policyTypes": ["Egress"],
        "egress": [
            {
                "to": [resolver, {"ipBlock": {"cidr": _NODE_LOCAL_DNS}}],
                "ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")],
            }
        ],
    }


def _policy(name: str, namespace: str, spec: Body) -> Body:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": meta(name, namespace, {"app.kubernetes.io/part-of": "understudy"}),
        "spec": spec,
    }


def _in(namespace: str, match: Mapping[str, str]) -> Body:
    return {
        "namespaceSelector": {"matchLabels": {NAMESPACE_NAME: namespace}},
        "podSelector": {"matchLabels": dict(match)},
    }


def _pool(pool: Pool) -> Body:
    return {"matchLabels": {POOL: pool.name}}


def _of(pool: Pool) -> Body:
    return _in(pool.namespace, {POOL: pool.name})


def _members_of(plan: Plan) -> list[Body]:
    return [_of(pool) for pool in plan.pools]


def _ports(*numbers: int) -> list[Body]:
    return [{"protocol": "TCP", "port": number} for number in dict.fromkeys(numbers)]
