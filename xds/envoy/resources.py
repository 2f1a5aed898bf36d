"""What a front Envoy gets for a pool: clusters, endpoints, routes and the listener, as ready protobuf bytes.

Pure functions from a :class:`RoutingView` to resources. Promises that equal views give equal bytes, that every
name a resource mentions is among the resources, and that a rebuild costs little: what depends on one member
or one order is encoded once and remembered. Leaves the decision who serves what to the caller, sending to
:mod:`understudy.xds.server.ads`, and the matching of requests to :mod:`understudy.xds.envoy.routes`.

Names: ``<pool>/member/<member>``, ``<pool>/order/<active>+<standby>+...`` (``+`` cannot occur in a member's
name, ``-`` can), ``<pool>/any``, ``<pool>/version/<version>``, ``<pool>/routes``, ``<pool>/front<path>``. Envoys of a
site have ``<pool>/routes/<site>`` and ``<pool>/near/<site>/any`` (:mod:`understudy.xds.envoy.near`). The listener is
in :mod:`understudy.xds.envoy.listener`. A TCP pool has no routes and no orders but ``<pool>/slot/<slot>``, for a reason
that :mod:`understudy.xds.envoy.tcp_listener` tells; its listener is there.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from understudy.statesync.pool.spec_parts import HealthChecks, Outliers, Retries, Timeouts
from understudy.statesync.pool.spec_tcp import Tcp
from understudy.xds.envoy.messages import (
    Address,
    AggregateCluster,
    AggregatedConfigSource,
    Any,
    ApiVersion,
    CircuitBreakers,
    CircuitBreakersThresholds,
    Cluster,
    ClusterCommonLbConfig,
    ClusterCustomClusterType,
    ClusterDiscoveryType,
    ClusterEdsClusterConfig,
    ClusterLbPolicy,
    ClusterLoadAssignment,
    ClusterLoadAssignmentPolicy,
    ClusterTransportSocketMatch,
    ConfigSource,
    EndpointHealthCheckConfig,
    EndpointMessage,
    HealthCheck,
    HealthCheckHttpHealthCheck,
    HealthStatus,
    Http1ProtocolOptions,
    Http2ProtocolOptions,
    HttpProtocolOptions,
    HttpProtocolOptionsExplicitHttpConfig,
    HttpProtocolOptionsUseDownstreamHttpConfig,
    KeepaliveSettings,
    LbEndpoint,
    LocalityLbEndpoints,
    OutlierDetection,
    Percent,
    ProxyProtocolConfig,
    ProxyProtocolConfigVersion,
    ProxyProtocolUpstreamTransport,
    RawBuffer,
    SocketAddress,
    Struct,
    TcpKeepalive,
    TransportSocket,
    UpstreamConnectionOptions,
    UpstreamHttpOptions,
    Value,
    VirtualHost,
)
from understudy.xds.envoy.near import near_members
from understudy.xds.envoy.routes import Targets, route_configuration, routes_below, terms_of
from understudy.xds.envoy.routing_view import Endpoint, RoutingView
from understudy.xds.envoy.version_routes import marks_of, order_for
from understudy.xds.server.wire import delimited

CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINTS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
ROUTES = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
VIRTUAL_HOST = "type.googleapis.com/envoy.config.route.v3.VirtualHost"

HEALTH_PATH = "/health"
"""What Envoy asks at a member's health port; answered by ``understudy.proxy.health.health_port``."""

PLENTY = 1 << 20
"""Circuit breakers count per cluster; those that the spec does not set must never be met."""

BACK_SOON_MS = 50
"""Milliseconds between checks of a member that failed the last one."""

NOBODY_LEFT = 1.0
"""Panic threshold in percent: health is disregarded only when no member of an order, or less than one in a hundred of
all members, is healthy. A check that fails everywhere at once says more about the check than about the members."""

NEVER_SPILL = 1_000_000
"""Overprovisioning factor in percent: while one in ten thousand of a priority is healthy, it gets all requests."""

_CLUSTER_NAME = 1
"""Field number in cluster.proto."""

