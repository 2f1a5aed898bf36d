"""What a front Envoy gets for a pool: clusters, endpoints, routes and the listener, as ready protobuf bytes.

Pure functions from a :class:`PoolView` to resources. Promises that equal views give equal bytes, that every
name a resource mentions is among the resources, and that a rebuild costs little: what depends on one member
or one order is encoded once and remembered. Leaves the decision who serves what to the caller, sending to
:mod:`xds.ads`, and the matching of requests to :mod:`xds.routes`.

Names: ``<pool>/member/<member>``, ``<pool>/order/<active>+<standby>+...`` (``+`` cannot occur in a member's
name, ``-`` can), ``<pool>/any``, ``<pool>/routes``; the listener is in :mod:`xds.listener`.
"""

import functools
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from envoy_data_plane.envoy.config.cluster.v3 import (
    CircuitBreakers,
    CircuitBreakersThresholds,
    Cluster,
    ClusterCommonLbConfig,
    ClusterCustomClusterType,
    ClusterDiscoveryType,
    ClusterEdsClusterConfig,
    ClusterLbPolicy,
    UpstreamConnectionOptions,
)
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    AggregatedConfigSource,
    ApiVersion,
    ConfigSource,
    HealthStatus,
    Http1ProtocolOptions,
    HttpProtocolOptions,
    SocketAddress,
    TcpKeepalive,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    Endpoint as EndpointMessage,
)
from envoy_data_plane.envoy.extensions.clusters.aggregate.v3 import ClusterConfig as AggregateCluster
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions as UpstreamHttpOptions,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptionsExplicitHttpConfig,
)
from envoy_data_plane.envoy.type.v3 import Percent
from envoy_data_plane.google.protobuf import Any

from statesync.spec import PoolSpec
from xds.routes import route_configuration

CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINTS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
ROUTES = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"

CONNECT_TIMEOUT = timedelta(milliseconds=250)
UPSTREAM_IDLE = timedelta(seconds=4)
"""Below the 5 s after
which common application servers close an idle connection. A request that Envoy sends just as the other side
closes is lost, and may not be repeated if it is a plain POST."""

PLENTY = 1 << 20
"""Circuit breakers count per cluster and by default allow 3 parallel retries; a death under load has more."""

RETRY_BUFFER = 2 << 20
"""Bytes of a request body that Envoy keeps so that it can send it again; twice the largest session."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a member's application listens.

    ``address`` is an IP address: Envoy resolves no names in EDS and would refuse the whole assignment.
    Raises ``ValueError`` otherwise.
    """

    address: str
    port: int
    healthy: bool = True

    def __post_init__(self) -> None:
        ipaddress.ip_address(self.address)
        if not 0 < self.port < 65536:
            raise ValueError(f"{self.port} is not a port number")


@dataclass(frozen=True, slots=True)
class PoolView:
    """What Envoy is to know of a pool.

    ``orders`` has for each slot the members in order, active first; empty as a whole while there is no
    table. Names that are not in ``members`` are left out of the orders.
    """

    spec: PoolSpec
    members: Mapping[str, Endpoint]
    orders: Sequence[tuple[str, ...]]


def build(view: PoolView) -> dict[str, dict[str, bytes]]:
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
    clusters = {member_name(pool, member): _member_cluster(pool, member) for member in sorted(view.members)}
    clusters |= {order_name(pool, order): _order_cluster(pool, order) for order in sorted(set(orders)) if order}
    clusters[everybody] = _any_cluster(pool)
    endpoints = {
        member_name(pool, member): _assignment(member_name(pool, member), (endpoint,))
        for member, endpoint in sorted(view.members.items())
    }
    endpoints[everybody] = _assignment(everybody, tuple(endpoint for _, endpoint in sorted(view.members.items())))
    routes = route_configuration(
        name=routes_name(pool),
        session_key=view.spec.session_key,
        slot_clusters=[order_name(pool, order) if order else everybody for order in orders],
        any_cluster=everybody,
    )
    return {CLUSTER: clusters, ENDPOINTS: endpoints, ROUTES: {routes_name(pool): routes}}


def member_name(pool: str, member: str) -> str:
    """Name of the cluster, and of the endpoints, of one member."""
    return f"{pool}/member/{member}"


