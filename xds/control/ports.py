"""The ports of a control server: how they are opened, and which of them must ask for certificates."""

import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Collection, Iterator

import grpc
from aiohttp import web

from understudy.statesync.http.http_port import serve
from understudy.statesync.pool.addresses import split_address
from understudy.statesync.tls.identity import Trust, is_loopback
from understudy.statesync.tls.peer_tls import BadTlsFiles, Identity, PeerTls
from understudy.statesync.tls.pem_files import PemFiles
from understudy.statesync.tls.secret_files import fault_of
from understudy.xds.control.identity import server_credentials
from understudy.xds.server.ads import ACCEPT_ALL, KEEPALIVE
from understudy.xds.server.stream_quota import HTTP2_LIMIT

MAX_REQUEST_BYTES = 16 * 1024 * 1024
WILDCARDS = ("0.0.0.0", "[::]")  # noqa: S104 - recognised, not listened at


class StartError(Exception):
    """The control server cannot start. The text is the one line that the user sees: what, where, what to do."""


def grpc_server(address: str, tls: PemFiles | None, *, insecure: bool) -> tuple[grpc.aio.Server, int]:
    """A gRPC server that is bound to its address and not started, and its port."""
    credentials = _credentials(tls)
    require_private("--grpc", address, allowed=tls is not None or insecure)
    # Without SO_REUSEPORT: two control servers must never share a port unnoticed.
    server = grpc.aio.server(
        options=[
            *ACCEPT_ALL,
            *KEEPALIVE,
            *HTTP2_LIMIT,
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
        ]
    )
    try:
        if credentials is None:
            return server, server.add_insecure_port(address)
        return server, server.add_secure_port(address, credentials)
    except RuntimeError:
        raise _cannot_listen("--grpc", address) from None


def _credentials(tls: PemFiles | None) -> grpc.ServerCredentials | None:
    """What the gRPC port asks of its clients; None for plain text."""
    try:
        return server_credentials(tls) if tls else None
    except OSError as error:
        raise StartError(fault_of(error)) from None


def require_private(option: str, address: str, *, allowed: bool) -> None:
    """Raise :class:`StartError` for a port that changes things, unless it is on loopback or ``allowed`` elsewhere."""
    host, _ = _host_and_port(option, address)
    if not allowed and not is_loopback(host):
        raise StartError(
            f"{option} {address} is not loopback: give --tls-cert, --tls-key and --tls-ca (docs/security.md), "
            "or --insecure if everybody in that network may be trusted"
        )


def require_private_http(address: str, *, allowed: bool) -> None:
    """The same for the admin interface, which asks nobody who it is unless it has rights and TLS."""
    host, _ = _host_and_port("--http", address)
    if not allowed and not is_loopback(host):
        raise StartError(
            f"--http {address} is not loopback, and whoever reaches it reads tables, traces and metrics: use "
            "loopback, or give --rights with --http-tls, or --open-http if only operators and Prometheus reach it "
            "(docs/security.md)"
        )


def peer_tls(tls: PemFiles, trust: Trust) -> PeerTls:
    """The server's identity for other ports: as a client of the members' peer ports, as a server of OTLP/HTTP."""
    try:
        return PeerTls(Identity(tls.cert, tls.key, tls.ca, trust))
    except BadTlsFiles as error:
        raise StartError(str(error)) from None


@contextlib.contextmanager
def listening(option: str, address: str) -> Iterator[socket.socket]:
    """A socket that listens at an address while the block runs."""
    host, port = _host_and_port(option, address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise _cannot_listen(option, address, error.strerror or str(error)) from None
    with listener:
        listener.setblocking(False)
        yield listener


@contextlib.asynccontextmanager
async def serving_http(
    app: web.Application,
    listener: socket.socket,
    tls: ssl.SSLContext | None = None,
    *,
    opens: Collection[str] = (),
) -> AsyncIterator[None]:
    """Serve an application on a listening socket while the block runs."""
    async with contextlib.AsyncExitStack() as stack:
        runner = await serve(stack, app, opens=opens)
        await web.SockSite(runner, listener, ssl_context=tls).start()
        yield


def reachable(listened: str, port: int, *, tls: bool = False) -> str:
    """The address to register for a listening address: with the port that was given, and no wildcard host."""
    host, _, _ = listened.rpartition(":")
    return f"{'https://' if tls else ''}{'127.0.0.1' if host in WILDCARDS else host}:{port}"


def _host_and_port(option: str, address: str) -> tuple[str, int]:
    try:
        return split_address(address)
    except ValueError as error:
        raise StartError(f"{option}: {error}; an address is like 127.0.0.1:18000") from None


def _cannot_listen(
    option: str, address: str, reason: str = "address already in use, or not of this machine"
) -> StartError:
    return StartError(f"{option} {address} cannot be listened at ({reason}); stop what uses it, or choose another")
