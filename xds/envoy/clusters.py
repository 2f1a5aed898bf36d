"""The clusters of a pool and their endpoints, as encoded messages: how Envoy reaches and checks members. Pure.

What depends on one member or one order is encoded once and remembered.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
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
)
from understudy.xds.envoy.resource_names import (
    any_name,
    member_name,
)
from understudy.xds.envoy.routing_view import Endpoint
from understudy.xds.server.wire import delimited

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


@functools.lru_cache(maxsize=4096)
def member_cluster(pool: str, member: str, upstream: Upstream) -> bytes:
    """The cluster of one member."""
    return bytes(eds_cluster(member_name(pool, member), ClusterLbPolicy.ROUND_ROBIN, upstream))


@functools.lru_cache(maxsize=64)
def any_cluster(pool: str, upstream: Upstream) -> bytes:
    """The cluster of all members, for requests without a session key."""
    return bytes(eds_cluster(any_name(pool), ClusterLbPolicy.LEAST_REQUEST, upstream))


@functools.lru_cache(maxsize=256)
def near_cluster(name: str, upstream: Upstream) -> bytes:
    """The cluster of members by their distance from a site.

    Without checks of its own: every front Envoy has the clusters of all sites, and would check each member anew.

    The control servers' word counts, and a request that reaches nobody goes to the next priority.
    """
    cluster = eds_cluster(name, ClusterLbPolicy.LEAST_REQUEST, upstream)
    cluster.health_checks = []
    return bytes(cluster)


def eds_cluster(name: str, policy: ClusterLbPolicy, upstream: Upstream) -> Cluster:
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


def cluster_of_order(pool: str, name: str, order: tuple[str, ...], upstream: Upstream) -> bytes:
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
def assignment(name: str, endpoints: tuple[Endpoint, ...]) -> bytes:
    """The endpoints of a cluster."""
    localities = [LocalityLbEndpoints(lb_endpoints=_hosts(endpoints))] if endpoints else []
    return bytes(ClusterLoadAssignment(cluster_name=name, endpoints=localities))


@functools.lru_cache(maxsize=256)
def assignment_by_distance(name: str, levels: tuple[tuple[Endpoint, ...], ...]) -> bytes:
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
