"""Names, labels and ports on Kubernetes that manifests, injector and network policies share. Pure."""

DOMAIN = "understudy.io"
INJECT = f"{DOMAIN}/inject"
"""Label of a pod that asks for a sidecar: "true"."""
INJECTION = f"{DOMAIN}/injection"
"""Label of a namespace in which pods get sidecars: "enabled"."""
POOL = f"{DOMAIN}/pool"
"""Label of every member of a pool; its value is the pool's name."""

SESSION_API_PORT = 7600
PEER_PORT = 7601
HEALTH_PORT = 7602
METRICS_PORT = 7603
REDIS_PORT = 7604
GRPC_PORT = 18000
HTTP_PORT = 18001
FRONT_PORT = 8080
FRONT_STATUS_PORT = 19000
FRONT_ADMIN_PORT = 9901
INJECTOR_PORT = 9443
INJECTOR_METRICS_PORT = 9444
ETCD_PORT = 2379
ETCD_PEER_PORT = 2380
ETCD_METRICS_PORT = 2381
MIRROR_METRICS_PORT = 9465

COMPONENT = "app.kubernetes.io/component"
INSTANCE = "app.kubernetes.io/instance"
NAMESPACE_NAME = "kubernetes.io/metadata.name"

CONTROL, FRONT, MEMBER, ETCD = "control", "front", "member", "etcd"
INJECTOR, SPEC, OPERATOR, MIRROR = "injector", "spec", "operator", "mirror"

ETCD_CONFIG = "understudy-etcd"
"""The ConfigMap with the addresses of etcd, under :data:`ETCD_VARIABLE`; each overlay has its own."""
ETCD_VARIABLE = "UNDERSTUDY_ETCD"
INJECTOR_NAME = "understudy-injector"


ALL_POOLS = "all_pools"
"""Stands for the pool in the names and labels of parts that serve all pools; no pool can have this name."""


def labels(component: str, pool: str = "") -> dict[str, str]:
    """The labels of all objects of a component; with a pool, of that pool's component."""
    return {
        "app.kubernetes.io/name": "understudy",
        COMPONENT: component,
        "app.kubernetes.io/part-of": "understudy",
        **({INSTANCE: pool} if pool else {}),
    }


def selector(component: str, pool: str = "") -> dict[str, str]:
    """The selector of a component's pods; it can never change in a Deployment."""
    return {
        "app.kubernetes.io/name": "understudy",
        COMPONENT: component,
        **({INSTANCE: pool} if pool else {}),
    }


def control_name(pool: str) -> str:
    """The name of the control servers of a pool, or of :data:`ALL_POOLS`: Deployment, Service and so on."""
    return _name(CONTROL, pool)


def front_name(pool: str) -> str:
    """The name of the front Envoys of a pool, or of :data:`ALL_POOLS`."""
    return _name(FRONT, pool)


def operator_name(pool: str) -> str:
    """The name of the Deployment in which people run commands against a pool, or :data:`ALL_POOLS`."""
    return _name(OPERATOR, pool)


def mirror_name(pool: str) -> str:
    """The name of the Deployment that mirrors a pool."""
    return f"{MIRROR}-{pool}"


def spec_account(pool: str) -> str:
    """The account of the Jobs that apply a pool's spec."""
    return f"spec-{pool}"


def _name(component: str, pool: str) -> str:
    return component if pool == ALL_POOLS else f"{component}-{pool}"
