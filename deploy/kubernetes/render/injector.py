"""The injector: two replicas behind the webhook's Service, with permissions for its own Secret and webhook only. Pure.

The webhook, command line and permissions come from ``understudy.deploy.kubernetes.webhook.configuration``; this module
puts them into a workload. One injector serves all pools of a cluster.
"""

from understudy.deploy.kubernetes.base.emit import Body, Manifest
from understudy.deploy.kubernetes.base.injection_settings import InjectionSettings
from understudy.deploy.kubernetes.base.names import (
    ETCD_CONFIG,
    ETCD_VARIABLE,
    INJECTOR,
    INJECTOR_METRICS_PORT,
    INJECTOR_NAME,
    INJECTOR_PORT,
    labels,
    selector,
)
from understudy.deploy.kubernetes.base.objects import (
    container_security,
    disruption_budget,
    from_config,
    http_probe,
    meta,
    pod_template,
    port,
    resources,
    service,
)
from understudy.deploy.kubernetes.render.plan import Etcd, Plan
from understudy.deploy.kubernetes.webhook.configuration import (
    InjectorPlace,
    injector_arguments,
    injector_cluster_role,
    injector_role,
    webhook_configuration,
)

CONTAINER = "injector"
REPLICAS = 2


def injector_place(plan: Plan) -> InjectorPlace:
    """The names of the injector's objects."""
    return InjectorPlace(namespace=plan.namespace)


def sidecar_settings(plan: Plan, etcd: Etcd | None = None) -> InjectionSettings:
    """The settings of sidecars; ``etcd`` says how to connect to the operator's own."""
    variable = (f"$({ETCD_VARIABLE})",)
    if etcd is None:
        return InjectionSettings(image=plan.images.sidecar, etcd=variable, peer_certificates=plan.certificates)
    return InjectionSettings(
        image=plan.images.sidecar,
        etcd=variable,
        peer_certificates=plan.certificates,
        etcd_tls_secret=etcd.tls_secret,
        etcd_client_certificate=bool(etcd.tls_secret and not etcd.login_secret),
        etcd_login_secret=etcd.login_secret,
    )


def arguments(plan: Plan, etcd: Etcd | None = None) -> tuple[str, ...]:
    """The arguments of the injector's container."""
    return injector_arguments(injector_place(plan), sidecar_settings(plan, etcd))


def injector_manifests(plan: Plan) -> list[Manifest]:
    """Account, permissions, Secret, Service, Deployment, disruption budget and webhook."""
    place, named, match = injector_place(plan), labels(INJECTOR), selector(INJECTOR)
    account: Body = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": meta(INJECTOR_NAME, plan.namespace, named),
        "automountServiceAccountToken": False,
    }
    secret: Body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": meta(place.secret, plan.namespace, named),
        "type": "Opaque",
    }
    ports = {"webhook": place.service_port, "metrics": INJECTOR_METRICS_PORT}
    return [
        Manifest(account),
        *_rights(place, named),
        Manifest(
            secret,
            about="The injector keeps its authority and certificate in here; applying this again changes neither.",
        ),
        Manifest(service(INJECTOR_NAME, plan.namespace, named, match, ports)),
        Manifest(
            _deployment(plan),
            notes={
                "spec.template.spec.automountServiceAccountToken": "To keep its certificate and the webhook's in step.",
                "spec.template.spec.terminationGracePeriodSeconds": (
                    "It says that it is not ready, serves 5 s more, and ends: API servers need that to notice."
                ),
            },
        ),
        Manifest(disruption_budget(INJECTOR_NAME, plan.namespace, named, match)),
        Manifest(
            webhook_configuration(place, sidecar_settings(plan)),
            about=(
                "Without caBundle on purpose: the injector fills it in, and applying this again leaves it alone.\n"
                "failurePolicy Fail: a pod that asks for a sidecar had better wait than run without its sessions."
            ),
        ),
    ]


def _rights(place: InjectorPlace, named: dict[str, str]) -> list[Manifest]:
    subject = {"kind": "ServiceAccount", "name": place.name, "namespace": place.namespace}
    api = "rbac.authorization.k8s.io/v1"
    found = []
    for kind, rules, metadata in (
        ("Role", injector_role(place), meta(place.name, place.namespace, named)),
        ("ClusterRole", injector_cluster_role(place), {"name": place.name, "labels": dict(named)}),
    ):
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": place.name}
        found += [
            Manifest({"apiVersion": api, "kind": kind, "metadata": metadata, "rules": rules}),
            Manifest(
                {
                    "apiVersion": api,
                    "kind": f"{kind}Binding",
                    "metadata": metadata,
                    "roleRef": reference,
                    "subjects": [subject],
                }
            ),
        ]
    return found


def _deployment(plan: Plan) -> Body:
    named, match = labels(INJECTOR), selector(INJECTOR)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta(INJECTOR_NAME, plan.namespace, named),
        "spec": {
            "replicas": REPLICAS,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": match},
            "template": pod_template(
                named, account=INJECTOR_NAME, grace=15, match=match, token=True, containers=[_container(plan)]
            ),
        },
    }


def _container(plan: Plan) -> Body:
    return {
        "name": CONTAINER,
        "image": plan.images.injector,
        "args": list(arguments(plan)),
        "env": [from_config(ETCD_VARIABLE, ETCD_CONFIG, ETCD_VARIABLE)],
        "ports": [port("webhook", INJECTOR_PORT), port("metrics", INJECTOR_METRICS_PORT)],
        "startupProbe": _probe("/healthz", period=1, failures=60),
        "readinessProbe": _probe("/readyz", period=2, failures=2),
        "livenessProbe": _probe("/healthz", period=10, failures=3),
        # About 80 MiB when idle, 100 more for the largest review, and the limit for all bodies (``HELD_MOST``).
        "resources": resources("100m", "96Mi", limit="512Mi"),
        "securityContext": container_security(),
    }


def _probe(path: str, *, period: int, failures: int) -> Body:
    probe = http_probe(path, "webhook", period=period, failures=failures)
    return {**probe, "httpGet": {**probe["httpGet"], "scheme": "HTTPS"}}
