"""The resource types of xDS: their type URLs, the services that carry them, and the order in which they are sent.

Names and numbers are those of the public v3 API. The dependencies of types on each other are here, as data;
``understudy.xds.server.stream`` decides what waits for what because of them.
"""

PREFIX = "type.googleapis.com/"
CLUSTER = PREFIX + "envoy.config.cluster.v3.Cluster"
ENDPOINTS = PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENER = PREFIX + "envoy.config.listener.v3.Listener"
ROUTES = PREFIX + "envoy.config.route.v3.RouteConfiguration"
SCOPED_ROUTES = PREFIX + "envoy.config.route.v3.ScopedRouteConfiguration"
VIRTUAL_HOST = PREFIX + "envoy.config.route.v3.VirtualHost"
SECRET = PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"

# Make before break: a resource is sent before the resources that point at it. Types that are not named come last.
SEND_ORDER = (SECRET, CLUSTER, ENDPOINTS, LISTENER, SCOPED_ROUTES, ROUTES, VIRTUAL_HOST)

# In state of the world a response of these types is the whole wanted set: absence deletes. An empty first request
# for one of them is a wildcard. (Protocol text; scoped routes are treated so by Envoy.)
FULL_STATE = frozenset({CLUSTER, LISTENER, SCOPED_ROUTES})

# A resource of the type on the left is removed only when the types on the right, which may still point at it, are
# acknowledged. Listeners are removed at once: beside their successor they would keep its address.
REMOVED_AFTER = {
    SECRET: (CLUSTER, LISTENER),
    CLUSTER: (LISTENER, SCOPED_ROUTES, ROUTES, VIRTUAL_HOST),
    ENDPOINTS: (LISTENER, SCOPED_ROUTES, ROUTES, VIRTUAL_HOST),
    ROUTES: (LISTENER, SCOPED_ROUTES),
}

# Types that point at clusters by name, so that they may have to wait until a new cluster is warm.
POINT_AT_CLUSTERS = frozenset({LISTENER, ROUTES, VIRTUAL_HOST})

SHORT_NAMES = {
    CLUSTER: "CDS",
    ENDPOINTS: "EDS",
    LISTENER: "LDS",
    ROUTES: "RDS",
    SCOPED_ROUTES: "SRDS",
    VIRTUAL_HOST: "VHDS",
    SECRET: "SDS",
}

AGGREGATED_SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"

# service -> (type, name of the state-of-the-world method, name of the delta method)
TYPE_SERVICES = {
    "envoy.service.cluster.v3.ClusterDiscoveryService": (CLUSTER, "StreamClusters", "DeltaClusters"),
    "envoy.service.endpoint.v3.EndpointDiscoveryService": (ENDPOINTS, "StreamEndpoints", "DeltaEndpoints"),
    "envoy.service.listener.v3.ListenerDiscoveryService": (LISTENER, "StreamListeners", "DeltaListeners"),
    "envoy.service.route.v3.RouteDiscoveryService": (ROUTES, "StreamRoutes", "DeltaRoutes"),
    "envoy.service.secret.v3.SecretDiscoveryService": (SECRET, "StreamSecrets", "DeltaSecrets"),
}

_RANK = {type_url: rank for rank, type_url in enumerate(SEND_ORDER)}


def rank_of(type_url: str) -> int:
    """The place of a type in the order of sending; unknown types come last."""
    return _RANK.get(type_url, len(_RANK))


def short_name(type_url: str) -> str:
    """``CDS`` for the cluster type and so on; the last part of the type URL for types without a short name."""
    return SHORT_NAMES.get(type_url) or type_url.rpartition("/")[2].rpartition(".")[2]
