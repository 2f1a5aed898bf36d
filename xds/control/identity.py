"""Which client may speak for which node or member over mTLS: its certificate must be for that name.

Also makes the server's credentials, which use renewed certificate files without a restart. Who issues and signs the
certificates is left to the operator (docs/security.md).
"""

import logging
from collections.abc import Iterable, Mapping

import grpc
import msgspec

from understudy.statesync.tls.identity import MEMBER, Trust
from understudy.statesync.tls.pem_files import PemFiles
from understudy.statesync.tls.secret_files import read_secret
from understudy.xds.server.wire import Node

logger = logging.getLogger(__name__)

_SAN = "x509_subject_alternative_name"

AuthContext = Mapping[str, Iterable[bytes]]


def server_credentials(files: PemFiles) -> grpc.ServerCredentials:
    """Credentials that demand a client certificate and read the files again at each handshake.

    Raises ``OSError`` when a file cannot be read now, or others can read the key. Files that cannot be read later
    leave the last good ones in use.
    """
    last_good = _read(files)

    def fetch() -> grpc.ServerCertificateConfiguration:
        nonlocal last_good
        try:
            last_good = _read(files)
        except OSError as fault:
            logger.warning("the certificate files cannot be read, and the old certificates stay in use: %s", fault)
        return last_good

    return grpc.dynamic_ssl_server_credentials(last_good, fetch, require_client_authentication=True)


def _read(files: PemFiles) -> grpc.ServerCertificateConfiguration:
    cert, key = files.pair
    return grpc.ssl_server_certificate_configuration([(read_secret(key), cert.read_bytes())], files.ca.read_bytes())


NODE = "node"


class Clients(msgspec.Struct, frozen=True):
    """Decides for which names clients may speak, by SPIFFE ids of ``trust`` (``understudy.statesync.tls.identity``)."""

    trust: Trust

    def refuse_node(self, node: Node, auth_context: AuthContext) -> str | None:
        """Why a client with this certificate must not speak for ``node``, or None if it may.

        For ``AdsServer(identify=...)``.
        """
        return _refuse(self.trust, NODE, node.id, auth_context)

    def refuse_member(self, member: str, auth_context: AuthContext) -> str | None:
        """Like :meth:`refuse_node` for the heartbeats of a member."""
        return _refuse(self.trust, MEMBER, member, auth_context)


def _refuse(trust: Trust, kind: str, name: str, auth_context: AuthContext) -> str | None:
    if not name:
        return f"over mTLS a {kind} must give its name, so that it can be compared with the certificate"
    names = [one.decode(errors="replace") for one in auth_context.get(_SAN, ())]
    if not names:
        return "the client shows no certificate with a subject alternative name"
    if trust.speaks_for(names, kind, name):
        return None
    return f"the certificate is for {', '.join(names)}, not for {kind} {name} ({trust.prefix}{kind}/{name})"
