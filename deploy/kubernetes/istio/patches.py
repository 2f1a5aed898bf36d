"""The fragments of Envoy configuration that ``EnvoyFilter`` resources put into Istio's proxies. Pure.

Each is the value of one patch, in the form that Istio's users know (field names with underscores). Names of resources
and headers come from :mod:`understudy.xds`, which serves them. docs/istio.md describes what each patch changes, and
``tests/deploy/kubernetes/istio`` runs them.
"""

from typing import Any

from understudy.deploy.kubernetes.base.names import GRPC_PORT
from understudy.deploy.kubernetes.istio.plan import MeshPlan
from understudy.proxy.front.bootstrap import XDS_CLUSTER, reconnect, xds_cluster
from understudy.xds.envoy.routes import IDEMPOTENCY_KEY, ORDER_HEADER, REPEATABLE_METHODS, RETRY_HEADER, RETRY_SAFE
from understudy.xds.envoy.routing_view import mesh_routes_name

Fragment = dict[str, Any]

TYPE = "type.googleapis.com/"
HCM_NAME = "envoy.filters.network.http_connection_manager"
_HCM = f"{TYPE}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_POLICIES = "envoy.load_balancing_policies"
SDS_CLUSTER = "sds-grpc"
"""The cluster of Istio's bootstrap behind which the proxy's agent hands out its certificates."""

FIRST_ROUTES = "10s"
"""How long a starting proxy waits for its first routes before it serves its other listeners. Istio's default, 0s, means
for ever, even if no control server is up.
"""


def bootstrap(plan: MeshPlan) -> Fragment:
    """The control servers as a cluster. Routes may only come from a cluster that the bootstrap has."""
    socket = _mesh_tls(plan.control_identity) if plan.xds_tls == "mesh" else None
    addresses = [f"{plan.control_host}:{GRPC_PORT}"]
    return {"static_resources": {"clusters": [xds_cluster(addresses, socket, control_cluster(plan.pool))]}}


def control_cluster(pool: str) -> str:
    """The name of a pool's control servers in a proxy, which may serve several pools."""
    return f"{XDS_CLUSTER}-{pool}"


def cluster() -> Fragment:
    """The policy that takes hosts from our header, added to the cluster that istiod makes of the Service.

    The rest of that cluster stays: endpoints, mTLS, telemetry. After the end of the list any host may be used.
    """
    fallback = _policy("least_request", "least_request.v3.LeastRequest")
    return {
        "load_balancing_policy": {
            "policies": [
                _policy(
                    "override_host",
                    "override_host.v3.OverrideHost",
                    override_host_sources=[{"header": ORDER_HEADER}],
                    fallback_policy={"policies": [fallback]},
                )
            ]
        },
        "common_lb_config": {"update_merge_window": "0s"},
    }


def routes(plan: MeshPlan) -> Fragment:
    """The listener's routes, taken from the control servers instead of istiod."""
    manager: Fragment = {
        "@type": _HCM,
        "rds": {
            "route_config_name": mesh_routes_name(plan.pool),
            "config_source": {
                "api_config_source": {
                    "api_type": "DELTA_GRPC",
                    "transport_api_version": "V3",
                    "set_node_on_first_message_only": True,
                    "grpc_services": [
                        {"envoy_grpc": {"cluster_name": control_cluster(plan.pool), "retry_policy": reconnect()}}
                    ],
                },
                "initial_fetch_timeout": FIRST_ROUTES,
                "resource_api_version": "V3",
            },
        },
    }
    return {"name": HCM_NAME, "typed_config": manager}


def told_refusals() -> Fragment:
    """Makes a member's own proxy say which of its errors may be retried at another member.

    The proxy survives the application beside it and answers 503 for it. To the proxy that sent the request this is an
    ordinary answer. If nothing was sent to the application (UF: no connection, UH: no host), every request may be
    repeated. If the connection broke later (UC, UR), only harmless ones may.
    """
    harmless = {
        "or_filter": {
            "filters": [
                _header({"name": ":method", "string_match": {"safe_regex": {"regex": REPEATABLE_METHODS}}}),
                _header({"name": IDEMPOTENCY_KEY, "present_match": True}),
            ]
        }
    }
    return {
        "name": HCM_NAME,
        "typed_config": {
            "@type": _HCM,
            "local_reply_config": {
                "mappers": [
                    _safe(_flags("UF", "UH")),
                    _safe({"and_filter": {"filters": [_flags("UC", "UR"), harmless]}}),
                ]
            },
        },
    }


def _safe(condition: Fragment) -> Fragment:
    header = {"key": RETRY_HEADER, "value": RETRY_SAFE}
    return {"filter": condition, "headers_to_add": [{"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]}


def _flags(*flags: str) -> Fragment:
    return {"response_flag_filter": {"flags": list(flags)}}


def _header(matcher: Fragment) -> Fragment:
    return {"header_filter": {"header": matcher}}


def _policy(name: str, message: str, **fields: Any) -> Fragment:  # noqa: ANN401 - fields of any message
    config = {"@type": f"{TYPE}envoy.extensions.load_balancing_policies.{message}", **fields}
    return {"typed_extension_config": {"name": f"{_POLICIES}.{name}", "typed_config": config}}


def _mesh_tls(identity: str) -> Fragment:
    """TLS as Istio's proxies speak it among themselves: certificates from the agent, the peer known by its identity."""
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{TYPE}envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {
                "alpn_protocols": ["istio-h2", "istio", "h2"],
                "tls_params": {
                    "tls_minimum_protocol_version": "TLSv1_2",
                    "tls_maximum_protocol_version": "TLSv1_3",
                },
                "tls_certificate_sds_secret_configs": [_secret("default")],
                "combined_validation_context": {
                    "default_validation_context": {
                        "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": identity}}]
                    },
                    "validation_context_sds_secret_config": _secret("ROOTCA"),
                },
            },
        },
    }


def _secret(name: str) -> Fragment:
    source = {
        "api_config_source": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "set_node_on_first_message_only": True,
            "grpc_services": [{"envoy_grpc": {"cluster_name": SDS_CLUSTER}}],
        },
        "initial_fetch_timeout": "0s",
        "resource_api_version": "V3",
    }
    return {"name": name, "sds_config": source}
