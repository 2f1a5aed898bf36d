"""A pod that only waits, in which people run ``understudy`` against a pool. Pure.

``kubectl exec deploy/operator-POOL -- understudy status`` needs no addresses: etcd is in its environment, and the pool,
unless there are several. The network policies allow what commands need.
"""

from understudy.deploy.kubernetes.base.csi_certificates import mounts, variables, volumes
from understudy.deploy.kubernetes.base.emit import Body, Manifest
from understudy.deploy.kubernetes.base.names import (
    ETCD_CONFIG,
    ETCD_VARIABLE,
    OPERATOR,
    labels,
    operator_name,
    selector,
)
from understudy.deploy.kubernetes.base.objects import (
    SCRATCH,
    SCRATCH_VOLUME,
    container_security,
    from_config,
    meta,
    pod_template,
    resources,
    scratch_mount,
    service_account,
)
from understudy.deploy.kubernetes.render.identities import identities
from understudy.deploy.kubernetes.render.plan import Plan
from understudy.deploy.kubernetes.render.rights import rights_mounts, rights_variables, rights_volumes

CONTAINER = "operator"


def operator_manifests(plan: Plan) -> list[Manifest]:
    """Account and Deployment."""
    name, named = operator_name(plan.instance), labels(OPERATOR, plan.instance)
    return [
        Manifest(service_account(name, plan.namespace, named)),
        Manifest(
            _deployment(plan),
            about=f"kubectl exec -n {plan.namespace} deploy/{name} -- understudy status"
            + (" --pool all" if plan.shared else ""),
            notes={"spec.template.spec.volumes": "A backup goes to /tmp, from where it is fetched."},
        ),
    ]


def _deployment(plan: Plan) -> Body:
    name, named = operator_name(plan.instance), labels(OPERATOR, plan.instance)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta(name, plan.namespace, named),
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": selector(OPERATOR, plan.instance)},
            "template": pod_template(
                named,
                account=name,
                grace=1,
                containers=[_container(plan)],
                volumes=[
                    {"name": SCRATCH_VOLUME, "emptyDir": {"sizeLimit": "2Gi"}},
                    *volumes(plan.certificates, identities(plan, OPERATOR)),
                    *rights_volumes(plan, whole=False),
                ],
            ),
        },
    }


def _container(plan: Plan) -> Body:
    return {
        "name": CONTAINER,
        "image": plan.images.control,
        "command": ["sleep", "infinity"],
        "workingDir": SCRATCH,
        "env": [
            from_config(ETCD_VARIABLE, ETCD_CONFIG, ETCD_VARIABLE),
            *([] if plan.shared else [{"name": "UNDERSTUDY_POOL", "value": plan.instance}]),
            *variables(plan.certificates),
            *rights_variables(plan, whole=False),
        ],
        "resources": resources("10m", "32Mi", limit="512Mi"),
        "securityContext": container_security(),
        "volumeMounts": [scratch_mount(), *mounts(plan.certificates), *rights_mounts(plan)],
    }
