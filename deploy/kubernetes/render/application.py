"""The application's part of a pool: its namespace and policies, and the example cart for a trial. Pure.

The application's own manifests are the user's; the injector adds the sidecar. The example shows what a pod needs:
labels, a pool, and time to end.
"""

from understudy.deploy.kubernetes.base.emit import Body, Manifest
from understudy.deploy.kubernetes.base.names import INJECT, POOL
from understudy.deploy.kubernetes.base.objects import (
    container_security,
    disruption_budget,
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
from understudy.deploy.kubernetes.render.plan import Plan, Pool

EXAMPLE = "example"


def example_manifests(plan: Plan, pool: Pool) -> list[Manifest]:
    """The example cart, or the notebook of a TCP pool, as a StatefulSet.

    Pods of a StatefulSet keep their names over restarts, so they stay the same members.
    """
    name, named = pool.name, {"app": pool.name, POOL: pool.name}
    namespace = pool.namespace
    return [
        Manifest(service_account(name, namespace, named)),
        Manifest(
            service(name, namespace, named, {"app": name}, {_port(pool): pool.app_port}, clusterIP="None"),
            about="Gives the pods their names; clients come through the front Envoys.",
        ),
        Manifest(
            _stateful_set(plan, pool, named),
            notes={
                "spec.template.metadata.labels": "The first two are all that the injector and the policies want.",
                "spec.podManagementPolicy": "Members don't wait for one another.",
            },
        ),
        Manifest(
            disruption_budget(name, namespace, named, {"app": name}),
            about="One member at a time: the next eviction waits until the last one's successor is ready.",
        ),
    ]


def _stateful_set(plan: Plan, pool: Pool, named: dict[str, str]) -> Body:
    match = {"app": pool.name}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": meta(pool.name, pool.namespace, named),
        "spec": {
            "serviceName": pool.name,
            "replicas": plan.example_members,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": match},
            "template": pod_template(
                {INJECT: "true", POOL: pool.name, **match},
                account=pool.name,
                grace=60,
                match=match,
                containers=[_container(plan, pool)],
                volumes=[scratch_volume()],
            ),
        },
    }


def _container(plan: Plan, pool: Pool) -> Body:
    return {
        "name": EXAMPLE,
        "image": plan.images.sidecar,
        "command": ["python", "-m", f"understudy.deploy.examples.{'notebook' if pool.tcp else 'cart'}"],
        "env": [{"name": "HOST", "value": "0.0.0.0"}, {"name": "PORT", "value": str(pool.app_port)}],  # noqa: S104
        "ports": [port(_port(pool), pool.app_port)],
        "readinessProbe": _readiness(pool),
        "resources": resources("100m", "96Mi", limit="256Mi"),
        "securityContext": container_security(),
        "volumeMounts": [scratch_mount()],
    }


def _port(pool: Pool) -> str:
    return "tcp" if pool.tcp else "http"


def _readiness(pool: Pool) -> Body:
    if pool.tcp:
        return {"tcpSocket": {"port": _port(pool)}, "periodSeconds": 2, "failureThreshold": 3}
    return http_probe("/healthz", _port(pool), period=2, failures=3)
