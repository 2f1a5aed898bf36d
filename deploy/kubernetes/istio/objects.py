"""The resources to apply: ``EnvoyFilter`` patches, and objects that istiod needs for them. Pure."""

from collections.abc import Mapping
from typing import Any

from understudy.deploy.kubernetes.base.emit import Body, Manifest
from understudy.deploy.kubernetes.base.names import (
    CONTROL,
    GRPC_PORT,
    HEALTH_PORT,
    HTTP_PORT,
    MEMBER,
    NAMESPACE_NAME,
    PEER_PORT,
    POOL,
    control_name,
    labels,
    selector,
)
from understudy.deploy.kubernetes.base.objects import meta
from understudy.deploy.kubernetes.istio import patches
from understudy.deploy.kubernetes.istio.plan import GATEWAY_LABELS, OLDEST, MeshPlan
from understudy.deploy.kubernetes.render.plan import digest

METRICS_PORT = 7603
PART = "mesh"
BOOTSTRAP_FROM_ISTIOD = "BOOTSTRAP_XDS_AGENT"
"""Environment of an agent that fetches its bootstrap from istiod, since only istiod applies patches to it."""

PREPARED = "UNDERSTUDY"
"""Node metadata of proxies that were started with the above: only their routes may come from the control servers. Envoy
takes RDS from a cluster that it lacks without a word, and answers 404 when it has waited long enough."""

AFTER_OTHERS = 10
"""Priority of our patches: after others, which have 0 unless they set another."""

_PROTOCOLS = {"http1": "http", "http2": "http2", "as_client": "http"}


def member_side(plan: MeshPlan) -> list[Manifest]:
    """Objects for the members: their Service, how it is called, and what their proxies answer."""
    named, members = labels(PART, plan.pool), {POOL: plan.pool}
    place = meta(plan.service, plan.app_namespace, named)
    connection: dict[str, Any] = {
        "tcp": {"connectTimeout": f"{plan.spec.timeouts.connect_ms / 1000:g}s"},
        "http": {
            "maxRetries": plan.spec.retries.at_once,
            "idleTimeout": f"{plan.spec.timeouts.keep_alive_ms / 1000:g}s",
        },
    }
    if plan.spec.protocol == "as_client":
        connection["http"]["useClientProtocol"] = True
    return [
        Manifest(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": place,
                "spec": {
                    "selector": members,
                    "ports": [
                        {
                            "name": "slots",
                            "port": plan.mesh.port,
                            "targetPort": plan.app_port,
                            "protocol": "TCP",
                            "appProtocol": _PROTOCOLS[plan.spec.protocol],
                        }
                    ],
                },
            },
            about="The pool's members, as istiod knows them. A Service and a port for this alone, since it is patched.",
        ),
        Manifest(
            {
                "apiVersion": "networking.istio.io/v1",
                "kind": "DestinationRule",
                "metadata": place,
                "spec": {
                    "host": plan.mesh.host,
                    "trafficPolicy": {
                        "tls": {"mode": "ISTIO_MUTUAL"},
                        "loadBalancer": {"simple": "LEAST_REQUEST", "localityLbSetting": {"enabled": False}},
                        "connectionPool": connection,
                    },
                },
            },
            notes={
                "spec.trafficPolicy.loadBalancer.localityLbSetting": (
                    "Localities would take requests away from the member that has the session. So there is no\n"
                    "outlierDetection either: it turns locality failover on, and slots know who is to be left out."
                ),
                "spec.trafficPolicy.connectionPool.http.idleTimeout": (
                    "Below the 5 s after which common servers close, which would cost a request sent at that moment."
                ),
            },
        ),
        Manifest(
            {
                "apiVersion": "security.istio.io/v1",
                "kind": "PeerAuthentication",
                "metadata": meta(f"{plan.pool}-members", plan.app_namespace, named),
                "spec": {
                    "selector": {"matchLabels": members},
                    "mtls": {"mode": "STRICT"},
                    "portLevelMtls": {
                        str(port): {"mode": "PERMISSIVE"} for port in (PEER_PORT, HEALTH_PORT, METRICS_PORT)
                    },
                },
            },
            notes={
                "spec.portLevelMtls": (
                    "The sidecars' own ports: peers bring certificates of their own, probes and Prometheus bring none."
                )
            },
        ),
        Manifest(
            _filter(
                f"{plan.pool}-members",
                plan.app_namespace,
                named,
                members,
                _patch(
                    "NETWORK_FILTER",
                    "SIDECAR_INBOUND",
                    patches.told_refusals(),
                    listener={
                        "portNumber": plan.app_port,
                        "filterChain": {"filter": {"name": patches.HCM_NAME}},
                    },
                ),
            ),
            about=(
                "A member's proxy outlives its application and answers 503 for it. This marks the answers that may be\n"
                "tried at the next member, which the proxies at the other end otherwise could not tell."
            ),
        ),
        _opened(plan, MEMBER, plan.app_namespace, members, plan.app_port),
    ]


