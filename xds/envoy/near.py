"""Which members front Envoys of a site prefer for new sessions. Pure.

Only requests without a session key have a choice of members: a key's slot decides who answers. A sidecar makes new
sessions in slots that it is active for, so a session that begins at a member of a site stays there as long as the slot.
"""

from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.envoy.routing_view import RoutingView


def may_prefer(spec: PoolSpec, site: str) -> bool:
    """Whether the weights of the sites leave it to the clients where sessions begin.

    They do where the site and all others that serve have the same weight. With other weights the parts of the sites
    would follow the clients and not the weights.
    """
    weights = {one.weight for one in spec.sites.values() if one.weight}
    return site in spec.sites and weights == {spec.sites[site].weight}


def near_members(view: RoutingView, site: str) -> frozenset[str]:
    """The members that Envoys of a site prefer: those of the site that are active for slots.

    None while the site is offline, waits to serve again or has lost its members: then it has no slots.
    """
    if not may_prefer(view.spec, site):
        return frozenset()
    active = {order[0] for order in view.orders if order}
    return frozenset(member for member in active & view.members.keys() if view.sites.get(member) == site)