RETRY_BUFFER = 2 << 20
"""Bytes of a request body that Envoy keeps so that it can send it again; twice the largest session."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """What of a spec goes into clusters. Hashable, so that a cluster is encoded once per spec."""

    protocol: str
    timeouts: Timeouts
    retries: Retries
    health_checks: HealthChecks
    outliers: Outliers
    tcp: Tcp | None = None
    concurrent_requests: int | None = None


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
    clusters = {member_name(pool, member): _member_cluster(pool, member, upstream) for member in sorted(view.members)}
    if spec.tcp:
        wanted = {slot_name(pool, slot): order for slot, order in enumerate(orders)}
    else:
        wanted = {order_name(pool, order): order for order in orders if order}
    terms, versions = terms_of(view), _orders_by_version(view)
    wanted |= {order_name(pool, order): order for in_slots in versions.values() for order in in_slots}
    clusters |= {name: _in_turn(pool, name, order, upstream) for name, order in sorted(wanted.items())}
    clusters[everybody] = _any_cluster(pool, upstream)
    endpoints = {
        member_name(pool, member): _assignment(member_name(pool, member), (endpoint,))
        for member, endpoint in sorted(view.members.items())
    }
    endpoints[everybody] = _assignment(everybody, tuple(endpoint for _, endpoint in sorted(view.members.items())))
    for version in versions:
        name = version_name(pool, version)
        clusters[name] = bytes(_eds_cluster(name, ClusterLbPolicy.LEAST_REQUEST, upstream))
        endpoints[name] = _assignment(name, _running(view, version))
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
        near = _add_near(view, site, clusters, endpoints, upstream)
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
    view: RoutingView, site: str, clusters: dict[str, bytes], endpoints: dict[str, bytes], upstream: Upstream
) -> dict[str, str]:
    """Add the clusters for requests without a session key at Envoys of a site; returns their names, by the usual ones.

    They lead to the same members as the usual ones, and differ in the priorities.
    """
    pool, preferred = view.spec.pool, near_members(view, site)
    running = {any_name(pool): sorted(view.members)}
    of = view.versions.of if view.versions else {}
    for version in _orders_by_version(view):
        running[version_name(pool, version)] = [name for name in sorted(view.members) if of.get(name) == version]
    names = {usual: near_name(pool, site, usual) for usual in running}
    for usual, members in running.items():
        name = names[usual]
        clusters[name] = _near_cluster(name, upstream)
        levels = [
            tuple(view.members[member] for member in members if (member in preferred) is near) for near in (True, False)
        ]
        endpoints[name] = _assignment_by_distance(name, tuple(level for level in levels if level))
    return names


def _nearest(targets: Targets, near: Mapping[str, str]) -> Targets:
    """The targets with the clusters of a site for requests without a session key."""
    return replace(
        targets,
        everybody=near[targets.everybody],
        by_version={name: replace(one, everybody=near[one.everybody]) for name, one in targets.by_version.items()},
        by_distance=True,
    )


def _running(view: RoutingView, version: str) -> tuple[Endpoint, ...]:
    """The endpoints of the members that run a version of the application."""
    of = view.versions.of if view.versions else {}
    return tuple(endpoint for name, endpoint in sorted(view.members.items()) if of.get(name) == version)


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


@functools.lru_cache(maxsize=4096)
def _member_cluster(pool: str, member: str, upstream: Upstream) -> bytes:
    return bytes(_eds_cluster(member_name(pool, member), ClusterLbPolicy.ROUND_ROBIN, upstream))


@functools.lru_cache(maxsize=64)
def _any_cluster(pool: str, upstream: Upstream) -> bytes:
    return bytes(_eds_cluster(any_name(pool), ClusterLbPolicy.LEAST_REQUEST, upstream))


@functools.lru_cache(maxsize=256)
def _near_cluster(name: str, upstream: Upstream) -> bytes:
    """Without checks of its own: every front Envoy has the clusters of all sites, and would check each member anew.

    The control servers' word counts, and a request that reaches nobody goes to the next priority.
    """
    cluster = _eds_cluster(name, ClusterLbPolicy.LEAST_REQUEST, upstream)
    cluster.health_checks = []
    return bytes(cluster)


def _eds_cluster(name: str, policy: ClusterLbPolicy, upstream: Upstream) -> Cluster:
    """A cluster of hosts that come by EDS. A host that EDS no longer has is gone, whatever its checks say."""
    cluster = Cluster(
        name=name,
        type=ClusterDiscoveryType.EDS,
        eds_cluster_config=ClusterEdsClusterConfig(eds_config=ads_source()),
        connect_timeout=timedelta(milliseconds=upstream.timeouts.connect_ms),
        lb_policy=policy,
        common_lb_config=_health_at_once(),
        circuit_breakers=_breakers(upstream.retries, upstream.concurrent_requests),
        health_checks=_health_checks(upstream.health_checks),
        outlier_detection=_outliers(upstream.outliers),
        ignore_health_on_host_removal=True,
        upstream_connection_options=UpstreamConnectionOptions(
            tcp_keepalive=TcpKeepalive(keepalive_probes=3, keepalive_time=5, keepalive_interval=1)
        ),
    )
    if upstream.tcp:
        _carry_tcp(cluster, upstream.tcp)
    else:
        options = _upstream_http(upstream.protocol, upstream.timeouts)
        cluster.typed_extension_protocol_options = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}
    return cluster


def _carry_tcp(cluster: Cluster, tcp: Tcp) -> None:
    """Whole connections instead of requests.

    A member that fails its checks loses those that it has, since nothing else would ever move them. Its application is
    told whose they are; the health port is not, it speaks plain HTTP.
    """
    cluster.close_connections_on_host_health_failure = True
    if tcp.send_proxy_protocol == "none":
        return
    raw = TransportSocket(name="envoy.transport_sockets.raw_buffer", typed_config=Any.pack(RawBuffer()))
    version = ProxyProtocolConfigVersion.V1 if tcp.send_proxy_protocol == "v1" else ProxyProtocolConfigVersion.V2
    told = ProxyProtocolUpstreamTransport(config=ProxyProtocolConfig(version=version), transport_socket=raw)
    cluster.transport_socket = TransportSocket(
        name="envoy.transport_sockets.upstream_proxy_protocol", typed_config=Any.pack(told)
    )
    asked = Struct(fields={"asks": Value(string_value="health")})
    cluster.transport_socket_matches = [ClusterTransportSocketMatch(name="checks", match=asked, transport_socket=raw)]
    for check in cluster.health_checks:
        check.transport_socket_match_criteria = asked


def _in_turn(pool: str, name: str, order: tuple[str, ...], upstream: Upstream) -> bytes:
    """The cluster ``name`` of members that are tried in this order; of all of them, in no order, if there is none."""
    return delimited(_CLUSTER_NAME, name.encode()) + _nameless(pool, order, upstream)


@functools.lru_cache(maxsize=4096)
def _nameless(pool: str, order: tuple[str, ...], upstream: Upstream) -> bytes:
    """All of such a cluster but its name, since many slots share an order."""
    members = AggregateCluster(clusters=[member_name(pool, member) for member in order] or [any_name(pool)])
    return bytes(
        Cluster(
            cluster_type=ClusterCustomClusterType(name="envoy.clusters.aggregate", typed_config=Any.pack(members)),
            connect_timeout=timedelta(milliseconds=upstream.timeouts.connect_ms),
            lb_policy=ClusterLbPolicy.CLUSTER_PROVIDED,
            common_lb_config=_health_at_once(),
            circuit_breakers=_breakers(upstream.retries),
        )
    )


@functools.lru_cache(maxsize=4096)
def _assignment(name: str, endpoints: tuple[Endpoint, ...]) -> bytes:
    localities = [LocalityLbEndpoints(lb_endpoints=_hosts(endpoints))] if endpoints else []
    return bytes(ClusterLoadAssignment(cluster_name=name, endpoints=localities))


@functools.lru_cache(maxsize=256)
def _assignment_by_distance(name: str, levels: tuple[tuple[Endpoint, ...], ...]) -> bytes:
    """The assignment of members by priority: one level is used while any member of it is healthy."""
    localities = [
        LocalityLbEndpoints(lb_endpoints=_hosts(level), priority=priority) for priority, level in enumerate(levels)
    ]
    policy = ClusterLoadAssignmentPolicy(overprovisioning_factor=NEVER_SPILL)
    return bytes(ClusterLoadAssignment(cluster_name=name, endpoints=localities, policy=policy))


def _hosts(endpoints: Sequence[Endpoint]) -> list[LbEndpoint]:
    return [
        LbEndpoint(
            endpoint=EndpointMessage(
                address=socket_address(endpoint.address, endpoint.port),
                health_check_config=_where_to_check(endpoint),
            ),
            health_status=HealthStatus.HEALTHY if endpoint.healthy else HealthStatus.UNHEALTHY,
        )
        for endpoint in endpoints
    ]


def _where_to_check(endpoint: Endpoint) -> EndpointHealthCheckConfig:
    """A member without a health port is not asked; the control servers' word is all there is then."""
    if endpoint.check is None:
        return EndpointHealthCheckConfig(disable_active_health_check=True)
    return EndpointHealthCheckConfig(address=socket_address(*endpoint.check))


