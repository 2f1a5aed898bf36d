"""The pool spec: a ConfigMap, and the Job that writes it to etcd as ``understudy apply`` does. Pure.

Both have a digest of spec and image in their names: a changed spec makes a new Job, and an unchanged one does not run
again, so it does not undo a later ``understudy apply``. If the spec contradicts the running pool, the Job fails and the
pool keeps its spec.
"""

from pathlib import Path

import yaml

from understudy.deploy.common.arguments import apply_arguments
from understudy.deploy.kubernetes.base.emit import Body, Manifest
from understudy.deploy.kubernetes.base.names import ETCD_CONFIG, ETCD_VARIABLE, SPEC, labels, spec_account
from understudy.deploy.kubernetes.base.objects import (
    container_security,
    from_config,
    meta,
    pod_template,
    resources,
    scratch_mount,
    scratch_volume,
    service_account,
)
from understudy.deploy.kubernetes.render.plan import Plan, Pool, digest
from understudy.statesync.pool.spec_tcp import MEANS_NOTHING

SPEC_FILE = "pool.yaml"
CONTAINER = "apply"
_DIRECTORY = "/etc/understudy"


def pool_manifests(plan: Plan, pool: Pool) -> list[Manifest]:
    """Account, ConfigMap and Job."""
    named = labels(SPEC, pool.name)
    return [
        Manifest(service_account(spec_account(pool.name), plan.namespace, named)),
        Manifest(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": meta(spec_name(plan, pool), plan.namespace, named),
                "immutable": True,
                "data": {SPEC_FILE: spec_text(pool)},
            },
            about="The pool spec as it was when this was rendered: change pool.yaml and render again.",
        ),
        Manifest(
            _job(plan, pool),
            about="Puts the spec into etcd, once. Delete old ones when you like.",
            notes={"spec.backoffLimit": "etcd may come later than this."},
        ),
    ]


def spec_text(pool: Pool) -> str:
    """The pool spec as YAML, with every default written out, except those that ``apply`` refuses in a TCP pool."""
    told = pool.spec.model_dump(mode="json", exclude_none=True)
    for group, keys in MEANS_NOTHING.items() if pool.tcp else ():
        told[group] = {key: value for key, value in told[group].items() if key not in keys}
    return yaml.safe_dump(told, sort_keys=False, allow_unicode=True)


def spec_name(plan: Plan, pool: Pool) -> str:
    """The name of ConfigMap and Job. It changes with the Job, since Jobs cannot be changed."""
    secrets = (plan.etcd.tls_secret, plan.etcd.login_secret) if plan.etcd else ("", "")
    zones = plan.etcd_sites if plan.witness else ()
    return f"spec-{pool.name}-{digest(spec_text(pool), plan.images.control, *secrets, *zones)}"


def _job(plan: Plan, pool: Pool) -> Body:
    named = labels(SPEC, pool.name)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": meta(spec_name(plan, pool), plan.namespace, named),
        "spec": {
            "backoffLimit": 20,
            "template": pod_template(
                named,
                account=spec_account(pool.name),
                restart="OnFailure",
                containers=[_container(plan)],
                volumes=[
                    {"name": "spec", "configMap": {"name": spec_name(plan, pool)}},
                    scratch_volume(),
                ],
            ),
        },
    }


def arguments() -> tuple[str, ...]:
    """The arguments of the Job's container."""
    return apply_arguments(file=str(Path(_DIRECTORY) / SPEC_FILE), etcd=(f"$({ETCD_VARIABLE})",))


def _container(plan: Plan) -> Body:
    return {
        "name": CONTAINER,
        "image": plan.images.control,
        "args": list(arguments()),
        "env": [from_config(ETCD_VARIABLE, ETCD_CONFIG, ETCD_VARIABLE)],
        "resources": resources("50m", "96Mi", limit="256Mi"),
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "spec", "mountPath": _DIRECTORY, "readOnly": True},
            scratch_mount(),
        ],
    }
