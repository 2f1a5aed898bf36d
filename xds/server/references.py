"""Reads from encoded bytes which resources a resource points at.

Reads only the name of a cluster, listener or route configuration and the names that it points at. They have three uses:
a resource whose own name differs from its name in the cache is refused, a snapshot that points at a missing name is
refused, and the stream knows which endpoints follow a cluster and which routes follow a listener. Extensions that this
module does not know count as pointing at nothing.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from understudy.xds.server import types
from understudy.xds.server.dynamic_protobuf import Dynamic, Schema

_HCM = "envoy.extensions.filters.network.http_connection_manager.v3"
_TCP = "envoy.extensions.filters.network.tcp_proxy.v3"
_AGGREGATE = "envoy.extensions.clusters.aggregate.v3"
_ROUTE = "envoy.config.route.v3"
_LISTENER = "envoy.config.listener.v3"
_CLUSTER = "envoy.config.cluster.v3"
_EDS_DISCOVERY = 3

_SCHEMA = Schema()
_SCHEMA.declare(
    _ROUTE,
    {
        "Named": {"name": (1, "string")},
        "Weighted": {"clusters": (1, f"repeated {_ROUTE}.Named")},
        "Mirror": {"cluster": (1, "string")},
        "RouteAction": {
            "cluster": (1, "string"),
            "weighted_clusters": (3, f"{_ROUTE}.Weighted"),
            "request_mirror_policies": (30, f"repeated {_ROUTE}.Mirror"),
        },
        "Route": {"route": (2, f"{_ROUTE}.RouteAction")},
        "VirtualHost": {
            "name": (1, "string"),
            "routes": (3, f"repeated {_ROUTE}.Route"),
            "request_mirror_policies": (22, f"repeated {_ROUTE}.Mirror"),
        },
        "RouteConfiguration": {
            "name": (1, "string"),
            "virtual_hosts": (2, f"repeated {_ROUTE}.VirtualHost"),
            "request_mirror_policies": (13, f"repeated {_ROUTE}.Mirror"),
        },
    },
)
_SCHEMA.declare(
    _HCM,
    {
        "Rds": {"route_config_name": (2, "string")},
        "HttpConnectionManager": {
            "rds": (3, f"{_HCM}.Rds"),
            "route_config": (4, f"{_ROUTE}.RouteConfiguration"),
        },
    },
)
_SCHEMA.declare(_TCP, {"TcpProxy": {"cluster": (2, "string"), "weighted_clusters": (10, f"{_ROUTE}.Weighted")}})
_SCHEMA.declare(_AGGREGATE, {"ClusterConfig": {"clusters": (1, "repeated string")}})
_SCHEMA.declare(
    _LISTENER,
    {
        "Filter": {"typed_config": (4, "google.protobuf.Any")},
        "FilterChain": {"filters": (3, f"repeated {_LISTENER}.Filter")},
        "ApiListener": {"api_listener": (1, "google.protobuf.Any")},
        "Listener": {
            "name": (1, "string"),
            "filter_chains": (3, f"repeated {_LISTENER}.FilterChain"),
            "api_listener": (19, f"{_LISTENER}.ApiListener"),
            "default_filter_chain": (25, f"{_LISTENER}.FilterChain"),
        },
    },
)
_SCHEMA.declare(
    _CLUSTER,
    {
        "Eds": {"service_name": (2, "string")},
        "Custom": {"typed_config": (2, "google.protobuf.Any")},
        "Cluster": {
            "name": (1, "string"),
            "type": (2, "int32"),
            "eds_cluster_config": (3, f"{_CLUSTER}.Eds"),
            "cluster_type": (38, f"{_CLUSTER}.Custom"),
        },
    },
)

_Cluster = _SCHEMA.message(f"{_CLUSTER}.Cluster")
_Listener = _SCHEMA.message(f"{_LISTENER}.Listener")
_RouteConfiguration = _SCHEMA.message(f"{_ROUTE}.RouteConfiguration")
_VirtualHost = _SCHEMA.message(f"{_ROUTE}.VirtualHost")
_Named = _SCHEMA.message(f"{_ROUTE}.Named")
_EXTENSIONS = {
    f"{types.PREFIX}{name}": _SCHEMA.message(name)
    for name in (f"{_HCM}.HttpConnectionManager", f"{_TCP}.TcpProxy", f"{_AGGREGATE}.ClusterConfig")
}
# Endpoints and secrets are read for their name alone, which is field 1 in both.
_CLASSES = {
    types.CLUSTER: _Cluster,
    types.LISTENER: _Listener,
    types.ROUTES: _RouteConfiguration,
    types.VIRTUAL_HOST: _VirtualHost,
    types.ENDPOINTS: _Named,
    types.SECRET: _Named,
}


@dataclass(frozen=True, slots=True)
class References:
    """The names that one resource points at: clusters, route configurations, endpoint assignments."""

    clusters: frozenset[str] = frozenset()
    routes: frozenset[str] = frozenset()
    endpoints: frozenset[str] = frozenset()

    def of_type(self, type_url: str) -> frozenset[str]:
        """The names of one type that are pointed at."""
        match type_url:
            case types.CLUSTER:
                return self.clusters
            case types.ROUTES:
                return self.routes
            case types.ENDPOINTS:
                return self.endpoints
        return frozenset()


NONE = References()


class UnreadableResource(ValueError):
    """A resource that cannot be read as its type, or that has another name; the text says why."""


def read_references(type_url: str, name: str, value: bytes) -> References:
    """What the resource ``name``, serialised as ``value``, points at.

    Raises :class:`UnreadableResource` if the bytes are no such message or have another name. Unknown types are skipped.
    """
    kind = _CLASSES.get(type_url)
    if kind is None:
        return NONE
    try:
        message = kind.FromString(value)
        if message.name != name:
            raise UnreadableResource(f"it calls itself {message.name!r}")
        return _references(type_url, message)
    except DecodeError as fault:
        raise UnreadableResource(f"its bytes are no {type_url.rpartition('.')[2]}: {fault}") from None


def _references(type_url: str, message: Dynamic) -> References:
    match type_url:
        case types.CLUSTER:
            return _of_cluster(message)
        case types.LISTENER:
            return _of_listener(message)
        case types.ROUTES:
            return References(clusters=frozenset(_clusters_of_routes(message)))
        case types.VIRTUAL_HOST:
            return References(clusters=frozenset(_clusters_of_host(message)))
    return NONE


def _of_cluster(cluster: Dynamic) -> References:
    if cluster.HasField("cluster_type"):
        extension = _unpack(cluster.cluster_type.typed_config)
        return References(clusters=frozenset(getattr(extension, "clusters", ())))
    if cluster.type == _EDS_DISCOVERY:
        return References(endpoints=frozenset({cluster.eds_cluster_config.service_name or cluster.name}))
    return NONE


def _of_listener(listener: Dynamic) -> References:
    clusters: set[str] = set()
    routes: set[str] = set()
    for packed in _extensions_of(listener):
        extension = _unpack(packed)
        if extension is None:
            continue
        if extension.DESCRIPTOR.name == "HttpConnectionManager":
            routes.update(filter(None, (extension.rds.route_config_name,)))
            clusters.update(_clusters_of_routes(extension.route_config))
        elif extension.DESCRIPTOR.name == "TcpProxy":
            clusters.update(_clusters_of_action(extension))
    return References(clusters=frozenset(clusters), routes=frozenset(routes))


def _extensions_of(listener: Dynamic) -> Iterator[Dynamic]:
    for chain in (*listener.filter_chains, listener.default_filter_chain):
        for one in chain.filters:
            yield one.typed_config
    yield listener.api_listener.api_listener


def _unpack(packed: Dynamic) -> Dynamic:
    kind = _EXTENSIONS.get(packed.type_url)
    return None if kind is None else kind.FromString(packed.value)


def _clusters_of_routes(config: Dynamic) -> Iterator[str]:
    yield from _mirrors(config.request_mirror_policies)
    for host in config.virtual_hosts:
        yield from _clusters_of_host(host)


def _clusters_of_host(host: Dynamic) -> Iterator[str]:
    yield from _mirrors(host.request_mirror_policies)
    for route in host.routes:
        yield from _clusters_of_action(route.route)
        yield from _mirrors(route.route.request_mirror_policies)


def _clusters_of_action(action: Dynamic) -> Iterator[str]:
    if action.cluster:
        yield action.cluster
    for weighted in action.weighted_clusters.clusters:
        if weighted.name:
            yield weighted.name


def _mirrors(policies: Iterable[Dynamic]) -> Iterator[str]:
    return (policy.cluster for policy in policies if policy.cluster)
