"""The address of etcd: the operator's own cluster, or three members for a trial. Pure.

The trial's etcd has periodic compaction and a quota, as every etcd of Understudy must. It is unencrypted behind the
network policies. It is not for production: there are no backups, and its volumes are the cluster's default.
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
from understudy.deploy.local.programs import COMPACTION, ETCD_QUOTA_BYTES

NAME = "etcd"
MEMBERS = 3
_DATA = "/var/lib/etcd"


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
    """The client URLs of the trial's etcd: one per member, so that clients survive the loss of one."""
    return tuple(f"http://{_host(plan, f'{NAME}-{number}')}:{ETCD_PORT}" for number in range(MEMBERS))


def trial_manifests(plan: Plan) -> list[Manifest]:
    """An etcd cluster of three: ConfigMap, account, Service, StatefulSet and disruption budget."""
    named, match = labels(ETCD), selector(ETCD)
    ports = {"client": ETCD_PORT, "peer": ETCD_PEER_PORT}
    headless = service(NAME, plan.namespace, named, match, ports, clusterIP="None", publishNotReadyAddresses=True)
    return [
        config(plan, trial_endpoints(plan)),
        Manifest(service_account(NAME, plan.namespace, named)),
        Manifest(headless, notes={"spec.publishNotReadyAddresses": "Members find each other before any is ready."}),
        Manifest(
            _stateful_set(plan),
            notes={
                "spec.podManagementPolicy": "A quorum forms only if they start together.",
                "spec.template.spec.containers.0.args": (
                    "Compaction and quota are not optional: every session write leaves a revision behind."
                ),
            },
        ),
        Manifest(disruption_budget(NAME, plan.namespace, named, match)),
    ]


def _host(plan: Plan, pod: str) -> str:
    return f"{pod}.{NAME}.{plan.namespace}.svc.{plan.cluster_domain}"


def arguments(plan: Plan) -> tuple[str, ...]:
    """The arguments of an etcd member."""
    cluster = ",".join(
        f"{NAME}-{number}=http://{_host(plan, f'{NAME}-{number}')}:{ETCD_PEER_PORT}" for number in range(MEMBERS)
    )
    return (
        "--name=$(POD_NAME)",
        f"--data-dir={_DATA}/data",
        f"--listen-client-urls=http://0.0.0.0:{ETCD_PORT}",
        f"--advertise-client-urls=http://{_host(plan, '$(POD_NAME)')}:{ETCD_PORT}",
        f"--listen-peer-urls=http://0.0.0.0:{ETCD_PEER_PORT}",
        f"--initial-advertise-peer-urls=http://{_host(plan, '$(POD_NAME)')}:{ETCD_PEER_PORT}",
        f"--initial-cluster={cluster}",
        f"--initial-cluster-token=understudy-{plan.namespace}",
        f"--listen-metrics-urls=http://0.0.0.0:{ETCD_METRICS_PORT}",
        "--auto-compaction-mode=periodic",
        f"--auto-compaction-retention={COMPACTION}",
        f"--quota-backend-bytes={ETCD_QUOTA_BYTES}",
    )


def _stateful_set(plan: Plan) -> Body:
    named, match = labels(ETCD), selector(ETCD)
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": meta(NAME, plan.namespace, named),
        "spec": {
            "serviceName": NAME,
            "replicas": MEMBERS,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": match},
            "template": pod_template(named, account=NAME, grace=30, match=match, containers=[_container(plan)]),
            "volumeClaimTemplates": [
                {
                    "metadata": {"name": "data"},
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
        "volumeMounts": [{"name": "data", "mountPath": _DATA}],
    }
