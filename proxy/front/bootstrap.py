"""The bootstrap configuration of a front Envoy: who it is, and where it gets everything else from.

Pure. Everything but the control servers' addresses comes over ADS, so a bootstrap never has to change with
the pool. What the control server must know of this Envoy travels in the node: the pool as its cluster, and
as metadata ``understudy.listen`` the address on which it is to accept clients and ``understudy.telemetry`` the cluster
through which it can report requests. Through the same one it tells how many there were
(:mod:`understudy.proxy.front.request_counts`). Running Envoy is left to :mod:`understudy.proxy.front.envoy`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from understudy.proxy.front.addresses import is_ip, socket_address
from understudy.proxy.front.request_counts import (
    member_tag,
    member_tag_of_pools,
    pool_tag,
    request_counts,
    request_counts_of_pools,
)
from understudy.proxy.front.status_listener import admin_cluster, status_listener
from understudy.statesync.pool.addresses import split_address
from understudy.statesync.pool.front_node import pools_of_front
from understudy.telemetry.tracing import names

XDS_CLUSTER = "understudy-xds"


def bootstrap(
    *,
    node_id: str,
    pool: str,
    listen: str,
    xds_addresses: Sequence[str],
    admin: str = "127.0.0.1:0",
    delta: bool = True,
    transport_socket: Mapping[str, Any] | None = None,
    trace_requests: bool = False,
    status: str = "",
    shared: bool = False,
    site: str = "",
    site_by_zone: bool = False,
) -> dict[str, Any]:
    """The bootstrap of one Envoy, to be written as JSON.

    Args:
        node_id: the Envoy's name towards the control servers; unique in the pool.
        pool: the pool that it serves, or what :func:`understudy.statesync.pool.front_node.cluster_of_front` makes of
            several.
        listen: IP address and port on which it is to accept clients; port 0 where it serves several pools, whose specs
            have the ports.
        xds_addresses: ``host:port`` of each control server's gRPC port; any of them will do, all are tried.
        admin: IP address and port of Envoy's admin interface, which has no access control and so belongs on
            loopback; port 0 picks a free one.
        delta: incremental xDS; state of the world otherwise.
        transport_socket: how to speak TLS to the control servers, from :mod:`understudy.proxy.front.envoy_tls`; plain
            text without.
        trace_requests: whether Envoy adds its spans to traces that callers sample (docs/telemetry.md tells the cost).
        status: IP address and port at which others may ask whether Envoy is ready, and for its metrics
            (:mod:`understudy.proxy.front.status_listener`); nowhere without. It needs an ``admin`` with a fixed port.
        shared: several Envoys have this file: each is told its own name by ``--service-node``, and by the environment
            (:data:`understudy.proxy.front.request_counts.NODE_VARIABLE`) what its counts of requests are to be known
            by.
        site: the Envoy's site, which it prefers for new sessions; none without. Not for an Envoy of several pools.
        site_by_zone: ``--service-zone`` tells the site instead, and the environment (:data:`NODE_VARIABLE` there) does.

    Raises:
        ValueError: if an address is not ``host:port`` or unfit for its purpose, or there is no control server.
    """
    if not xds_addresses:
        raise ValueError("an Envoy needs the address of at least one control server")
    for purpose, address in (("listen", listen), ("admin", admin), *([("status", status)] if status else [])):
        if not is_ip(split_address(address)[0]):
            raise ValueError(f"{purpose} address {address!r}: Envoy listens on IP addresses, not on names")
    several = pools_of_front(pool) is not None
    if split_address(listen)[1] == 0 and not several:
        raise ValueError(f"listen address {listen!r}: clients need a port that they know, not 0")
    sited = bool(site) or site_by_zone
    if several and sited:
        raise ValueError(f"site {site!r}: an Envoy of several pools prefers no site; give it none, or one pool")
    static = {"clusters": [xds_cluster(xds_addresses, transport_socket)]}
    if status:
        if split_address(admin)[1] == 0:
            raise ValueError(f"admin address {admin!r}: a status address needs an admin port that is known, not 0")
        static = {"listeners": [status_listener(status)], "clusters": [*static["clusters"], admin_cluster(admin)]}
    source = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
    ours: dict[str, Any] = {"listen": listen, "telemetry": XDS_CLUSTER}
    if trace_requests:
        ours["tracing"] = True
    if site:
        ours["site"] = site
    node: dict[str, Any] = {"id": node_id, "cluster": pool, "metadata": {"understudy": ours}}
    named = "" if shared else node_id
    sink = (
        request_counts_of_pools(node_id=named, pools=pool, cluster=XDS_CLUSTER)
        if several
        else request_counts(node_id=named, pool=pool, cluster=XDS_CLUSTER, site=site, sited=sited)
    )
    # The clusters of a TCP pool's slots only lead to those of its members, which have the same figures; theirs would be
    # a third of Envoy's memory.
    return {
        "node": node,
        "admin": {"address": socket_address(admin)},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC" if delta else "GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": XDS_CLUSTER, "retry_policy": reconnect()}}],
            },
            # Without a time limit Envoy is ready when it has its configuration, not before.
            "cds_config": source,
            "lds_config": source,
        },
        "static_resources": static,
        "stats_config": {
            "stats_tags": [pool_tag(), member_tag_of_pools()] if several else [member_tag(pool, of_site=sited)],
            "stats_matcher": {"exclusion_list": {"patterns": [_slots_of(pool, several=several)]}},
        },
        "stats_flush_interval": f"{names.COUNT_SECONDS}s",
        "stats_sinks": [sink],
    }


def _slots_of(pool: str, *, several: bool) -> dict[str, Any]:
    """Matches the stats of the clusters of a pool's slots, or of every pool's."""
    return {"safe_regex": {"regex": "cluster\\.[^/]+/slot/.*"}} if several else {"prefix": f"cluster.{pool}/slot/"}


def options(*, concurrency: int, log_level: str, drain: float) -> tuple[str, ...]:
    """The options of Envoy that go with the bootstrap: worker threads, log level, seconds that a drain may take."""
    return (
        *("--concurrency", str(concurrency)),
        *("--log-level", log_level),
        # No hot restart: no shared memory, so no base id that two Envoys on one machine could fight over.
        "--disable-hot-restart",
        *("--drain-strategy", "immediate"),
        *("--drain-time-s", str(max(1, round(drain)))),
    )


def reconnect() -> dict[str, Any]:
    """How soon a broken ADS stream is opened again; Envoy's default grows from 0.5 s to 30 s."""
    return {"retry_back_off": {"base_interval": "0.05s", "max_interval": "1s"}}


def xds_cluster(
    addresses: Sequence[str], transport_socket: Mapping[str, Any] | None, name: str = XDS_CLUSTER
) -> dict[str, Any]:
    """The cluster of control servers at ``host:port``; plain text without a transport socket."""
    endpoints = [{"endpoint": {"address": socket_address(address)}} for address in addresses]
    numeric = all(is_ip(split_address(address)[0]) for address in addresses)
    return {
        **({"transport_socket": dict(transport_socket)} if transport_socket else {}),
        "name": name,
        "type": "STATIC" if numeric else "STRICT_DNS",
        "connect_timeout": "0.25s",
        "lb_policy": "ROUND_ROBIN",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
        # One that died closes its connections itself. A vanished host is noticed by TCP, a hanging process by HTTP/2;
        # a gRPC server must be told that such pings are fine (grpc.http2.min_ping_interval_without_data_ms).
        "upstream_connection_options": {
            "tcp_keepalive": {"keepalive_time": 5, "keepalive_interval": 1, "keepalive_probes": 3}
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {
                    "http2_protocol_options": {"connection_keepalive": {"interval": "2s", "timeout": "3s"}}
                },
            }
        },
    }
