"""The address of etcd: the operator's own cluster, or three members for a trial. Pure.

The trial's etcd has periodic compaction and a quota, as every etcd of Understudy must. It is unencrypted behind the
network policies. It is not for production: there are no backups, and its volumes are the cluster's default.

On two sites without a third it is two StatefulSets: two members in the zone of the first site, one in the other zone.
With a witness it is three, of one member each.
"""

from understudy.deploy.kubernetes.base.emit import Body, Manifest
from understudy.deploy.kubernetes.base.names import (
    ETCD,
    ETCD_CONFIG,
    ETCD_METRICS_PORT,
    ETCD_PEER_PORT,
    ETCD_PORT,
    ETCD_VARIABLE,
    labels,
    selector,
)
from understudy.deploy.kubernetes.base.objects import (
    container_security,
    disruption_budget,
    from_field,
    http_probe,
    meta,
    pod_template,
    port,
    resources,
    service,
    service_account,
)
from understudy.deploy.kubernetes.render.plan import Plan
from understudy.deploy.kubernetes.render.zones import in_zones
from understudy.deploy.local.programs import COMPACTION, ETCD_QUOTA_BYTES

NAME = "etcd"
MEMBERS = 3
DATA, DATA_VOLUME = "/var/lib/etcd", "data"
INITIAL_CLUSTER, CLUSTER_STATE = "INITIAL_CLUSTER", "INITIAL_CLUSTER_STATE"
"""Variables of members on sites, so that a lost member can be told to join again."""


def config(plan: Plan, endpoints: tuple[str, ...]) -> Manifest:
    """The ConfigMap with the addresses of etcd, which every part reads."""
    return Manifest(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": meta(ETCD_CONFIG, plan.namespace, labels(ETCD)),
            "data": {ETCD_VARIABLE: ",".join(endpoints)},
        },
        about="Where etcd is. Restart what reads it after a change: control servers, injector, then members.",
    )


def trial_endpoints(plan: Plan) -> tuple[str, ...]:
    """The client URLs of the trial's etcd: one per member, so that clients survive the loss of one.

    A witness is the first, because both sites reach it while the link between them is cut.
    """
    first = witness_address(plan)
    addresses = sorted((_client_address(plan, pod) for pod in pods(plan)), key=lambda address: address != first)
    return tuple(f"http://{address}" for address in addresses)


def witness_address(plan: Plan) -> str:
    """``host:port`` of the witness for clients; '' without one."""
    return _client_address(plan, f"{set_name(plan.witness)}-0") if plan.witness else ""


def set_name(site: str) -> str:
    """The StatefulSet of the members of etcd on a site."""
    return f"{NAME}-{site}"


def pods(plan: Plan) -> tuple[str, ...]:
    """The pods of all members."""
    if not plan.etcd_sites:
        return tuple(f"{NAME}-{number}" for number in range(MEMBERS))
    return tuple(
        f"{set_name(site)}-{number}" for site, members in _members_on(plan).items() for number in range(members)
    )


def _members_on(plan: Plan) -> dict[str, int]:
    """The sites, with the number of members of etcd on each."""
    return dict(zip(plan.etcd_sites, (1, 1, 1) if plan.witness else (2, 1), strict=True))


def trial_manifests(plan: Plan) -> list[Manifest]:
    """An etcd cluster of three: ConfigMap, account, Service, StatefulSet and disruption budget."""
    named, match = labels(ETCD), selector(ETCD)
    ports = {"client": ETCD_PORT, "peer": ETCD_PEER_PORT}
    headless = service(NAME, plan.namespace, named, match, ports, clusterIP="None", publishNotReadyAddresses=True)
    return [
        config(plan, trial_endpoints(plan)),
        Manifest(service_account(NAME, plan.namespace, named)),
        Manifest(headless, notes={"spec.publishNotReadyAddresses": "Members find each other before any is ready."}),
        *(
            Manifest(
                one,
                notes={
                    "spec.podManagementPolicy": "A quorum forms only if they start together.",
                    "spec.template.spec.containers.0.args": (
                        "Compaction and quota are not optional: every session write leaves a revision behind."
                    ),
                },
            )
            for one in _stateful_sets(plan)
        ),
        Manifest(disruption_budget(NAME, plan.namespace, named, match)),
    ]


