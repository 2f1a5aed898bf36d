"""The front Envoys of a pool, or of all: Envoy's own image, with the bootstrap of ``understudy envoy``. Pure.

Everything but the control servers' address comes over xDS. Before a pod ends, Envoy asks its clients to reconnect
elsewhere (as ``understudy envoy`` does on SIGTERM), while Kubernetes removes the pod from its Service.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from understudy.deploy.kubernetes.base.csi_certificates import CA, CERT, KEY, mounts, volumes
from understudy.deploy.kubernetes.base.emit import Body, Manifest
from understudy.deploy.kubernetes.base.names import (
    FRONT,
    FRONT_ADMIN_PORT,
    FRONT_PORT,
    FRONT_STATUS_PORT,
    GRPC_PORT,
    front_name,
    labels,
    selector,
)
from understudy.deploy.kubernetes.base.objects import (
    container_security,
    disruption_budget,
    from_field,
    http_probe,
    meta,
    pod_security,
    pod_template,
    port,
    resources,
    service,
    service_account,
)
from understudy.deploy.kubernetes.injection.annotations import ZONE_LABEL
from understudy.deploy.kubernetes.render.control import host_of
from understudy.deploy.kubernetes.render.identities import FRONTS, identities
from understudy.deploy.kubernetes.render.plan import DRAIN_BY_ADMIN, FRONT_TLS_DIRECTORY, Plan, client_ports, digest
from understudy.proxy.front.bootstrap import bootstrap, options
from understudy.proxy.front.envoy_tls import secret_files, transport_socket
from understudy.proxy.front.request_counts import NODE_VARIABLE
from understudy.statesync.pool.front_node import cluster_of_front
from understudy.statesync.tls.pem_files import PemFiles
from understudy.telemetry.tracing import names

CONTAINER = "envoy"
_SITE = "UNDERSTUDY_SITE"
BOOTSTRAP_FILE = "bootstrap.json"
DRAIN_SECONDS = 15
_BOOTSTRAP_DIRECTORY = "/etc/understudy"
_ABOUT_DRAIN = {
    True: "Envoy tells its clients to connect elsewhere and goes on answering, while its address leaves the\n"
    "Service. bash speaks to the admin interface, since the image has no HTTP client.",
    False: "Envoy goes on answering while its address leaves the Service. Connections that clients keep end with it.",
}
_NODE = "node"
"""The role of an Envoy in its certificate."""


def front_manifests(plan: Plan) -> list[Manifest]:
    """Account, bootstrap, Service, Deployment and disruption budget."""
    name, named = front_name(plan.instance), labels(FRONT, plan.instance)
    match = selector(FRONT, plan.instance)
    return [
        Manifest(service_account(name, plan.namespace, named)),
        Manifest(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": meta(bootstrap_name(plan), plan.namespace, named),
                "immutable": True,
                "data": configuration(plan),
            },
            about="The name ends in a digest of the content, so that Envoys are replaced when it changes.",
        ),
        Manifest(_service(plan), about="Where clients come in."),
        Manifest(
            _deployment(plan),
            notes={
                "spec.template.spec.terminationGracePeriodSeconds": (
                    f"preStop drains for {DRAIN_SECONDS} s; Envoy ends at once on the SIGTERM after it."
                ),
                "spec.template.spec.containers.0.command": "Not the image's entry point, which wants to start as root.",
                "spec.template.spec.containers.0.readinessProbe": (
                    "Ready once it has its configuration. No liveness probe: an Envoy that waits for its first\n"
                    "configuration must not be restarted for it, and one that ended is restarted anyhow."
                ),
                "spec.template.spec.containers.0.lifecycle": _ABOUT_DRAIN[plan.front_drain == DRAIN_BY_ADMIN],
            },
        ),
        Manifest(disruption_budget(name, plan.namespace, named, match)),
    ]


def front_bootstrap(plan: Plan) -> dict[str, Any]:
    """The bootstrap; ``--service-node`` on the command line replaces its node id."""
    xds = [f"{host_of(plan)}:{GRPC_PORT}"]
    return bootstrap(
        node_id=front_name(plan.instance),
        pool=cluster_of_front(()) if plan.shared else plan.instance,
        listen=f"0.0.0.0:{0 if plan.shared else FRONT_PORT}",
        xds_addresses=xds,
        admin=f"127.0.0.1:{FRONT_ADMIN_PORT}",
        status=f"0.0.0.0:{FRONT_STATUS_PORT}",
        shared=True,
        transport_socket=transport_socket(Path(_BOOTSTRAP_DIRECTORY), xds) if plan.certificates else None,
        site_by_zone=_has_site(plan),
    )


def _has_site(plan: Plan) -> bool:
    """Whether its Envoys are to prefer their own site, which is their zone, as it is that of members."""
    return not plan.shared and not plan.tcp and any(pool.spec.sites for pool in plan.pools)


def configuration(plan: Plan) -> dict[str, str]:
    """The files that Envoy reads at start, by name: bootstrap and certificate paths."""
    files = {BOOTSTRAP_FILE: front_bootstrap(plan)}
    if plan.certificates:
        files |= secret_files(PemFiles(Path(CERT), Path(KEY), Path(CA)))
    return {name: json.dumps(content, indent=1) + "\n" for name, content in files.items()}


def bootstrap_name(plan: Plan) -> str:
    """The name of the ConfigMap with the bootstrap."""
    return f"{front_name(plan.instance)}-{digest(*configuration(plan).values())}"


def drain_command(admin_port: int = FRONT_ADMIN_PORT, seconds: int = DRAIN_SECONDS) -> list[str]:
    """The command of the preStop hook: make Envoy drain, and wait until its clients are gone."""
    request = "POST /drain_listeners?graceful&skip_exit HTTP/1.1\\r\\nHost: admin\\r\\nConnection: close\\r\\n\\r\\n"
    ask = f"exec 3<>/dev/tcp/127.0.0.1/{admin_port} && printf '{request}' >&3 && cat <&3"
    return ["/bin/bash", "-c", f"{ask}; exec sleep {seconds}"]


def _drain(plan: Plan) -> Body:
    """The preStop hook. With ``sleep`` only the kubelet waits: no program is needed, but Envoy does not drain."""
    if plan.front_drain == DRAIN_BY_ADMIN:
        return {"exec": {"command": drain_command()}}
    return {"sleep": {"seconds": DRAIN_SECONDS}}


def arguments(*, sited: bool = False) -> tuple[str, ...]:
    """Envoy's arguments."""
    return (
        *("--config-path", f"{_BOOTSTRAP_DIRECTORY}/{BOOTSTRAP_FILE}"),
        *("--service-node", "$(POD_NAME)"),
        *(("--service-zone", f"$({_SITE})") if sited else ()),
        *options(concurrency=2, log_level="warning", drain=DRAIN_SECONDS),
    )


