"""Small resources for tests, as Envoy takes them."""

from datetime import timedelta

from envoy_data_plane.envoy.config.cluster.v3 import (
    Cluster,
    ClusterCommonLbConfig,
    ClusterDiscoveryType,
    ClusterEdsClusterConfig,
)
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    AggregatedConfigSource,
    ApiVersion,
    ConfigSource,
    HealthStatus,
    Locality,
    SocketAddress,
)
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints
from envoy_data_plane.envoy.config.listener.v3 import ApiListener, Filter, FilterChain, Listener
from envoy_data_plane.envoy.config.route.v3 import (
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpFilter,
    Rds,
)
from envoy_data_plane.envoy.type.v3 import Percent
from envoy_data_plane.google.protobuf import Any

ADS = ConfigSource(ads=AggregatedConfigSource(), resource_api_version=ApiVersion.V3)


def cluster(name: str, *, eds: bool = True, mark: str = "") -> Cluster:
    """An EDS cluster, or a static one without hosts; ``mark`` makes one that differs."""
    made = Cluster(
        name=name,
        alt_stat_name=mark,
        connect_timeout=timedelta(seconds=5),
        common_lb_config=ClusterCommonLbConfig(
            healthy_panic_threshold=Percent(value=0), update_merge_window=timedelta(0)
        ),
    )
    if eds:
        made.type = ClusterDiscoveryType.EDS
        made.eds_cluster_config = ClusterEdsClusterConfig(eds_config=ADS)
    return made


def endpoints(name: str, *ports: int, down: tuple[int, ...] = ()) -> ClusterLoadAssignment:
    """An assignment of hosts on the loopback address, one priority each in the order given."""

    def host(port: int) -> LbEndpoint:
        address = Address(socket_address=SocketAddress(address="127.0.0.1", port_value=port))
        health = HealthStatus.UNHEALTHY if port in down else HealthStatus.HEALTHY
        return LbEndpoint(endpoint=Endpoint(address=address), health_status=health)

    return ClusterLoadAssignment(
        cluster_name=name,
        endpoints=[
            LocalityLbEndpoints(
                lb_endpoints=[host(port)],
                priority=priority,
                load_balancing_weight=1,
                locality=Locality(region="here", zone=str(priority)),
            )
            for priority, port in enumerate(ports)
        ],
    )


def routes(name: str, to: str) -> RouteConfiguration:
    """A route configuration that sends everything to one cluster."""
    route = Route(match=RouteMatch(prefix="/"), route=RouteAction(cluster=to))
    return RouteConfiguration(name=name, virtual_hosts=[VirtualHost(name="all", domains=["*"], routes=[route])])


def listener(name: str, port: int, route_config: str) -> Listener:
    """An HTTP listener on the loopback address that takes its routes over ADS."""
    manager = HttpConnectionManager(
        stat_prefix="ingress",
        rds=Rds(config_source=ADS, route_config_name=route_config),
        http_filters=[HttpFilter(name="envoy.filters.http.router", typed_config=Any.pack(Router()))],
    )
    network = Filter(name="envoy.filters.network.http_connection_manager", typed_config=Any.pack(manager))
    return Listener(
        name=name,
        address=Address(socket_address=SocketAddress(address="127.0.0.1", port_value=port)),
        filter_chains=[FilterChain(filters=[network])],
    )


def api_listener(name: str, route_config: str) -> Listener:
    """What a proxyless gRPC client asks for: the listener of the name that it dials."""
    manager = HttpConnectionManager(
        rds=Rds(config_source=ADS, route_config_name=route_config),
        http_filters=[HttpFilter(name="router", typed_config=Any.pack(Router()))],
    )
    return Listener(name=name, api_listener=ApiListener(api_listener=Any.pack(manager)))
