"""What Envoy is to know of a pool, before it is made into Envoy's resources.

Apart from :mod:`understudy.xds.envoy.resources`, which makes them, since importing Envoy's message classes takes long.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_front import Front

_MESH_ROUTES = "/mesh/routes"


def mesh_routes_name(pool: str) -> str:
    """Name of the route configuration that the proxies of a mesh subscribe to."""
    return f"{pool}{_MESH_ROUTES}"


def pool_of_mesh_routes(name: str) -> str:
    """The pool of which ``name`` is :func:`mesh_routes_name`; '' if it is none."""
    return name.removesuffix(_MESH_ROUTES) if name.endswith(_MESH_ROUTES) else ""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a member's application listens, and its sidecar's health port (``check``), if Envoy is to ask that.

    Addresses are IP addresses: Envoy resolves no names in EDS and would refuse the whole assignment.
    Raises ``ValueError`` otherwise.
    """

    address: str
    port: int
    healthy: bool = True
    check: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        for address, port in ((self.address, self.port), *((self.check,) if self.check else ())):
            ipaddress.ip_address(address)
            if not 0 < port < 65536:
                raise ValueError(f"{port} is not a port number")


class VersionsView(msgspec.Struct, frozen=True):
    """The versions of the application in a pool whose spec has ``versions``.

    ``of``: the version of each member ('' for a member that names none). ``serving``: for each version how many members
    can serve it, where 2 stands for two or more; without versions that nobody can serve.
    """

    of: Mapping[str, str]
    serving: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RoutingView:
    """What Envoy is to know of a pool.

    ``orders`` has for each slot the members in order, active first; empty as a whole while there is no
    table. Names that are not in ``members`` are left out of the orders. ``late``: most members are so busy that an
    answer that has not come says nothing of who was asked. ``answer_ms``: nearly all answers of the last minute came
    within this time. ``front``: the pool's place at front Envoys that serve several pools, if it has one. ``versions``:
    who runs which version of the application, if that decides who answers. ``sites``: the site of each member, in a
    pool whose spec has ``sites``.
    """

    spec: PoolSpec
    members: Mapping[str, Endpoint]
    orders: Sequence[tuple[str, ...]]
    late: bool = False
    answer_ms: int = 0
    front: Front | None = None
    versions: VersionsView | None = None
    sites: Mapping[str, str] = field(default_factory=dict)
