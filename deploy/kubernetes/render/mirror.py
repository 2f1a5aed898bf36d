"""``understudy mirror`` of each pool whose home has a mirror on a distant site, as a Deployment of one pod. Pure.

Each of the two sites has manifests of its own, with its own etcd, and the other one as its peer. The tails of a
take-over are on a volume that stays. The overlay for production adds the credentials for etcd of this site.
"""

from understudy.deploy.kubernetes.base.emit import Body, Manifest
from understudy.deploy.kubernetes.base.names import (
    ETCD_CONFIG,
    ETCD_PORT,
    ETCD_VARIABLE,
    MIRROR,
    MIRROR_METRICS_PORT,
    labels,
    mirror_name,
    selector,
)
from understudy.deploy.kubernetes.base.objects import (
    container_security,
    from_config,
    http_probe,
    meta,
    pod_template,
    port,
    resources,
    scratch_mount,
    scratch_volume,
    service_account,
)
from understudy.deploy.kubernetes.render.plan import Mirror, Plan, Pool, host_and_port
from understudy.deploy.kubernetes.render.policies import mirror_policy

CONTAINER = "mirror"
PEER_CONFIG = "understudy-peer"
_PEER_FILE = "peer.yaml"
_PEER = "/etc/understudy-peer"
_PEER_TLS = "/etc/understudy-peer-tls"
_TAILS = "/var/lib/understudy"


def mirror_manifests(plan: Plan, mirror: Mirror) -> list[Manifest]:
    """Where the peer's etcd is, who may reach it, and what each pool has."""
    return [peer_config(plan, mirror), mirror_policy(plan, mirror.etcd.endpoints), *_of_pools(plan, mirror)]


def _of_pools(plan: Plan, mirror: Mirror) -> list[Manifest]:
    return [one for pool in plan.pools for one in pool_mirror(plan, pool, mirror)]


def peer_config(plan: Plan, mirror: Mirror) -> Manifest:
    """The ConfigMap with the file for ``--peer``."""
    return Manifest(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": meta(PEER_CONFIG, plan.namespace, labels(MIRROR)),
            "data": {_PEER_FILE: peer_file(mirror)},
        },
        about="Where etcd of the other site is. Restart the mirrors after a change.",
    )


def peer_file(mirror: Mirror) -> str:
    """The file for ``--peer``: addresses, and certificates if there are any."""
    addresses = ", ".join(map(_address, mirror.etcd.endpoints))
    parts = {"ca": "ca.crt", "cert": "tls.crt", "key": "tls.key"} if mirror.etcd.tls_secret else {}
    return "".join([f"endpoints: [{addresses}]\n", *(f"{key}: {_PEER_TLS}/{file}\n" for key, file in parts.items())])


def _address(endpoint: str) -> str:
    """``host:port`` of an endpoint."""
    bare = endpoint.rpartition("://")[2].rstrip("/")
    return bare if bare.endswith(f":{host_and_port(endpoint)[1]}") else f"{bare}:{ETCD_PORT}"


def pool_mirror(plan: Plan, pool: Pool, mirror: Mirror) -> list[Manifest]:
    """Account, volume and Deployment of a pool's mirror."""
    name, named = mirror_name(pool.name), labels(MIRROR, pool.name)
    return [
        Manifest(service_account(name, plan.namespace, named)),
        Manifest(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": meta(name, plan.namespace, named),
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
            },
            about="For the writes that a new home does not have, if this site is fenced after a take-over.",
        ),
        Manifest(
            _deployment(plan, pool, mirror),
            about=f"kubectl exec -n {plan.namespace} deploy/{name} -- understudy home status",
            notes={"spec.strategy": "Never two for one site: each writes to its etcd."},
        ),
    ]


def _deployment(plan: Plan, pool: Pool, mirror: Mirror) -> Body:
    name, named = mirror_name(pool.name), labels(MIRROR, pool.name)
    tls: list[Body] = []
    if mirror.etcd.tls_secret:
        tls = [{"name": "peer-tls", "secret": {"secretName": mirror.etcd.tls_secret, "defaultMode": 0o440}}]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta(name, plan.namespace, named),
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": selector(MIRROR, pool.name)},
            "template": pod_template(
                named,
                account=name,
                grace=15,
                containers=[_container(plan, pool, mirror)],
                volumes=[
                    scratch_volume(),
                    {"name": "tails", "persistentVolumeClaim": {"claimName": name}},
                    {"name": "peer", "configMap": {"name": PEER_CONFIG}},
                    *tls,
                ],
            ),
        },
    }


def arguments(pool: Pool, mirror: Mirror) -> tuple[str, ...]:
    """The arguments of a mirror's container."""
    return (
        *("mirror", "--site", mirror.site, "--pool", pool.name, "--peer", _peer_at(mirror)),
        *("--tails", _TAILS, "--metrics", f"0.0.0.0:{MIRROR_METRICS_PORT}"),
    )


def _peer_at(mirror: Mirror) -> str:
    return f"{mirror.peer}={_PEER}/{_PEER_FILE}"


def _container(plan: Plan, pool: Pool, mirror: Mirror) -> Body:
    tls = [{"name": "peer-tls", "mountPath": _PEER_TLS, "readOnly": True}] if mirror.etcd.tls_secret else []
    return {
        "name": CONTAINER,
        "image": plan.images.control,
        "args": list(arguments(pool, mirror)),
        "env": [
            from_config(ETCD_VARIABLE, ETCD_CONFIG, ETCD_VARIABLE),
            {"name": "UNDERSTUDY_POOL", "value": pool.name},  # for commands that people run in this pod
            {"name": "UNDERSTUDY_PEER", "value": _peer_at(mirror)},
        ],
        "ports": [port("metrics", MIRROR_METRICS_PORT)],
        "startupProbe": http_probe("/metrics", "metrics", period=2, failures=30),
        "readinessProbe": http_probe("/metrics", "metrics", period=10, failures=3, timeout=5),
        "livenessProbe": http_probe("/metrics", "metrics", period=10, failures=6, timeout=5),
        "resources": resources("100m", "128Mi", limit="1Gi"),
        "securityContext": container_security(),
        "volumeMounts": [
            scratch_mount(),
            {"name": "tails", "mountPath": _TAILS},
            {"name": "peer", "mountPath": _PEER, "readOnly": True},
            *tls,
        ],
    }