def _health_checks(checks: HealthChecks) -> list[HealthCheck]:
    """Envoy's own checks. A host without traffic is asked as often as any: a standby has none until it is needed.

    An answer other than 200 counts at once; silence and refused connections after ``failures`` in a row.
    """
    if not checks.enabled:
        return []
    interval = timedelta(milliseconds=checks.interval_ms)
    # A member that came back gets its slots a second later; until Envoy trusts it, its requests go to others.
    quick = min(interval, timedelta(milliseconds=BACK_SOON_MS))
    return [
        HealthCheck(
            timeout=timedelta(milliseconds=checks.timeout_ms),
            interval=interval,
            no_traffic_interval=quick,
            no_traffic_healthy_interval=interval,
            unhealthy_interval=quick,
            healthy_edge_interval=quick,
            unhealthy_threshold=checks.failures,
            healthy_threshold=checks.successes,
            http_health_check=HealthCheckHttpHealthCheck(path=HEALTH_PATH),
        )
    ]


def _outliers(outliers: Outliers) -> OutlierDetection | None:
    """Only what the network says counts: an application's 5xx may be about the request, and goes with it elsewhere."""
    if not outliers.failures:
        return None
    return OutlierDetection(
        split_external_local_origin_errors=True,
        consecutive_local_origin_failure=outliers.failures,
        enforcing_consecutive_local_origin_failure=100,
        enforcing_local_origin_success_rate=0,
        enforcing_consecutive_5xx=0,
        enforcing_consecutive_gateway_failure=0,
        enforcing_success_rate=0,
        interval=timedelta(milliseconds=outliers.base_ms),
        base_ejection_time=timedelta(milliseconds=outliers.base_ms),
        max_ejection_time=timedelta(milliseconds=max(outliers.base_ms, outliers.longest_ms)),
        max_ejection_percent=100,
    )