def _service(plan: Plan) -> Body:
    # The session key of a TCP pool is the client's address, so nodes must not replace it by theirs.
    kept: Body = {"externalTrafficPolicy": "Local"} if plan.tcp and plan.front_service != "ClusterIP" else {}
    ports = _ports(plan)
    body = service(
        front_name(plan.instance),
        plan.namespace,
        labels(FRONT, plan.instance),
        selector(FRONT, plan.instance),
        {one.name: one.number for one in ports},
        type=plan.front_service,
        **kept,
    )
    for entry, one in zip(body["spec"]["ports"], ports, strict=True):
        if one.protocol != "tcp":
            entry["appProtocol"] = one.protocol
    return body


class _Port(NamedTuple):
    """A port for clients: its name, its number in the Service and in the pod, and what clients speak there."""

    name: str
    number: int
    listens: int
    protocol: str


def _ports(plan: Plan) -> list[_Port]:
    """The ports for clients. With several pools they have the numbers in the specs."""
    if not plan.shared:
        return [_Port("tcp", FRONT_PORT, FRONT_PORT, "tcp") if plan.tcp else _Port("http", 80, FRONT_PORT, "http")]
    used = {pool.spec.front.port: pool for pool in plan.pools if pool.spec.front is not None}
    found = []
    for number, pool in sorted(used.items()):
        tls = pool.spec.front is not None and pool.spec.front.tls is not None
        protocol = "tcp" if pool.tcp else "https" if tls else "http"
        found.append(_Port(f"{protocol}-{number}", number, number, protocol))
    return found


def _security(plan: Plan) -> Body:
    """The pod's security context. It is not root, so for ports below 1024 it needs a setting of the kernel."""
    if min(client_ports(plan), default=FRONT_PORT) >= 1024:
        return pod_security()
    return {**pod_security(), "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]}


def _front_tls(plan: Plan) -> list[Body]:
    """The volumes with the certificates that clients see, one for each Secret."""
    return [
        {"name": f"tls-{name}", "secret": {"secretName": name, "defaultMode": 0o440}} for name in plan.front_tls_secrets
    ]


def _front_tls_mounts(plan: Plan) -> list[Body]:
    return [
        {"name": f"tls-{name}", "mountPath": f"{FRONT_TLS_DIRECTORY}/{name}", "readOnly": True}
        for name in plan.front_tls_secrets
    ]


def _deployment(plan: Plan) -> Body:
    name, named = front_name(plan.instance), labels(FRONT, plan.instance)
    match = selector(FRONT, plan.instance)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta(name, plan.namespace, named),
        "spec": {
            "replicas": plan.front_replicas,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": match},
            "template": pod_template(
                named,
                account=name,
                grace=DRAIN_SECONDS + 15,
                match=match,
                security=_security(plan),
                containers=[_container(plan)],
                volumes=[
                    {"name": "bootstrap", "configMap": {"name": bootstrap_name(plan)}},
                    *volumes(plan.certificates, FRONTS if plan.shared else identities(plan, _NODE)),
                    *_front_tls(plan),
                ],
            ),
        },
    }


def _environment(plan: Plan) -> list[Body]:
    said = f"{names.NODE_NAME}=$(POD_NAME)"
    site: list[Body] = []
    if _has_site(plan):
        # As for sidecars: before Kubernetes 1.35 pods do not have this label. The site is then empty, which means none.
        site = [from_field(_SITE, f"metadata.labels['{ZONE_LABEL}']")]
        said += f",{names.SITE}={names.SITE_PREFIX}$({_SITE})"
    return [from_field("POD_NAME", "metadata.name"), *site, {"name": NODE_VARIABLE, "value": said}]


def _container(plan: Plan) -> Body:
    return {
        "name": CONTAINER,
        "image": plan.images.envoy,
        "command": ["envoy"],
        "args": list(arguments(sited=_has_site(plan))),
        "env": _environment(plan),
        "ports": [*(port(one.name, one.listens) for one in _ports(plan)), port("status", FRONT_STATUS_PORT)],
        "readinessProbe": http_probe("/ready", "status", period=2, failures=3),
        "lifecycle": {"preStop": _drain(plan)},
        "resources": resources("500m", "256Mi", limit="1Gi"),
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "bootstrap", "mountPath": _BOOTSTRAP_DIRECTORY, "readOnly": True},
            *mounts(plan.certificates),
            *_front_tls_mounts(plan),
        ],
    }