def _client_address(plan: Plan, pod: str) -> str:
    return f"{_host(plan, pod)}:{ETCD_PORT}"


def _host(plan: Plan, pod: str) -> str:
    return f"{pod}.{NAME}.{plan.namespace}.svc.{plan.cluster_domain}"


def arguments(plan: Plan) -> tuple[str, ...]:
    """The arguments of an etcd member."""
    joins = (f"--initial-cluster=$({INITIAL_CLUSTER})", f"--initial-cluster-state=$({CLUSTER_STATE})")
    return (
        "--name=$(POD_NAME)",
        f"--data-dir={DATA}/data",
        f"--listen-client-urls=http://0.0.0.0:{ETCD_PORT}",
        f"--advertise-client-urls=http://{_client_address(plan, '$(POD_NAME)')}",
        f"--listen-peer-urls=http://0.0.0.0:{ETCD_PEER_PORT}",
        f"--initial-advertise-peer-urls=http://{_host(plan, '$(POD_NAME)')}:{ETCD_PEER_PORT}",
        *(joins if plan.etcd_sites else (f"--initial-cluster={initial_cluster(plan)}",)),
        f"--initial-cluster-token=understudy-{plan.namespace}",
        f"--listen-metrics-urls=http://0.0.0.0:{ETCD_METRICS_PORT}",
        "--auto-compaction-mode=periodic",
        f"--auto-compaction-retention={COMPACTION}",
        f"--quota-backend-bytes={ETCD_QUOTA_BYTES}",
    )


def initial_cluster(plan: Plan) -> str:
    """All members, as the first start of each has them."""
    return ",".join(f"{pod}=http://{_host(plan, pod)}:{ETCD_PEER_PORT}" for pod in pods(plan))


def _stateful_sets(plan: Plan) -> list[Body]:
    if not plan.etcd_sites:
        return [_stateful_set(plan, NAME, MEMBERS)]
    found = []
    for site, members in _members_on(plan).items():
        one = _stateful_set(plan, set_name(site), members, site)
        spec = one["spec"]["template"]["spec"]
        del spec["topologySpreadConstraints"]
        spec["affinity"] |= in_zones(site)
        spec["containers"][0]["env"] += [
            {"name": INITIAL_CLUSTER, "value": initial_cluster(plan)},
            {"name": CLUSTER_STATE, "value": "new"},
        ]
        found.append(one)
    return found


def _stateful_set(plan: Plan, name: str, members: int, site: str = "") -> Body:
    named, match = labels(ETCD, site), selector(ETCD, site)
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": meta(name, plan.namespace, named),
        "spec": {
            "serviceName": NAME,
            "replicas": members,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": match},
            "template": pod_template(named, account=NAME, grace=30, match=match, containers=[_container(plan)]),
            "volumeClaimTemplates": [
                {
                    "metadata": {"name": DATA_VOLUME},
                    "spec": {
                        "accessModes": ["ReadWriteOnce"],
                        "resources": {"requests": {"storage": "8Gi"}},
                    },
                }
            ],
        },
    }


def _container(plan: Plan) -> Body:
    return {
        "name": "etcd",
        "image": plan.images.etcd,
        "command": ["/usr/local/bin/etcd"],
        "args": list(arguments(plan)),
        "env": [from_field("POD_NAME", "metadata.name")],
        "ports": [port("client", ETCD_PORT), port("peer", ETCD_PEER_PORT), port("metrics", ETCD_METRICS_PORT)],
        "startupProbe": http_probe("/health?serializable=true", "metrics", period=2, failures=60),
        "readinessProbe": http_probe("/health", "metrics", period=5, failures=3, timeout=5),
        "livenessProbe": http_probe("/health?serializable=true", "metrics", period=10, failures=6, timeout=5),
        "resources": resources("250m", "512Mi", limit="4Gi"),
        "securityContext": container_security(),
        "volumeMounts": [{"name": DATA_VOLUME, "mountPath": DATA}],
    }
