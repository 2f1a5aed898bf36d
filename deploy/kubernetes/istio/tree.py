"""The files: two directories, to be applied one after the other and removed in reverse order. Pure."""

from understudy.deploy.kubernetes.base.folder import Folder
from understudy.deploy.kubernetes.istio.objects import control_side, member_side, proxy_side, slot_routing
from understudy.deploy.kubernetes.istio.plan import MeshPlan
from understudy.deploy.kubernetes.render.kustomize import files_of

PREPARE, ROUTE = "1-prepare", "2-route"


def tree(plan: MeshPlan) -> dict[str, Folder]:
    """All folders by their path."""
    return {
        PREPARE: Folder(
            f"Pool {plan.pool} in the mesh, routed by Istio as ever. Apply, then restart the pods that are to route.",
            {
                "members.yaml": member_side(plan),
                "control.yaml": control_side(plan),
                f"{plan.mode}.yaml": proxy_side(plan),
            },
        ),
        ROUTE: Folder(
            f"Routing by slots for pool {plan.pool}. Apply when the restarted pods are ready; delete to go back.",
            {"slots.yaml": slot_routing(plan)},
        ),
    }


def files(plan: MeshPlan) -> dict[str, str]:
    """Every file of the tree: path -> content."""
    return files_of(tree(plan), "istio")
