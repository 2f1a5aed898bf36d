"""Names of the resources of a pool. Pure.

``<pool>/member/<member>``, ``<pool>/order/<active>+<standby>+...``, ``<pool>/any``, ``<pool>/version/<version>``,
``<pool>/routes``, ``<pool>/front<path>``; for Envoys of a site ``<pool>/routes/<site>`` and ``<pool>/near/<site>/any``.
In names of orders the members are joined by ``+``, which cannot occur in a member's name; ``-`` can.
"""

from collections.abc import Sequence


def member_name(pool: str, member: str) -> str:
    """Name of the cluster, and of the endpoints, of one member."""
    return f"{pool}/member/{member}"


def order_name(pool: str, order: Sequence[str]) -> str:
    """Name of the cluster of all slots that have this order of members."""
    return f"{pool}/order/{'+'.join(order)}"


def slot_name(pool: str, slot: int) -> str:
    """Name of the cluster of one slot of a TCP pool."""
    return f"{pool}/slot/{slot}"


def any_name(pool: str) -> str:
    """Name of the cluster of all members, for requests without a session key."""
    return f"{pool}/any"


def version_name(pool: str, version: str) -> str:
    """Name of the cluster of the members that run a version of the application, for new sessions."""
    return f"{pool}/version/{version}"


def part_name(pool: str, path: str) -> str:
    """Name of the pool's routes below a path, its part in the tables of front Envoys that serve several pools."""
    return f"{pool}/front{path}"


def routes_name(pool: str, site: str = "") -> str:
    """Name of the pool's route configuration, or of the one for front Envoys of a site that its spec names."""
    return f"{pool}/routes/{site}" if site else f"{pool}/routes"


def near_name(pool: str, site: str, of: str) -> str:
    """Name of the cluster with the members of the cluster ``of``, in the order in which Envoys of a site try them."""
    return f"{pool}/near/{site}{of.removeprefix(pool)}"
