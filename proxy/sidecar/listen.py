"""Where a sidecar listens: TCP or a Unix socket, and what must protect it.

A sidecar does not start with an unprotected port that other machines can reach, except with ``--insecure``. A Unix
socket has its permissions before anybody can connect, and replaces only a socket that nobody serves.
:mod:`understudy.statesync.http.http_port` takes requests in.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from understudy.proxy.sessions.admission import SessionTokens
from understudy.statesync.pool.addresses import split_address
from understudy.statesync.sessions.session_crypto import BadKeyFile, SessionCrypto, load_session_crypto
from understudy.statesync.tls.followed_file import BadFile
from understudy.statesync.tls.identity import Trust, is_loopback
from understudy.statesync.tls.peer_tls import BadTlsFiles, Identity, PeerTls
from understudy.statesync.tls.pem_files import PemFiles

UNIX = "unix:"
HANDSHAKE_SECONDS = 5.0


class CannotStart(Exception):
    """The sidecar cannot start; the text is one line for the operator."""


@dataclass(frozen=True, slots=True)
class SidecarSecurity:
    """What protects a sidecar: mTLS at the peer API, tokens at the session API (each may be missing), encryption."""

    peers: PeerTls | None
    tokens: SessionTokens | None
    codec: SessionCrypto


def protection(
    *,
    peer: str,
    tls: PemFiles | None,
    session_api: str,
    redis: str,
    token_file: Path | None,
    key_file: Path | None,
    insecure: bool,
    trust: Trust,
) -> SidecarSecurity:
    """Read certificates, tokens and keys, and check that they are there where other machines reach a port.

    Raises:
        CannotStart: a file cannot be used, or a port would be open to the network and ``insecure`` does not ask for it.
    """
    remedy = "give --tls-cert, --tls-key and --tls-ca"
    refuse_open("--peer", peer, protected=tls is not None, insecure=insecure, remedy=remedy)
    remedy = "use a Unix socket, or give --session-token-file"
    for option, address in (("--session-api", session_api), ("--redis", redis)):
        if address:
            refuse_open(option, address, protected=token_file is not None, insecure=insecure, remedy=remedy)
    try:
        return SidecarSecurity(
            PeerTls(Identity(tls.cert, tls.key, tls.ca, trust)) if tls else None,
            SessionTokens(token_file) if token_file else None,
            load_session_crypto(key_file),
        )
    except (BadTlsFiles, BadFile, BadKeyFile) as error:
        raise CannotStart(str(error)) from None


class TlsSite(web.BaseSite):
    """Like ``web.TCPSite``, with a time limit for handshakes that fits a local network.

    ``protocols`` may wrap what each connection to the server gets.
    """

    def __init__(
        self,
        runner: web.AppRunner,
        host: str,
        port: int,
        tls: ssl.SSLContext,
        protocols: Callable[[web.Server], Callable[[], asyncio.Protocol]] = lambda server: server,
    ) -> None:
        super().__init__(runner, ssl_context=tls)
        self._host, self._port = host, port
        self._protocols = protocols

    @property
    def name(self) -> str:
        """Where it is, as a URL."""
        return f"https://{self._host}:{self._port}"

    async def start(self) -> None:
        """Listen."""
        await super().start()
        server = self._runner.server
        if server is None:
            raise RuntimeError("the runner is not set up")
        self._server = await asyncio.get_running_loop().create_server(
            self._protocols(server),
            self._host,
            self._port,
            ssl=self._ssl_context,
            backlog=self._backlog,
            ssl_handshake_timeout=HANDSHAKE_SECONDS,
        )


def refuse_open(option: str, address: str, *, protected: bool, insecure: bool, remedy: str) -> None:
    """Raise :class:`CannotStart` if other machines reach an address that nothing protects."""
    if protected or insecure or address.startswith(UNIX) or is_loopback(address.rpartition(":")[0]):
        return
    raise CannotStart(
        f"{option} {address} is not loopback: {remedy} (docs/security.md), "
        "or --insecure if you trust everybody in that network"
    )


async def listen(
    runner: web.AppRunner, address: str, what: str, *, tls: ssl.SSLContext | None = None, mode: int = 0o660
) -> None:
    """Listen at ``host:port`` (over TLS if given) or ``unix:/path`` (with permissions ``mode``).

    Raises:
        CannotStart: ``what`` cannot listen there.
    """
    try:
        if address.startswith(UNIX):
            await web.SockSite(runner, _unix_socket(address.removeprefix(UNIX), mode)).start()
        else:
            host, port = split_address(address)
            await (TlsSite(runner, host, port, tls) if tls else web.TCPSite(runner, host, port)).start()
    except (OSError, ValueError) as error:
        raise CannotStart(f"{what} cannot listen on {address}: {error}; free the address or choose another") from None


def bound_socket(address: str, what: str, *, mode: int = 0o660) -> socket.socket:
    """A socket bound to ``host:port`` or ``unix:/path``. Raises :class:`CannotStart`; ``what`` is for its text."""
    try:
        if address.startswith(UNIX):
            return _unix_socket(address.removeprefix(UNIX), mode)
        return socket.create_server(split_address(address))
    except (OSError, ValueError) as error:
        raise CannotStart(f"{what} cannot listen on {address}: {error}; free the address or choose another") from None


def _unix_socket(path: str, mode: int) -> socket.socket:
    """A bound socket whose file never has more permissions than ``mode``; a socket that somebody serves stays."""
    _remove_dead_socket(path)
    bound = socket.socket(socket.AF_UNIX)
    try:
        with contextlib.suppress(OSError):  # Linux makes the file with the socket's own mode, less the umask
            os.fchmod(bound.fileno(), mode)
        bound.bind(path)
        Path(path).chmod(mode)
    except OSError:
        bound.close()
        raise
    bound.setblocking(False)
    return bound


def _remove_dead_socket(path: str) -> None:
    """Remove a socket that a process which is gone has left; raises ``OSError`` for a file of another kind."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(f"{path} is no socket, and is left as it is")
    with socket.socket(socket.AF_UNIX) as trial:
        trial.settimeout(1.0)
        try:
            trial.connect(path)
        except ConnectionRefusedError:  # no other error proves that nobody serves it
            Path(path).unlink(missing_ok=True)
        except OSError:
            return