def control_side(plan: MeshPlan) -> list[Manifest]:
    """Objects for the control servers."""
    pods = selector(CONTROL, plan.pool)
    ports = (GRPC_PORT, HTTP_PORT)
    mesh = Manifest(
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": meta(control_name(plan.pool), plan.namespace, labels(PART, plan.pool)),
            "spec": {
                "selector": {"matchLabels": pods},
                "portLevelMtls": {str(port): {"mode": "PERMISSIVE"} for port in ports},
            },
        },
        about=(
            "Proxies come with mTLS; sidecars, front Envoys and commands go around theirs and come without, also\n"
            "where the mesh is STRICT. Who may come at all is said by network policies."
        ),
    )
    return [
        *([mesh] if plan.xds_tls == "mesh" else []),
        _opened(plan, CONTROL, plan.namespace, pods, GRPC_PORT),
    ]


def proxy_side(plan: MeshPlan) -> list[Manifest]:
    """What proxies need before their routes can come from the control servers."""
    named = labels(PART, plan.pool)
    return [
        Manifest(
            {
                "apiVersion": "networking.istio.io/v1beta1",
                "kind": "ProxyConfig",
                "metadata": meta(_bootstrap_name(plan.selector), plan.proxy_namespace, labels(PART)),
                "spec": {
                    "selector": {"matchLabels": dict(plan.selector)},
                    "environmentVariables": {BOOTSTRAP_FROM_ISTIOD: "true", f"ISTIO_META_{PREPARED}": "true"},
                },
            },
            about=(
                "Has the proxies' agents fetch their bootstrap from istiod, without which the next resource has no\n"
                "effect. Read when a pod is injected, so restart the pods. Istio allows one such resource per pod, so\n"
                "all pools have this one in common; if you have one for these pods, put the variables into yours."
            ),
        ),
        Manifest(
            _filter(
                _name(plan, "control-servers"),
                plan.proxy_namespace,
                named,
                plan.selector,
                _patch("BOOTSTRAP", "ANY", patches.bootstrap(plan)),
            ),
            about="Where the control servers are. Part of the bootstrap, so it takes effect when a pod starts.",
        ),
        *(_entrance(plan, named) if plan.mode == "gateway" else []),
    ]


def slot_routing(plan: MeshPlan) -> list[Manifest]:
    """The switch: with it proxies route by slots, without it as Istio does."""
    context = "GATEWAY" if plan.mode == "gateway" else "SIDECAR_OUTBOUND"
    service = {"service": plan.mesh.host, "portNumber": plan.mesh.port}
    chain = {**({"sni": plan.host} if plan.credential else {}), "filter": {"name": patches.HCM_NAME}}
    listener = {"portNumber": plan.proxy_port, "filterChain": chain}
    return [
        Manifest(
            _filter(
                _name(plan, "slots"),
                plan.proxy_namespace,
                labels(PART, plan.pool),
                plan.selector,
                _patch("CLUSTER", context, patches.cluster(), _READY, cluster=service),
                _patch("NETWORK_FILTER", context, patches.routes(plan), _READY, listener=listener),
            ),
            notes={
                "spec.configPatches.0": "The Service's cluster takes its hosts from the order that the route names.",
                "spec.configPatches.1": "The listener's routes come from the control servers.",
            },
        )
    ]