def order_name(pool: str, order: Sequence[str]) -> str:
    """Name of the cluster of all slots that have this order of members."""
    return f"{pool}/order/{'+'.join(order)}"


def any_name(pool: str) -> str:
    """Name of the cluster of all members, for requests without a session key."""
    return f"{pool}/any"


def routes_name(pool: str) -> str:
    """Name of the pool's route configuration."""
    return f"{pool}/routes"


@functools.lru_cache(maxsize=4096)
def _member_cluster(pool: str, member: str) -> bytes:
    return bytes(_eds_cluster(member_name(pool, member), ClusterLbPolicy.ROUND_ROBIN))


@functools.lru_cache(maxsize=64)
def _any_cluster(pool: str) -> bytes:
    return bytes(_eds_cluster(any_name(pool), ClusterLbPolicy.LEAST_REQUEST))


def _eds_cluster(name: str, policy: ClusterLbPolicy) -> Cluster:
    return Cluster(
        name=name,
        type=ClusterDiscoveryType.EDS,
        eds_cluster_config=ClusterEdsClusterConfig(eds_config=ads_source()),
        connect_timeout=CONNECT_TIMEOUT,
        lb_policy=policy,
        common_lb_config=_health_at_once(),
        circuit_breakers=_breakers(),
        typed_extension_protocol_options={
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": _upstream_http(),
        },
        upstream_connection_options=UpstreamConnectionOptions(
            tcp_keepalive=TcpKeepalive(keepalive_probes=3, keepalive_time=5, keepalive_interval=1)
        ),
    )


@functools.lru_cache(maxsize=4096)
def _order_cluster(pool: str, order: tuple[str, ...]) -> bytes:
    members = AggregateCluster(clusters=[member_name(pool, member) for member in order])
    return bytes(
        Cluster(
            name=order_name(pool, order),
            cluster_type=ClusterCustomClusterType(name="envoy.clusters.aggregate", typed_config=Any.pack(members)),
            connect_timeout=CONNECT_TIMEOUT,
            lb_policy=ClusterLbPolicy.CLUSTER_PROVIDED,
            common_lb_config=_health_at_once(),
            circuit_breakers=_breakers(),
        )
    )


@functools.lru_cache(maxsize=4096)
def _assignment(name: str, endpoints: tuple[Endpoint, ...]) -> bytes:
    hosts = [
        LbEndpoint(
            endpoint=EndpointMessage(address=socket_address(endpoint.address, endpoint.port)),
            health_status=HealthStatus.HEALTHY if endpoint.healthy else HealthStatus.UNHEALTHY,
        )
        for endpoint in endpoints
    ]
    localities = [LocalityLbEndpoints(lb_endpoints=hosts)] if hosts else []
    return bytes(ClusterLoadAssignment(cluster_name=name, endpoints=localities))


def _health_at_once() -> ClusterCommonLbConfig:
    """No traffic to unhealthy hosts, however few are left, and no waiting to merge changes of health."""
    return ClusterCommonLbConfig(healthy_panic_threshold=Percent(value=0.0), update_merge_window=timedelta())


def _breakers() -> CircuitBreakers:
    limits = CircuitBreakersThresholds(
        max_connections=PLENTY, max_pending_requests=PLENTY, max_requests=PLENTY, max_retries=PLENTY
    )
    return CircuitBreakers(thresholds=[limits])


def _upstream_http() -> Any:
    http1 = HttpProtocolOptionsExplicitHttpConfig(http_protocol_options=Http1ProtocolOptions())
    idle = HttpProtocolOptions(idle_timeout=UPSTREAM_IDLE)
    return Any.pack(UpstreamHttpOptions(common_http_protocol_options=idle, explicit_http_config=http1))


def ads_source() -> ConfigSource:
    """Where every dynamic resource of ours comes from: the ADS stream that Envoy already has."""
    return ConfigSource(ads=AggregatedConfigSource(), resource_api_version=ApiVersion.V3)


def socket_address(address: str, port: int) -> Address:
    """A TCP address as Envoy takes it; ``address`` is an IP address."""
    return Address(socket_address=SocketAddress(address=address, port_value=port))