def _health_at_once() -> ClusterCommonLbConfig:
    """No traffic to unhealthy hosts unless nobody else is left, and no waiting to merge changes of health."""
    return ClusterCommonLbConfig(healthy_panic_threshold=Percent(value=NOBODY_LEFT), update_merge_window=timedelta())


def _breakers(retries: Retries, requests: int | None = None) -> CircuitBreakers:
    """The limits of a cluster. Beyond ``requests`` under way at its members Envoy answers 503 at once.

    Every pool has clusters of its own, so Envoy's routing priorities would separate nothing here.
    """
    limits = CircuitBreakersThresholds(
        max_connections=PLENTY,
        max_pending_requests=PLENTY,
        max_requests=PLENTY if requests is None else requests,
        max_retries=retries.at_once,
    )
    return CircuitBreakers(thresholds=[limits])


def _upstream_http(protocol: str, timeouts: Timeouts) -> Any:
    """How Envoy speaks to applications. HTTP/2 connections are pinged only if the spec says so.

    A gRPC server with default settings closes a connection that is pinged three times while it sends nothing, with
    all its calls ("too_many_pings"; gRPC proposal A8).

    Envoy closes idle connections before applications do: a request sent just as the other side closes is lost, and may
    not be repeated if it is a plain POST.
    """
    idle, ping = timedelta(milliseconds=timeouts.keep_alive_ms), timedelta(milliseconds=timeouts.ping_ms)
    http1 = Http1ProtocolOptions()
    http2 = Http2ProtocolOptions(
        allow_connect=True,
        connection_keepalive=KeepaliveSettings(interval=ping, timeout=ping) if ping else None,
    )
    options = UpstreamHttpOptions(common_http_protocol_options=HttpProtocolOptions(idle_timeout=idle))
    if protocol == "as_client":
        options.use_downstream_protocol_config = HttpProtocolOptionsUseDownstreamHttpConfig(
            http_protocol_options=http1, http2_protocol_options=http2
        )
    elif protocol == "http2":
        options.explicit_http_config = HttpProtocolOptionsExplicitHttpConfig(http2_protocol_options=http2)
    else:
        options.explicit_http_config = HttpProtocolOptionsExplicitHttpConfig(http_protocol_options=http1)
    return Any.pack(options)


def ads_source() -> ConfigSource:
    """Where every dynamic resource of ours comes from: the ADS stream that Envoy already has."""
    return ConfigSource(ads=AggregatedConfigSource(), resource_api_version=ApiVersion.V3)


def socket_address(address: str, port: int) -> Address:
    """A TCP address as Envoy takes it; ``address`` is an IP address."""
    return Address(socket_address=SocketAddress(address=address, port_value=port))
