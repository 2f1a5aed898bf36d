"""What a front Envoy gets for a pool, but for the listener: clusters, endpoints and routes, as protobuf bytes. Pure.

Equal views give equal bytes, every name that a resource mentions is among the resources, and a rebuild costs little:
what depends on one member or one order is encoded once and remembered. The caller decides who serves what.

The names are in :mod:`understudy.xds.envoy.resource_names`, clusters and endpoints in
:mod:`understudy.xds.envoy.clusters`, the matching of requests in :mod:`understudy.xds.envoy.routes`, the listener in
:mod:`understudy.xds.envoy.listener`. A TCP pool has no routes, and a cluster for each slot instead of each order, for a
reason that :mod:`understudy.xds.envoy.tcp_listener` tells; its listener is there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from understudy.xds.envoy.clusters import (
    Upstream,
    any_cluster,
    assignment,
    assignment_by_distance,
    cluster_of_order,
    eds_cluster,
    member_cluster,
    near_cluster,
)
from understudy.xds.envoy.messages import (
    ClusterLbPolicy,
    VirtualHost,
)
from understudy.xds.envoy.near import near_members
from understudy.xds.envoy.resource_names import (
    any_name,
    member_name,
    near_name,
    order_name,
    part_name,
    routes_name,
    slot_name,
    version_name,
)
from understudy.xds.envoy.routes import Targets, route_configuration, routes_below, terms_of
from understudy.xds.envoy.routing_view import RoutingView
from understudy.xds.envoy.version_routes import marks_of, order_for

CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINTS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
ROUTES = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
VIRTUAL_HOST = "type.googleapis.com/envoy.config.route.v3.VirtualHost"

RETRY_BUFFER = 2 << 20
"""Bytes of a request body that Envoy keeps so that it can send it again; twice the largest session."""


def build(view: RoutingView) -> dict[str, dict[str, bytes]]:
    """All resources of a pool but the listener: type URL -> name -> encoded message.

    A slot that nobody serves is routed to ``<pool>/any``: a live member's sidecar knows better than Envoy
    whether somebody may serve it by now, and without live members Envoy answers 503 by itself.

    Raises:
        ValueError: if there are orders, but not one per slot.
    """
    pool, slots = view.spec.pool, view.spec.slots
    if len(view.orders) not in (0, slots):
        raise ValueError(f"pool {pool!r} has {slots} slots, the view has orders for {len(view.orders)}")
    orders = [tuple(member for member in order if member in view.members) for order in view.orders or [()] * slots]
    everybody = any_name(pool)
    spec = view.spec
    upstream = Upstream(
        spec.protocol,
        spec.timeouts,
        spec.retries,
        spec.health_checks,
        spec.outliers,
        spec.tcp,
        spec.concurrent_requests,
    )
    clusters = {member_name(pool, member): member_cluster(pool, member, upstream) for member in sorted(view.members)}
    if spec.tcp:
        wanted = {slot_name(pool, slot): order for slot, order in enumerate(orders)}
    else:
        wanted = {order_name(pool, order): order for order in orders if order}
    terms, versions = terms_of(view), _orders_by_version(view)
    wanted |= {order_name(pool, order): order for in_slots in versions.values() for order in in_slots}
    clusters |= {name: cluster_of_order(pool, name, order, upstream) for name, order in sorted(wanted.items())}
    clusters[everybody] = any_cluster(pool, upstream)
    endpoints = {
        member_name(pool, member): assignment(member_name(pool, member), (endpoint,))
        for member, endpoint in sorted(view.members.items())
    }
    endpoints[everybody] = assignment(everybody, tuple(endpoint for _, endpoint in sorted(view.members.items())))
    for version in versions:
        name = version_name(pool, version)
        clusters[name] = bytes(eds_cluster(name, ClusterLbPolicy.LEAST_REQUEST, upstream))
        endpoints[name] = assignment(name, tuple(view.members[member] for member in _running(view, version)))
    if spec.tcp:
        return {CLUSTER: clusters, ENDPOINTS: endpoints, ROUTES: {}}
    targets = Targets(
        [order_name(pool, order) if order else everybody for order in orders],
        everybody,
        {
            version: Targets([order_name(pool, order) for order in in_slots], version_name(pool, version))
            for version, in_slots in versions.items()
        },
    )
    routes = {routes_name(pool): route_configuration(name=routes_name(pool), pool=pool, terms=terms, targets=targets)}
    for site in sorted(spec.sites):
        near = _add_near(view, site, versions, clusters, endpoints, upstream)
        name = routes_name(pool, site)
        routes[name] = route_configuration(name=name, pool=pool, terms=terms, targets=_nearest(targets, near))
    made = {CLUSTER: clusters, ENDPOINTS: endpoints, ROUTES: routes}
    if view.front is not None:
        made[VIRTUAL_HOST] = {
            part_name(pool, path): bytes(VirtualHost(name=part_name(pool, path)))
            + routes_below(pool=pool, path=path, terms=terms, targets=targets)
            for path in view.front.paths
        }
    return made


def _orders_by_version(view: RoutingView) -> dict[str, list[tuple[str, ...]]]:
    """For each version that some member can serve the order of each slot; empty in a pool without ``versions``."""
    marks = marks_of(view)
    if marks is None:
        return {}
    return {version: [order_for(view, version, slot) for slot in range(view.spec.slots)] for version in marks.serving}


def _add_near(
    view: RoutingView,
    site: str,
    versions: Iterable[str],
    clusters: dict[str, bytes],
    endpoints: dict[str, bytes],
    upstream: Upstream,
) -> dict[str, str]:
    """Add the clusters for requests without a session key at Envoys of a site; returns their names, by the usual ones.

    They lead to the same members as the usual ones, and differ in the priorities.
    """
    pool, preferred = view.spec.pool, near_members(view, site)
    running = {any_name(pool): sorted(view.members)}
    running |= {version_name(pool, version): _running(view, version) for version in versions}
    names = {usual: near_name(pool, site, usual) for usual in running}
    for usual, members in running.items():
        name = names[usual]
        clusters[name] = near_cluster(name, upstream)
        levels = [
            tuple(view.members[member] for member in members if (member in preferred) is near) for near in (True, False)
        ]
        endpoints[name] = assignment_by_distance(name, tuple(level for level in levels if level))
    return names


def _nearest(targets: Targets, near: Mapping[str, str]) -> Targets:
    """The targets with the clusters of a site for requests without a session key."""
    return replace(
        targets,
        everybody=near[targets.everybody],
        by_version={name: replace(one, everybody=near[one.everybody]) for name, one in targets.by_version.items()},
        by_distance=True,
    )


def _running(view: RoutingView, version: str) -> list[str]:
    """The members that run a version of the application."""
    of = view.versions.of if view.versions else {}
    return [name for name in sorted(view.members) if of.get(name) == version]