def _name(plan: MeshPlan, what: str) -> str:
    """The name of an object that each group of proxies has; short for Istio's own gateway."""
    if plan.mode == "gateway" and plan.selector == GATEWAY_LABELS:
        return f"{plan.pool}-{what}"
    pods = (f"{key}={value}" for key, value in sorted(plan.selector.items()))
    return f"{plan.pool}-{what}-{digest(plan.proxy_namespace, *pods)}"


def _bootstrap_name(pods: Mapping[str, str]) -> str:
    return f"understudy-bootstrap-{digest(*(f'{key}={value}' for key, value in sorted(pods.items())))}"


def _entrance(plan: MeshPlan, named: Mapping[str, str]) -> list[Manifest]:
    name = _name(plan, "slots")
    protocol = "HTTPS" if plan.credential else "HTTP"
    server: Body = {
        "port": {"number": plan.port, "name": f"{protocol.lower()}-{plan.pool}", "protocol": protocol},
        "hosts": [plan.host],
    }
    if plan.credential:
        server["tls"] = {"mode": "SIMPLE", "credentialName": plan.credential}
        about = "One host's TLS. It has routes of its own, so other hosts may share the port."
    else:
        about = "A port for this pool alone: all routes of a port's plain HTTP are one resource."
    return [
        Manifest(
            {
                "apiVersion": "networking.istio.io/v1",
                "kind": "Gateway",
                "metadata": meta(name, plan.proxy_namespace, named),
                "spec": {
                    "selector": dict(plan.selector),
                    "servers": [server],
                },
            },
            about=about,
        ),
        Manifest(
            {
                "apiVersion": "networking.istio.io/v1",
                "kind": "VirtualService",
                "metadata": meta(name, plan.proxy_namespace, named),
                "spec": {
                    "hosts": [plan.host],
                    "gateways": [name],
                    "http": [
                        {
                            "name": plan.pool,
                            "route": [{"destination": {"host": plan.mesh.host, "port": {"number": plan.mesh.port}}}],
                        }
                    ],
                },
            },
            about="What this port does without slots: before they are switched on, after that, and in old proxies.",
        ),
    ]


def _opened(plan: MeshPlan, what: str, namespace: str, pods: Mapping[str, str], port: int) -> Manifest:
    """Network policies add up, so these open for the proxies what Understudy's others keep closed."""
    return Manifest(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": meta(_name(plan, f"{what}-from-{plan.mode}"), namespace, labels(PART, plan.pool)),
            "spec": {
                "podSelector": {"matchLabels": dict(pods)},
                "policyTypes": ["Ingress"],
                "ingress": [
                    {
                        "from": [
                            {
                                "namespaceSelector": {"matchLabels": {NAMESPACE_NAME: plan.proxy_namespace}},
                                "podSelector": {"matchLabels": dict(plan.selector)},
                            }
                        ],
                        "ports": [{"port": port, "protocol": "TCP"}],
                    }
                ],
            },
        },
        about="The proxies come in.",
    )


def _filter(name: str, namespace: str, named: Mapping[str, str], pods: Mapping[str, str], *patched: Body) -> Body:
    return {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": meta(name, namespace, named),
        "spec": {
            "priority": AFTER_OTHERS,
            "workloadSelector": {"labels": dict(pods)},
            "configPatches": list(patched),
        },
    }


_READY = {"metadata": {PREPARED: "true"}}


def _patch(apply_to: str, context: str, value: patches.Fragment, proxy: Body | None = None, **match: Body) -> Body:
    return {
        "applyTo": apply_to,
        "match": {"context": context, "proxy": {"proxyVersion": proxy_versions(), **(proxy or {})}, **match},
        "patch": {"operation": "MERGE", "value": value},
    }


def proxy_versions() -> str:
    """A regular expression for versions of Istio's proxy from :data:`OLDEST` on; older ones are not patched."""
    major, minor = OLDEST
    tens, ones = divmod(minor, 10)
    return rf"^{major}\.({tens}[{''.join(map(str, range(ones, 10)))}]|[{tens + 1}-9]\d|\d{{3,}})\b"
