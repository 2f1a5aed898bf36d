"""The listener of a front Envoy: HTTP in, routes by RDS, and a line for every request that ended in 5xx.

Pure, like :mod:`understudy.xds.envoy.resources`, which has everything that stands behind the routes. The listener alone
depends on the node that asks: on the address that its metadata names.
"""

import functools
from collections.abc import Mapping
from datetime import timedelta

from understudy.statesync.http.headers import CLIENTS_MAY_NOT
from understudy.xds.envoy.clusters import ads_source, socket_address
from understudy.xds.envoy.envoy_telemetry import request_reports, server_errors, tracing
from understudy.xds.envoy.messages import (
    AccessLog,
    AccessLogFilter,
    Any,
    CidrRange,
    EarlyHeaderMutation,
    Filter,
    FilterChain,
    HeaderMutation,
    HeaderMutationRemoveOnMatch,
    Http2ProtocolOptions,
    HttpConnectionManager,
    HttpConnectionManagerInternalAddressConfig,
    HttpConnectionManagerPathWithEscapedSlashesAction,
    HttpConnectionManagerTracing,
    HttpConnectionManagerUpgradeConfig,
    HttpFilter,
    HttpProtocolOptions,
    HttpProtocolOptionsHeadersWithUnderscoresAction,
    Listener,
    Rds,
    Router,
    StderrAccessLog,
    StringMatcher,
    Struct,
    SubstitutionFormatString,
    TypedExtensionConfig,
    Value,
)
from understudy.xds.envoy.request_limit import limit_filter
from understudy.xds.envoy.resource_names import routes_name
from understudy.xds.envoy.resources import RETRY_BUFFER


def listener_name(pool: str) -> str:
    """Name of the pool's listener."""
    return f"{pool}/listener"


@functools.lru_cache(maxsize=64)
def listener(pool: str, address: str, port: int, telemetry: str = "", *, traced: bool = False, site: str = "") -> bytes:
    """The encoded ``Listener`` of a front Envoy that serves a pool on ``address:port``.

    ``telemetry`` is the Envoy's cluster to which it reports requests (:mod:`understudy.xds.envoy.envoy_telemetry`);
    none without. ``traced``: it also adds its spans to the traces of its callers. ``site``: it has the routes that
    prefer this site.
    """
    reports = request_reports(pool, telemetry) if telemetry else None
    spans = tracing(telemetry) if telemetry and traced else None
    return bytes(
        Listener(
            name=listener_name(pool),
            stat_prefix=pool,
            address=socket_address(address, port),
            filter_chains=[FilterChain(filters=[http_filter(pool, routes_name(pool, site), reports, spans)])],
            per_connection_buffer_limit_bytes=RETRY_BUFFER,
        )
    )


def http_filter(
    stat_prefix: str, routes: str, reports: AccessLog | None, spans: HttpConnectionManagerTracing | None
) -> Filter:
    """The network filter that takes HTTP requests and sends them by the route configuration ``routes``."""
    manager = HttpConnectionManager(
        stat_prefix=stat_prefix,
        rds=Rds(config_source=ads_source(), route_config_name=routes),
        http_filters=[
            limit_filter(stat_prefix),
            HttpFilter(name="envoy.filters.http.router", typed_config=Any.pack(Router())),
        ],
        common_http_protocol_options=HttpProtocolOptions(
            idle_timeout=timedelta(hours=1),
            # Many applications take ``x_user`` and ``x-user`` for one header, and what looks at headers before them
            # does not.
            headers_with_underscores_action=HttpProtocolOptionsHeadersWithUnderscoresAction.REJECT_REQUEST,
        ),
        early_header_mutation_extensions=[_without_our_headers()],
        http2_protocol_options=Http2ProtocolOptions(
            max_concurrent_streams=100,
            initial_stream_window_size=65536,
            initial_connection_window_size=1 << 20,
        ),
        stream_idle_timeout=timedelta(minutes=5),
        request_headers_timeout=timedelta(seconds=10),
        use_remote_address=True,
        internal_address_config=_nobody_is_internal(),
        generate_request_id=True,
        normalize_path=True,
        # Who decodes ``%2F`` only after the path was looked at sees another path. So the client has to say it plainly.
        path_with_escaped_slashes_action=HttpConnectionManagerPathWithEscapedSlashesAction.UNESCAPE_AND_REDIRECT,
        access_log=[_errors_log(), *([reports] if reports else [])],
        tracing=spans,
        upgrade_configs=[HttpConnectionManagerUpgradeConfig(upgrade_type="websocket")],
    )
    return Filter(name="envoy.filters.network.http_connection_manager", typed_config=Any.pack(manager))


def _without_our_headers() -> TypedExtensionConfig:
    """Take the headers that mean something to our Envoys and sidecars out of a request, before anything reads it.

    An application may hand on to its sidecar whatever headers it was sent. Envoy adds its own ones later.
    """
    mutations = [
        HeaderMutation(remove_on_match=HeaderMutationRemoveOnMatch(key_matcher=StringMatcher(prefix=prefix)))
        for prefix in CLIENTS_MAY_NOT
    ]
    return TypedExtensionConfig(
        name="envoy.http.early_header_mutation.header_mutation",
        typed_config=Any.pack(EarlyHeaderMutation(mutations=mutations)),
    )


def _errors_log() -> AccessLog:
    """Requests that Envoy or a member answered with 5xx, to Envoy's stderr, one JSON object a line: who could not, why.

    Neither keys nor content: the path without its query is all that is told of the request.
    """
    line = {
        "time": "%START_TIME%",
        "method": "%REQ(:METHOD)%",
        "path": "%PATH(NQ)%",
        "status": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "cluster": "%UPSTREAM_CLUSTER%",
        "host": "%UPSTREAM_HOST%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "ms": "%DURATION%",
        "failure": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
        "request_id": "%REQ(X-REQUEST-ID)%",
    }
    return stderr_lines(server_errors(), line)


def stderr_lines(which: AccessLogFilter, line: Mapping[str, str]) -> AccessLog:
    """An access log of what ``which`` lets pass: a JSON object a line to Envoy's stderr, field by field as given."""
    fields = {name: Value(string_value=text) for name, text in line.items()}
    return AccessLog(
        name="envoy.access_loggers.stderr",
        filter=which,
        typed_config=Any.pack(StderrAccessLog(log_format=SubstitutionFormatString(json_format=Struct(fields=fields)))),
    )


def _nobody_is_internal() -> HttpConnectionManagerInternalAddressConfig:
    """No caller is trusted for its address alone: ``x-envoy-retry-on`` of its own could repeat a plain POST.

    Left out, this depends on the version of Envoy, and without ranges 1.40 takes loopback and private addresses for
    internal ones. So the only range is one that is reserved for documentation (RFC 5737).
    """
    nobody = CidrRange(address_prefix="192.0.2.0", prefix_len=32)
    return HttpConnectionManagerInternalAddressConfig(cidr_ranges=[nobody])
