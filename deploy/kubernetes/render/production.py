"""The production overlay: the operator's etcd, monitoring, and control servers on different nodes. Pure.

Differences from the base are strategic merge patches, so that they are easy to read.
"""

from understudy.deploy.kubernetes.base.emit import Body, Manifest
from understudy.deploy.kubernetes.base.folder import Folder
from understudy.deploy.kubernetes.base.names import (
    CONTROL,
    INJECTOR_NAME,
    control_name,
    mirror_name,
    operator_name,
    selector,
)
from understudy.deploy.kubernetes.base.objects import apart
from understudy.deploy.kubernetes.render import control, injector, mirror, operator, pool
from understudy.deploy.kubernetes.render.etcd import config
from understudy.deploy.kubernetes.render.plan import Etcd, Plan
from understudy.deploy.kubernetes.render.policies import etcd_clients, own_etcd_egress

_CERTIFICATES = "/etc/understudy-etcd"
_VOLUME = "etcd-certificates"


def production(plan: Plan, etcd: Etcd) -> Folder:
    """The overlay's folder."""
    patches = {"apart.yaml": [_apart(plan)]}
    if etcd.tls_secret or etcd.login_secret:
        patches["etcd-access.yaml"] = _access(plan, etcd)
        patches["injector.yaml"] = [_injector(plan, etcd)]
    return Folder(
        "With your etcd, for the Prometheus operator. Your application's pods bring themselves.",
        {"etcd.yaml": [config(plan, etcd.endpoints), etcd_clients(plan, own_etcd_egress(etcd.endpoints))]},
        bases=["../../base"],
        components=[
            "../../components/application",
            "../../components/monitoring",
            *(["../../components/autoscaling"] if plan.autoscale else []),
            *(["../../components/mirror"] if plan.mirror else []),
        ],
        patches=patches,
    )


def _apart(plan: Plan) -> Manifest:
    pod = {"affinity": apart(selector(CONTROL, plan.instance))}
    return Manifest(
        _patch("apps/v1", control.kind(plan), control_name(plan.instance), plan, pod),
        about="No two control servers on one node: it takes as many nodes as there are of them.",
    )


def _injector(plan: Plan, etcd: Etcd) -> Manifest:
    pod = {"containers": [{"name": injector.CONTAINER, "args": list(injector.arguments(plan, etcd))}]}
    return Manifest(
        _patch("apps/v1", "Deployment", INJECTOR_NAME, plan, pod),
        about="Sidecars find the Secrets under the same names in the application's namespace.",
    )


def _access(plan: Plan, etcd: Etcd) -> list[Manifest]:
    """Patches that give every client of etcd its certificates and password."""
    clients = [
        ("apps/v1", control.kind(plan), control_name(plan.instance), control.CONTAINER),
        ("apps/v1", "Deployment", operator_name(plan.instance), operator.CONTAINER),
        *(
            ("apps/v1", "Deployment", mirror_name(one.name), mirror.CONTAINER)
            for one in (plan.pools if plan.mirror else ())
        ),
        *(("batch/v1", "Job", pool.spec_name(plan, one), pool.CONTAINER) for one in plan.pools),
    ]
    return [
        Manifest(_patch(version, kind, name, plan, _client(container, etcd)))
        for version, kind, name, container in clients
    ]


def _client(name: str, etcd: Etcd) -> Body:
    container: Body = {"name": name, "env": []}
    pod: Body = {"containers": [container]}
    if etcd.tls_secret:
        parts = {"CA": "ca.crt"} if etcd.login_secret else {"CA": "ca.crt", "CERT": "tls.crt", "KEY": "tls.key"}
        container["env"] += [
            {"name": f"UNDERSTUDY_ETCD_{part}", "value": f"{_CERTIFICATES}/{file}"} for part, file in parts.items()
        ]
        container["volumeMounts"] = [{"name": _VOLUME, "mountPath": _CERTIFICATES, "readOnly": True}]
        pod["volumes"] = [{"name": _VOLUME, "secret": {"secretName": etcd.tls_secret, "defaultMode": 0o440}}]
    if etcd.login_secret:
        container["env"] += [
            {"name": variable, "valueFrom": {"secretKeyRef": {"name": etcd.login_secret, "key": key}}}
            for variable, key in (("UNDERSTUDY_ETCD_USER", "username"), ("UNDERSTUDY_ETCD_PASSWORD", "password"))
        ]
    return pod


def _patch(version: str, kind: str, name: str, plan: Plan, pod: Body) -> Body:
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": name, "namespace": plan.namespace},
        "spec": {"template": {"spec": pod}},
    }
