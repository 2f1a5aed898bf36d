"""Whether a pool can carry its load without one of its members, in a sentence. Pure."""

from understudy.xds.membership.cluster_state import ClusterState
from understudy.xds.membership.load_book import PoolLoad
from understudy.xds.planning.capacity import Capacity, Loss, NotKnown, capacity

MEMBERS_MOST = 200
"""Every loss is looked at for every survivor. For more members that takes too long to do it again and again."""
NOT_KNOWN = "Room for the loss of a member is not known: "


def headroom_of(cluster: ClusterState | None, load: PoolLoad, pool: str) -> str:
    """The sentence. A figure that is not known is said to be so, with the reason."""
    if cluster is None:
        return f"{NOT_KNOWN}etcd has not been read yet."
    if len(cluster.members) > MEMBERS_MOST:
        return f"{NOT_KNOWN}the pool has more than {MEMBERS_MOST} members. Ask 'understudy capacity --pool {pool}'."
    try:
        return headroom(capacity(cluster, load))
    except NotKnown as error:
        return f"{NOT_KNOWN}{error}."


def headroom(found: Capacity) -> str:
    """What the worst loss of one member would mean."""
    losses = [one for one in found.losses if one.level == "member"]
    worst = next((one for one in losses if not one.fits), max(losses, key=lambda one: one.worst, default=None))
    if worst is None:
        return f"{NOT_KNOWN}no member serves."
    if not worst.survivors:
        return f"The load has no other member if {worst.name} goes."
    of = "" if found.application else " That is the CPU of the sidecars alone."
    if found.fits:
        return f"Any one member can go: the busiest of the others would use {_percent(worst)} of its CPUs.{of}"
    return f"If {worst.name} goes, the busiest of the others needs {_percent(worst)} of its CPUs.{of}"


def _percent(loss: Loss) -> str:
    return f"{100 * loss.worst:.0f} %"
