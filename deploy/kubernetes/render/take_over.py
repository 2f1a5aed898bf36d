"""Jobs that run ``understudy site take-over`` on the volume of the one member of etcd that is left. Pure.

They are in folders of their own, which no overlay has: ``take-over/look`` only shows what would be lost. Their image
has etcd besides Understudy. The pod counts as the operator's, so it may ask members; a policy lets it reach the other
members of etcd, since it must find out that they do not answer.
"""

from understudy.deploy.kubernetes.base.csi_certificates import mounts, variables, volumes
from understudy.deploy.kubernetes.base.emit import Body, Manifest
from understudy.deploy.kubernetes.base.folder import Folder
from understudy.deploy.kubernetes.base.names import ETCD, ETCD_PEER_PORT, OPERATOR, labels, operator_name, selector
from understudy.deploy.kubernetes.base.objects import (
    SCRATCH_VOLUME,
    container_security,
    meta,
    pod_template,
    resources,
    scratch_mount,
)
from understudy.deploy.kubernetes.render.etcd import DATA, DATA_VOLUME, set_name
from understudy.deploy.kubernetes.render.identities import identities
from understudy.deploy.kubernetes.render.plan import Plan
from understudy.deploy.kubernetes.render.zones import in_zones

NAME = "take-over"


def take_over_folders(plan: Plan) -> dict[str, Folder]:
    """The folders by path; empty unless etcd is on two sites without a third."""
    if not plan.without_third:
        return {}
    steps = {"look": ("--dry-run",), "do": ("--yes", "--reason", f"site {plan.etcd_sites[0]} is lost")}
    return {
        f"{NAME}/{step}": Folder(
            f"Run by hand when site {plan.etcd_sites[0]} is lost: docs/kubernetes.md, Two sites without a third.",
            {"job.yaml": [Manifest(_job(plan, step, more)), *_policies(plan)]},
        )
        for step, more in steps.items()
    }


def arguments(site: str, more: tuple[str, ...]) -> tuple[str, ...]:
    """The arguments of a Job's container."""
    return ("site", "take-over", site, "--data-dir", f"{DATA}/data", *more)


def _job(plan: Plan, step: str, more: tuple[str, ...]) -> Body:
    named, left = labels(OPERATOR, plan.instance), plan.etcd_sites[1]
    template = pod_template(
        named,
        account=operator_name(plan.instance),
        restart="Never",
        containers=[_container(plan, left, more)],
        volumes=[
            {"name": SCRATCH_VOLUME, "emptyDir": {"sizeLimit": "2Gi"}},
            {"name": DATA_VOLUME, "persistentVolumeClaim": {"claimName": f"{DATA_VOLUME}-{set_name(left)}-0"}},
            *volumes(plan.certificates, identities(plan, OPERATOR)),
        ],
    )
    template["spec"]["affinity"] = in_zones(left)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": meta(f"{NAME}-{step}", plan.namespace, named),
        "spec": {"backoffLimit": 0, "template": template},
    }


def _container(plan: Plan, left: str, more: tuple[str, ...]) -> Body:
    return {
        "name": NAME,
        "image": plan.images.take_over,
        "args": list(arguments(left, more)),
        "env": variables(plan.certificates),
        "resources": resources("250m", "512Mi", limit="4Gi"),
        "securityContext": container_security(),
        "volumeMounts": [
            scratch_mount(),
            {"name": DATA_VOLUME, "mountPath": DATA},
            *mounts(plan.certificates),
        ],
    }


def _policies(plan: Plan) -> list[Manifest]:
    """Between this pod and the other members of etcd; policies add up."""
    ours, peers = selector(OPERATOR, plan.instance), selector(ETCD)
    ports = [{"port": ETCD_PEER_PORT, "protocol": "TCP"}]
    sides = {
        "out": (ours, {"policyTypes": ["Egress"], "egress": [{"to": [_pods(peers)], "ports": ports}]}),
        "in": (peers, {"policyTypes": ["Ingress"], "ingress": [{"from": [_pods(ours)], "ports": ports}]}),
    }
    return [
        Manifest(
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": meta(f"{NAME}-{side}", plan.namespace, labels(OPERATOR, plan.instance)),
                "spec": {"podSelector": {"matchLabels": match}, **rules},
            }
        )
        for side, (match, rules) in sides.items()
    ]


def _pods(match: dict[str, str]) -> Body:
    return {"podSelector": {"matchLabels": match}}
