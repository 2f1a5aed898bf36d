"""The listeners of front Envoys that serve several pools: one for each port, whatever pools there are behind it.

Pure. A port has one route table (:func:`table_name`), which brings all changes of pools: Envoy takes another table
without touching a connection. A listener changes only when a port is used first or last, or when a host with TLS comes
or goes. On a port with TLS every host has a filter chain of its own, with its certificate. Envoy takes a change of the
chains in place, and ends the connections of those chains alone that are gone or changed (tried on 1.40).

Certificates come as secrets that name files on the Envoy's machine. Envoy watches the directory of the certificate, and
reads both files again when a file is renamed into it.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from understudy.statesync.pool.spec_front import ANY_HOST, FrontTls
from understudy.xds.envoy.clusters import ads_source, socket_address
from understudy.xds.envoy.envoy_telemetry import request_reports, tracing
from understudy.xds.envoy.listener import http_filter
from understudy.xds.envoy.messages import (
    Any,
    CommonTlsContext,
    DataSource,
    DownstreamTlsContext,
    Filter,
    FilterChain,
    FilterChainMatch,
    Listener,
    ListenerFilter,
    SdsSecretConfig,
    Secret,
    TlsCertificate,
    TlsInspector,
    TransportSocket,
    WatchedDirectory,
)
from understudy.xds.envoy.resources import RETRY_BUFFER
from understudy.xds.envoy.routes import POOL_KEY, POOL_METADATA

POOL_OF_REQUEST = f"%METADATA(ROUTE:{POOL_METADATA}:{POOL_KEY})%"


@dataclass(frozen=True, slots=True)
class HttpPort:
    """A port for HTTP pools. ``tls`` has the certificate of each host; without any the port is for plain text."""

    port: int
    tls: tuple[tuple[str, FrontTls], ...] = ()


def port_name(port: int) -> str:
    """The name of a port; no pool can have it."""
    return f"port:{port}"


def table_name(port: int) -> str:
    """Name of the route table of a port."""
    return f"{port_name(port)}/routes"


def port_listener_name(port: int) -> str:
    """Name of the listener of a port."""
    return f"{port_name(port)}/listener"


def secret_name(tls: FrontTls) -> str:
    """Name of the secret of a certificate."""
    return f"file:{tls.cert}:{tls.key}"


@functools.lru_cache(maxsize=256)
def secret(tls: FrontTls) -> bytes:
    """The encoded ``Secret`` of a certificate in files."""
    certificate = TlsCertificate(
        certificate_chain=DataSource(filename=tls.cert),
        private_key=DataSource(filename=tls.key),
        watched_directory=WatchedDirectory(path=str(PurePosixPath(tls.cert).parent)),
    )
    return bytes(Secret(name=secret_name(tls), tls_certificate=certificate))


@functools.lru_cache(maxsize=256)
def port_listener(address: str, port: HttpPort, telemetry: str, *, traced: bool) -> bytes:
    """The encoded ``Listener`` of a port; ``telemetry`` and ``traced`` as in :mod:`understudy.xds.envoy.listener`."""
    stats = f"port-{port.port}"
    reports = request_reports(POOL_OF_REQUEST, telemetry) if telemetry else None
    spans = tracing(telemetry) if telemetry and traced else None
    http = http_filter(stats, table_name(port.port), reports, spans)
    return bytes(
        Listener(
            name=port_listener_name(port.port),
            stat_prefix=stats,
            address=socket_address(address, port.port),
            listener_filters=[_server_names()] if port.tls else [],
            filter_chains=list(_chains(port.tls, http)) if port.tls else [FilterChain(filters=[http])],
            per_connection_buffer_limit_bytes=RETRY_BUFFER,
        )
    )


def _server_names() -> ListenerFilter:
    """Reads the host that a client of TLS asks for (SNI)."""
    return ListenerFilter(name="envoy.filters.listener.tls_inspector", typed_config=Any.pack(TlsInspector()))


def _chains(tls: Iterable[tuple[str, FrontTls]], http: Filter) -> Iterable[FilterChain]:
    """A filter chain for each host: one for several would end its connections with a change of any of them."""
    for host, certificate in tls:
        match = FilterChainMatch(transport_protocol="tls", server_names=[] if host == ANY_HOST else [host])
        context = DownstreamTlsContext(
            common_tls_context=CommonTlsContext(
                alpn_protocols=["h2", "http/1.1"],
                tls_certificate_sds_secret_configs=[
                    SdsSecretConfig(name=secret_name(certificate), sds_config=ads_source())
                ],
            )
        )
        yield FilterChain(
            name=host,
            filter_chain_match=match,
            filters=[http],
            transport_socket=TransportSocket(name="envoy.transport_sockets.tls", typed_config=Any.pack(context)),
        )
