"""The control servers of a pool, or of all: three replicas behind one headless Service. Pure.

None uses the Kubernetes API. Leader election and all state are in etcd. On SIGTERM a control server resigns first, so a
rollout costs milliseconds without a leader, and the Envoys' streams move to another replica. With certificates they are
a StatefulSet, although they keep no state: its pods have stable names, which certificates can contain and members can
connect to.
The overlay for production (:mod:`understudy.deploy.kubernetes.render.production`) adds the credentials for etcd.
"""

from understudy.deploy.common.arguments import control_arguments
from understudy.deploy.kubernetes.base.csi_certificates import POD, mounts, variables, volumes
from understudy.deploy.kubernetes.base.emit import Body, Manifest
from understudy.deploy.kubernetes.base.names import (
    CONTROL,
    ETCD_CONFIG,
    ETCD_VARIABLE,
    GRPC_PORT,
    HTTP_PORT,
    control_name,
    labels,
    selector,
)
from understudy.deploy.kubernetes.base.objects import (
    container_security,
    disruption_budget,
    from_config,
    from_field,
    http_probe,
    meta,
    pod_template,
    port,
    resources,
    scratch_mount,
    scratch_volume,
    service,
    service_account,
)
from understudy.deploy.kubernetes.render.etcd import witness_address
from understudy.deploy.kubernetes.render.identities import identities
from understudy.deploy.kubernetes.render.plan import Plan
from understudy.deploy.kubernetes.render.rights import rights_mounts, rights_variables, rights_volumes

CONTAINER = "control"
_TRACES = "/var/lib/understudy/traces.sqlite"


def kind(plan: Plan) -> str:
    """The kind of workload: stable names are needed only with certificates."""
    return "StatefulSet" if plan.certificates else "Deployment"


def control_manifests(plan: Plan) -> list[Manifest]:
    """Account, Service, workload and disruption budget."""
    name, named = control_name(plan.instance), labels(CONTROL, plan.instance)
    match = selector(CONTROL, plan.instance)
    return [
        Manifest(
            service_account(name, plan.namespace, named),
            about="Control servers ask nothing of the Kubernetes API, so there is no Role and no token.",
        ),
        Manifest(_service(plan), about="Headless: Envoy sees every control server and tries the next one at once."),
        Manifest(_workload(plan), notes=_notes(plan)),
        Manifest(disruption_budget(name, plan.namespace, named, match)),
    ]


def _notes(plan: Plan) -> dict[str, str]:
    plain = {
        "spec.strategy": "One at a time, and none beside the others: enough nodes for all is all it needs.",
        "spec.template.spec.containers.0.args": (
            "--insecure: plain text inside the cluster, confined by the network policies. docs/kubernetes.md\n"
            "tells how to have mTLS instead."
        ),
    }
    secured = {
        "spec.podManagementPolicy": "They don't wait for one another; names are all that they need of this kind."
    }
    return {
        **(secured if plan.certificates else plain),
        "spec.template.spec.terminationGracePeriodSeconds": (
            "It resigns, ends its streams and stops within 6 s. No preStop: a successor should lead at once."
        ),
        "spec.template.spec.containers.0.livenessProbe": (
            "Patient on purpose: busy is not dead, and a needless restart is worse than a slow answer."
        ),
        "spec.template.spec.volumes.0": "Traces of failovers: gone with the pod, unless OTEL_* sends them on.",
    }


def host_of(plan: Plan, pod: str = "") -> str:
    """The DNS name of all control servers, or of one pod among them."""
    name = f"{control_name(plan.instance)}.{plan.namespace}.svc.{plan.cluster_domain}"
    return f"{pod}.{name}" if pod else name


def arguments(plan: Plan) -> tuple[str, ...]:
    """The arguments of a control server's container."""
    # Members connect to the advertised name, and the certificate must contain it.
    host = host_of(plan, "$(POD_NAME)") if plan.certificates else "$(POD_IP)"
    return control_arguments(
        name="$(POD_NAME)",
        pool="" if plan.shared else plan.instance,
        every_pool=plan.shared,
        etcd=(f"$({ETCD_VARIABLE})",),
        etcd_leader=witness_address(plan),
        grpc=f"0.0.0.0:{GRPC_PORT}",
        http=f"0.0.0.0:{HTTP_PORT}",
        advertise_grpc=f"{host}:{GRPC_PORT}",
        advertise_http=f"{host}:{HTTP_PORT}",
        traces=_TRACES,
        insecure=plan.certificates is None,
        open_http=plan.certificates is not None,  # network policies let in operators and Prometheus
    )


def _service(plan: Plan) -> Body:
    return service(
        control_name(plan.instance),
        plan.namespace,
        labels(CONTROL, plan.instance),
        selector(CONTROL, plan.instance),
        {"grpc": GRPC_PORT, "http": HTTP_PORT},
        clusterIP="None",
    )


def _workload(plan: Plan) -> Body:
    name, named = control_name(plan.instance), labels(CONTROL, plan.instance)
    match = selector(CONTROL, plan.instance)
    rollout: Body = {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}}
    if plan.certificates:
        rollout = {"serviceName": name, "podManagementPolicy": "Parallel", "updateStrategy": {"type": "RollingUpdate"}}
    # A control server of all pools cannot have an id of each, so its plain name is in the certificate as well.
    names = (host_of(plan), host_of(plan, POD), *((POD,) if plan.shared else ()))
    return {
        "apiVersion": "apps/v1",
        "kind": kind(plan),
        "metadata": meta(name, plan.namespace, named),
        "spec": {
            "replicas": plan.replicas,
            **rollout,
            "selector": {"matchLabels": match},
            "template": pod_template(
                named,
                account=name,
                grace=15,
                match=match,
                containers=[_container(plan)],
                volumes=[
                    {"name": "traces", "emptyDir": {"sizeLimit": "1Gi"}},
                    scratch_volume(),
                    *volumes(plan.certificates, identities(plan, CONTROL), names),
                    *rights_volumes(plan, whole=True),
                ],
            ),
        },
    }


RESOURCE = "k8s.namespace.name=$(POD_NAMESPACE),k8s.pod.name=$(POD_NAME),k8s.node.name=$(NODE_NAME)"
"""Resource attributes of a control server's spans, by OpenTelemetry's semantic conventions."""


def _container(plan: Plan) -> Body:
    return {
        "name": CONTAINER,
        "image": plan.images.control,
        "args": list(arguments(plan)),
        "env": [
            from_field("POD_NAME", "metadata.name"),
            from_field("POD_IP", "status.podIP"),
            from_config(ETCD_VARIABLE, ETCD_CONFIG, ETCD_VARIABLE),
            *variables(plan.certificates),
            *rights_variables(plan, whole=True),
            from_field("POD_NAMESPACE", "metadata.namespace"),
            from_field("NODE_NAME", "spec.nodeName"),
            {"name": "OTEL_RESOURCE_ATTRIBUTES", "value": RESOURCE},
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
            *mounts(plan.certificates),
            *rights_mounts(plan),
        ],
    }
