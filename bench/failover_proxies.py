"""How the peers of bench/failover.py are set up: Envoy's and HAProxy's configuration, with the reasons.

Each as its documentation offers it for quick failover: active checks every second (0.5 s to answer; a 503 counts at
once), passive detection at the first failures, connections closed on failed health, retries on another host: of
everything when surely nothing was sent, of what is safe or carries an Idempotency-Key also after a lost connection or
half a second of silence.
"""

import json
from collections.abc import Mapping
from typing import Any

WORKERS = 2
SILENCE = 0.5
"""Seconds of silence after which a repeatable request is tried elsewhere."""
REQUEST_TIMEOUT = 15
_MANAGER = "envoy.filters.network.http_connection_manager"
_SAFE = "GET|HEAD|OPTIONS|TRACE|PUT|DELETE"
_TYPE = "type.googleapis.com/envoy.extensions"


def envoy_config(apps: Mapping[str, str], listen: str, admin: str, *, sticky: str) -> str:
    """A static Envoy in front of ``apps`` (name -> host:port). ``sticky`` is ``hash`` (Maglev) or ``cookie``."""
    filters: list[dict[str, Any]] = []
    if sticky == "cookie":
        # Not strict: a session whose host is down goes to another one, and gets a new cookie.
        state = {
            "@type": f"{_TYPE}.http.stateful_session.cookie.v3.CookieBasedSessionState",
            "cookie": {"name": "route", "path": "/", "ttl": "3600s"},
        }
        filters.append(
            {
                "name": "envoy.filters.http.stateful_session",
                "typed_config": {
                    "@type": f"{_TYPE}.filters.http.stateful_session.v3.StatefulSession",
                    "session_state": {"name": "envoy.http.stateful_session.cookie", "typed_config": state},
                },
            }
        )
    filters.append(
        {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{_TYPE}.filters.http.router.v3.Router"}}
    )
    manager = {
        "@type": f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "front",
        "http_filters": filters,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": _routes(sticky)}]},
    }
    return json.dumps(
        {
            "admin": {"address": _address(admin)},
            "static_resources": {
                "listeners": [
                    {
                        "name": "front",
                        "address": _address(listen),
                        "filter_chains": [
                            {
                                "filters": [
                                    {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
                                ]
                            }
                        ],
                    }
                ],
                "clusters": [_cluster(apps, sticky)],
            },
        },
        indent=1,
    )


def _routes(sticky: str) -> list[dict[str, Any]]:
    hashing = [{"header": {"header_name": "x-session-id"}}] if sticky == "hash" else []
    once = [
        {
            "name": ":method",
            "string_match": {"safe_regex": {"regex": "GET|HEAD|OPTIONS|TRACE|PUT|DELETE"}},
            "invert_match": True,
        },
        {"name": "idempotency-key", "present_match": True, "invert_match": True},
    ]
    nothing_done = "connect-failure,refused-stream,reset-before-request,retriable-headers"

    def route(match: dict[str, Any], retry_on: str, per_try: float | None) -> dict[str, Any]:
        policy: dict[str, Any] = {
            "retry_on": retry_on,
            "num_retries": 3,
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {"@type": f"{_TYPE}.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
                }
            ],
            "host_selection_retry_max_attempts": 10,
            "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.01s"},
            "retriable_headers": [{"name": "understudy-retry", "string_match": {"exact": "safe"}}],
        }
        if per_try:
            policy["per_try_timeout"] = f"{per_try}s"
        action = {"cluster": "apps", "timeout": f"{REQUEST_TIMEOUT}s", "hash_policy": hashing, "retry_policy": policy}
        return {"match": match, "route": action}

    return [
        route({"prefix": "/", "headers": once}, nothing_done, None),
        route({"prefix": "/"}, f"{nothing_done},reset,gateway-error", SILENCE),
    ]


def _cluster(apps: Mapping[str, str], sticky: str) -> dict[str, Any]:
    return {
        "name": "apps",
        "type": "STATIC",
        "connect_timeout": "0.25s",
        "lb_policy": "MAGLEV" if sticky == "hash" else "LEAST_REQUEST",
        # By default Envoy gathers changes of health for a second before its workers hear of them.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}, "update_merge_window": "0s"},
        "close_connections_on_host_health_failure": True,
        "load_assignment": {
            "cluster_name": "apps",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(app)}} for app in apps.values()]}],
        },
        "health_checks": [
            {
                "timeout": "0.5s",
                "interval": "1s",
                "no_traffic_interval": "1s",
                "unhealthy_edge_interval": "1s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "http_health_check": {"path": "/healthz"},
            }
        ],
        "outlier_detection": {
            "consecutive_5xx": 3,
            "consecutive_gateway_failure": 3,
            "enforcing_consecutive_gateway_failure": 100,
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 2,
            "interval": "0.5s",
            "base_ejection_time": "2s",
            "max_ejection_time": "2s",
            "max_ejection_percent": 50,
            "enforcing_success_rate": 0,
        },
    }


def _address(text: str) -> dict[str, Any]:
    host, port = text.rsplit(":", 1)
    return {"socket_address": {"address": host, "port_value": int(port)}}


def haproxy_config(apps: Mapping[str, str], listen: str, peers: Mapping[str, str], socket: str) -> str:
    """HAProxy 2.6: a stick table on the session key, shared with its peer, and retries of layer 7.

    ``timeout server`` is what a silent server may take; repeatable requests get a shorter one, and only they are sent
    again after it. Requests under way are not cut when a server is marked down: HAProxy would not send them again.
    ``peers`` is name -> address, this process among them.
    """
    servers = "\n".join(f"    server {name} {address} check" for name, address in apps.items())
    others = "\n".join(f"    peer {name} {address}" for name, address in peers.items())
    return f"""
global
    nbthread {WORKERS}
    stats socket {socket} mode 600 level admin
defaults
    mode http
    timeout connect 250ms
    timeout client 60s
    timeout server {REQUEST_TIMEOUT}s
    timeout http-keep-alive 60s
    timeout check 500ms
peers pair
{others}
frontend front
    bind {listen}
    default_backend apps
backend apps
    balance leastconn
    stick-table type string len 64 size 100k expire 1h peers pair
    stick on req.hdr(x-session-id)
    option httpchk GET /healthz
    option redispatch 1
    retries 3
    retry-on conn-failure empty-response response-timeout 502 503 504
    acl repeatable method GET HEAD OPTIONS PUT DELETE
    acl repeatable req.hdr(idempotency-key) -m found
    http-request disable-l7-retry unless repeatable
    http-request set-timeout server {int(SILENCE * 1000)}ms if repeatable
    default-server inter 1s fastinter 1s downinter 1s fall 2 rise 1
    default-server observe layer7 error-limit 3 on-error mark-down
{servers}
"""
