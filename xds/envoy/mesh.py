"""What the proxies of an Istio mesh get for a pool: routes, and nothing else. Pure.

Such a proxy has its clusters, endpoints and certificates from istiod, and has no place for a second source of
clusters. So the routes name the one cluster that istiod makes of the pool's Service, and tell it in a header which
members to try, in order; an ``EnvoyFilter`` gives that cluster the ``override_host`` policy, which reads the header
(:mod:`understudy.deploy.kubernetes.istio`). Slots, session keys and repeats are those of
:mod:`understudy.xds.envoy.routes`.

That policy goes by addresses alone and knows no health, so members that are said to be ill are left out here.
"""

from collections.abc import Mapping, Sequence

from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Mesh
from understudy.xds.envoy.resources import RETRY_BUFFER, ROUTES, build
from understudy.xds.envoy.routes import ordered_route_configuration, terms_of
from understudy.xds.envoy.routing_view import Endpoint, RoutingView, mesh_routes_name


def mesh_cluster(mesh: Mesh) -> str:
    """The name that istiod gives to the outbound cluster of a Service's port."""
    return f"outbound|{mesh.port}||{mesh.host}"


def clusters_from_elsewhere(spec: PoolSpec) -> frozenset[str]:
    """The clusters that routes point at, but that come from istiod."""
    return frozenset({mesh_cluster(spec.mesh)} if spec.mesh else ())


def build_all(view: RoutingView) -> dict[str, dict[str, bytes]]:
    """What :func:`build` makes of a view, and the mesh's routes if its spec names a mesh."""
    resources = build(view)
    if view.spec.mesh is not None:
        resources[ROUTES][mesh_routes_name(view.spec.pool)] = mesh_routes(view, view.spec.mesh)
    return resources


def mesh_routes(view: RoutingView, mesh: Mesh) -> bytes:
    """The encoded ``RouteConfiguration`` of a mesh.

    A slot's list has its healthy members in order; all of them if none is healthy, since a check that fails
    everywhere says more about the check. A slot that nobody serves gets somebody's list, as a request without a key
    does: a live member's sidecar knows better. Past the end of its list the proxy tries any endpoint of the Service.
    """
    members = dict(sorted(view.members.items()))
    most = view.spec.retries.attempts + 1
    anybody = _rotations(_fit(members, tuple(members)), most)
    lists = {order: _hosts(_fit(members, order)[:most]) for order in set(view.orders)}
    spare = [_hosts(hosts) for hosts in anybody]
    orders = view.orders or [()] * view.spec.slots
    return ordered_route_configuration(
        name=mesh_routes_name(view.spec.pool),
        terms=terms_of(view),
        cluster=mesh_cluster(mesh),
        slot_hosts=[
            lists.get(order) or (spare[slot % len(spare)] if spare else "") for slot, order in enumerate(orders)
        ],
        any_hosts=spare,
        body_limit=RETRY_BUFFER,
    )


def _fit(members: Mapping[str, Endpoint], order: Sequence[str]) -> list[Endpoint]:
    """Those of an order to send to."""
    known = [members[member] for member in order if member in members]
    return [one for one in known if one.healthy] or known


def _rotations(hosts: Sequence[Endpoint], most: int) -> list[list[Endpoint]]:
    """For each host the list that begins with it and goes on with the next ones, at most ``most``."""
    return [[*hosts[start:], *hosts[:start]][:most] for start in range(len(hosts))]


def _hosts(hosts: Sequence[Endpoint]) -> str:
    """Addresses as Envoy writes them; it looks its hosts up by that text."""
    return ",".join(
        f"[{one.address}]:{one.port}" if ":" in one.address else f"{one.address}:{one.port}" for one in hosts
    )
