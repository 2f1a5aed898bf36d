"""The SPIFFE ids in the certificates of control servers, front Envoys and operators, for one pool or for all. Pure."""

from understudy.deploy.kubernetes.base.csi_certificates import POD, spiffe
from understudy.deploy.kubernetes.render.plan import Plan

FRONTS = f"spiffe://understudy/fronts/{POD}"
"""The id of a front Envoy of all pools (docs/many-pools.md, "Certificates")."""


def identities(plan: Plan, kind: str) -> str:
    """The ids of a pod of this kind, with commas between: one for each pool."""
    return ",".join(spiffe(pool.name, kind) for pool in plan.pools)
