"""The control servers of a pool: three replicas behind one headless Service, none of which needs the Kubernetes API.

Leader election and truth stay in etcd. On SIGTERM a control server resigns first, so a rollout costs milliseconds of
leadership; the Envoys' streams go on at another replica.
"""

from deploy.arguments import control_arguments
from deploy.kubernetes.emit import Body, Manifest
from deploy.kubernetes.names import (
    CONTROL,
    ETCD_CONFIG,
    ETCD_VARIABLE,
    GRPC_PORT,
    HTTP_PORT,
    control_name,
    labels,
    selector,
)
from deploy.kubernetes.objects import (
    container_security,
    disruption_budget,
    from_config,
    from_field,
    http_probe,
    meta,
    pod_security,
    port,
    rather_apart,
    resources,
    scratch_mount,
    scratch_volume,
    service,
    service_account,
    spread,
)
from deploy.kubernetes.plan import Plan

CONTAINER = "control"
_TRACES = "/var/lib/understudy/traces.sqlite"


def control_manifests(plan: Plan) -> list[Manifest]:
    """Account, Service, Deployment and disruption budget."""
    name, named = control_name(plan.pool), labels(CONTROL, plan.pool)
    match = selector(CONTROL, plan.pool)
    return [
        Manifest(
            service_account(name, plan.namespace, named),
            about="Control servers ask nothing of the Kubernetes API, so there is no Role and no token.",
        ),
        Manifest(
            service(name, plan.namespace, named, match, {"grpc": GRPC_PORT, "http": HTTP_PORT}, clusterIP="None"),
            about="Headless: Envoy sees every control server and tries the next one at once.",
        ),
        Manifest(
            _deployment(plan),
            notes={
                "spec.strategy": "One at a time, and none beside the others: enough nodes for all is all it needs.",
                "spec.template.spec.terminationGracePeriodSeconds": (
                    "It resigns, ends its streams and stops within 6 s. No preStop: a successor should lead at once."
                ),
                "spec.template.spec.containers.0.args": (
                    "--insecure: plain text inside the cluster, confined by the network policies. docs/kubernetes.md\n"
                    "tells how to have mTLS instead."
                ),
                "spec.template.spec.containers.0.livenessProbe": (
                    "Patient on purpose: busy is not dead, and a needless restart is worse than a slow answer."
                ),
                "spec.template.spec.volumes.0": "Traces of failovers: gone with the pod, unless OTEL_* sends them on.",
            },
        ),
        Manifest(disruption_budget(name, plan.namespace, named, match)),
    ]


def arguments(plan: Plan) -> tuple[str, ...]:
    """What a control server's container is started with."""
    return control_arguments(
        name="$(POD_NAME)",
        pool=plan.pool,
        etcd=(f"$({ETCD_VARIABLE})",),
        grpc=f"0.0.0.0:{GRPC_PORT}",
        http=f"0.0.0.0:{HTTP_PORT}",
        advertise_grpc=f"$(POD_IP):{GRPC_PORT}",
        advertise_http=f"$(POD_IP):{HTTP_PORT}",
        traces=_TRACES,
        insecure=True,
    )


def _deployment(plan: Plan) -> Body:
    name, named = control_name(plan.pool), labels(CONTROL, plan.pool)
    match = selector(CONTROL, plan.pool)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta(name, plan.namespace, named),
        "spec": {
            "replicas": plan.replicas,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "selector": {"matchLabels": match},
            "template": {
                "metadata": {"labels": named},
                "spec": {
                    "serviceAccountName": name,
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "terminationGracePeriodSeconds": 15,
                    "securityContext": pod_security(),
                    "affinity": rather_apart(match),
                    "topologySpreadConstraints": spread(match),
                    "containers": [_container(plan)],
                    "volumes": [
                        {"name": "traces", "emptyDir": {"sizeLimit": "1Gi"}},
                        scratch_volume(),
                    ],
                },
            },
        },
    }


def _container(plan: Plan) -> Body:
    return {
        "name": CONTAINER,
        "image": plan.images.control,
        "args": list(arguments(plan)),
        "env": [
            from_field("POD_NAME", "metadata.name"),
            from_field("POD_IP", "status.podIP"),
            from_config(ETCD_VARIABLE, ETCD_CONFIG, ETCD_VARIABLE),
        ],
        "ports": [port("grpc", GRPC_PORT), port("http", HTTP_PORT)],
        "startupProbe": http_probe("/healthz", "http", period=2, failures=30),
        "readinessProbe": http_probe("/readyz", "http", period=2, failures=3),
        "livenessProbe": http_probe("/healthz", "http", period=10, failures=6, timeout=5),
        "resources": resources("250m", "192Mi", limit="1Gi"),
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "traces", "mountPath": "/var/lib/understudy"},
            scratch_mount(),
        ],
    }
