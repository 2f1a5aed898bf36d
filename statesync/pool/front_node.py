"""How a front Envoy of several pools says which they are: in the cluster of its node."""

from collections.abc import Sequence

_SEVERAL = "pools:"
_ALL_POOLS = "*"


def cluster_of_front(pools: Sequence[str]) -> str:
    """The cluster of the node of a front Envoy that serves these pools; none: all that there are."""
    return _SEVERAL + (",".join(sorted(set(pools))) if pools else _ALL_POOLS)


def pools_of_front(cluster: str) -> tuple[str, ...] | None:
    """The pools of which ``cluster`` is :func:`cluster_of_front`; None if it is that of no such Envoy."""
    if not cluster.startswith(_SEVERAL):
        return None
    said = cluster.removeprefix(_SEVERAL)
    return () if said == _ALL_POOLS else tuple(said.split(","))
