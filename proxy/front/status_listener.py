"""What others may ask a front Envoy: whether it is ready, and its metrics. Pure.

Envoy's admin interface can stop and reconfigure it, so it stays on loopback. A platform's probes and Prometheus come
from elsewhere; this listener passes exactly two paths on to the admin interface, and answers 404 to everything else.
"""

from typing import Any

from understudy.proxy.front.addresses import socket_address

PATHS = ("/ready", "/stats/prometheus")
ADMIN_CLUSTER = "understudy-admin"
_MANAGER = "envoy.filters.network.http_connection_manager"
_TYPES = "type.googleapis.com/envoy.extensions.filters"


def status_listener(address: str) -> dict[str, Any]:
    """The listener at ``host:port``, for a bootstrap that has the :func:`admin_cluster`."""
    routes = [{"match": {"path": path}, "route": {"cluster": ADMIN_CLUSTER}} for path in PATHS]
    manager = {
        "@type": f"{_TYPES}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "status",
        "route_config": {"virtual_hosts": [{"name": "status", "domains": ["*"], "routes": routes}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_TYPES}.http.router.v3.Router"},
            }
        ],
        "normalize_path": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "common_http_protocol_options": {"headers_with_underscores_action": "REJECT_REQUEST"},
    }
    return {
        "name": "understudy-status",
        "address": socket_address(address),
        # Still answered while the other listeners drain, and never counted as one of the pool's.
        "ignore_global_conn_limit": True,
        "bypass_overload_manager": True,
        "filter_chains": [{"filters": [{"name": _MANAGER, "typed_config": manager}]}],
    }


def admin_cluster(admin: str) -> dict[str, Any]:
    """The cluster of the admin interface at ``host:port``."""
    endpoint = {"endpoint": {"address": socket_address(admin)}}
    return {
        "name": ADMIN_CLUSTER,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": ADMIN_CLUSTER, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
