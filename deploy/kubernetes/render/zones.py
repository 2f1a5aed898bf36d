"""In which zones pods may be, if a zone has the witness of etcd and nothing else. Pure."""

from collections.abc import Mapping
from itertools import chain

from understudy.deploy.kubernetes.base.emit import Body
from understudy.deploy.kubernetes.base.folder import Folder
from understudy.deploy.kubernetes.base.names import COMPONENT, ETCD
from understudy.deploy.kubernetes.render.plan import Plan

ZONE = "topology.kubernetes.io/zone"


def in_zones(*sites: str) -> Body:
    """Affinity: only on nodes of the zones with the names of these sites."""
    wanted = {"matchExpressions": [{"key": ZONE, "operator": "In", "values": list(sites)}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [wanted]}}}


def keep_apart_from_witness(plan: Plan, folders: Mapping[str, Folder]) -> None:
    """Let all pods but those of etcd be in the zones of the two sites only. Changes the manifests."""
    files = chain.from_iterable(folder.files.values() for folder in folders.values())
    for manifest in chain.from_iterable(files):
        template = manifest.body.get("spec", {}).get("template")
        if template and template["metadata"]["labels"].get(COMPONENT) != ETCD:
            pod = template["spec"]
            pod["affinity"] = {**pod.get("affinity", {}), **in_zones(*plan.etcd_sites[:2])}
