"""Who may see the console and act on it: names of this server, headers of its pages, and what an act needs.

Whether a caller may see a pool is decided as for the rest of the port (:mod:`understudy.xds.control.rights`).

A page of somebody else can make a browser send requests here, and can make any host name resolve to 127.0.0.1. So a
request must name this server by an IP address, by ``localhost`` or by a name that it was told (``Host``). An act must
also come from a page of this server, as the browser says (``Origin``, ``Sec-Fetch-Site``), with a header that only
scripts can set. Programs that are no browser may act too, with that header.
"""

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from understudy.deploy.common.options import TlsOptions
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.tls.identity import is_loopback
from understudy.xds.control.http_access import rights_of
from understudy.xds.control.rights import Right, may

ACT_HEADER = "X-Understudy-Console"
ACT_VALUE = "act"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class ConsoleSettings(msgspec.Struct, frozen=True):
    """How the console is served.

    Attributes:
        http: the address of the HTTP port.
        hosts: names of this server beside IP addresses, ``localhost`` and the host of ``http``.
        tls: the certificate with which drills ask members and send spans; None: in plain text.
    """

    http: str
    hosts: tuple[str, ...] = ()
    tls: TlsOptions | None = None


class Access:
    """The rules of one control server. ``guarded``: callers of the port need rights."""

    def __init__(self, settings: ConsoleSettings, etcds: Iterable[EtcdSettings], *, guarded: bool = False) -> None:
        host = settings.http.rpartition(":")[0]
        self._hosts = frozenset(name.lower() for name in (*settings.hosts, host, "localhost"))
        self._guarded = guarded
        login = any(etcd.username or etcd.tls is not None for etcd in etcds)
        self._read_only = _why_read_only(host, login=login)

    def knows_host(self, request: web.Request) -> bool:
        """Whether the request names this server."""
        return _host_of(request.host) in self._hosts or _is_address(_host_of(request.host))

    def is_own_page(self, request: web.Request) -> bool:
        """Whether a page of this server sent the request, as far as a browser tells."""
        origin = urlsplit(request.headers.get("Origin", ""))
        return (
            self.knows_host(request)
            and origin.scheme in ("http", "https")
            and origin.netloc.lower() == request.host.lower()
            and request.headers.get("Sec-Fetch-Site", "same-origin") == "same-origin"
        )

    def read_only(self, request: web.Request, tenant: str) -> str:
        """Why the caller may only read pools of ``tenant``; '' if the caller may act."""
        if not self._guarded:
            return self._read_only
        rights = rights_of(request)
        return "" if may(rights, tenant, Right.OPERATOR) else f"{rights.who} has no right 'operator' for this pool"

    def refusal(self, request: web.Request, tenant: str) -> str:
        """Why a request must not change anything in a pool of ``tenant``; '' if it may."""
        if request.headers.get(ACT_HEADER) != ACT_VALUE:
            return f"an act needs the header {ACT_HEADER}: {ACT_VALUE}"
        return self.read_only(request, tenant)


def _why_read_only(host: str, *, login: bool) -> str:
    """Why acts are off without rights; '' if whoever reaches the port can as well write to etcd."""
    if not is_loopback(host):
        return "acts are off, because this port is not on loopback: use the command line, or --rights"
    return "acts are off, because etcd asks for a login: use the command line, or --rights" if login else ""


def secure(response: web.StreamResponse) -> None:
    """Add the headers of every answer, unless it has a policy of its own."""
    response.headers.setdefault("Content-Security-Policy", POLICY)
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers.update(_HEADERS)


def _host_of(netloc: str) -> str:
    try:
        return (urlsplit(f"//{netloc}").hostname or "").lower()
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
