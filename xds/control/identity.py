"""Which client may speak for which node or member over mTLS: its certificate must be for that name.

Also makes the server's credentials, which use renewed certificate files without a restart. Who issues and signs the
certificates is left to the operator (docs/security.md).
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping

import grpc
import msgspec

from understudy.statesync.pool.front_node import pools_of_front
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


Identify = Callable[[Node, AuthContext], str | None]


def refuse_several(pool: str, identify: Identify | None, node: Node, auth_context: AuthContext) -> str | None:
    """Why a control server that serves ``pool`` to this client refuses it: it wants more pools, or by ``identify``."""
    if pools_of_front(node.cluster) is not None:
        return (
            f"this control server serves pool {pool} alone, and a front Envoy of several pools needs one with "
            "--all-pools, or with --pool for each of its pools"
        )
    return identify(node, auth_context) if identify else None


def refuse_front(domain: str, pools: Collection[str], node: Node, auth_context: AuthContext) -> str | None:
    """Why a client with this certificate must not be the front Envoy ``node`` of several pools, or None if it may.

    It may with the id of a front, or with the ids of a node of each of the ``pools``. Without ``pools``, for all that
    there are, only the id of a front counts.
    """
    names = _names(auth_context)
    if not node.id:
        return "over mTLS a node must give its name, so that it can be compared with the certificate"
    if front_id(domain, node.id) in names:
        return None
    if pools and all(Trust(pool, domain, spiffe_only=True).speaks_for(names, NODE, node.id) for pool in pools):
        return None
    return (
        f"the certificate is for {', '.join(names) or 'no name'}, not for a front Envoy of several pools "
        f"({front_id(domain, node.id)})"
    )


def front_id(domain: str, name: str) -> str:
    """The SPIFFE id of a front Envoy of several pools. It has a part less than the ids of a pool."""
    return f"spiffe://{domain}/fronts/{name}"


def _names(auth_context: AuthContext) -> list[str]:
    """The subject alternative names of a client's certificate."""
    return [one.decode(errors="replace") for one in auth_context.get(_SAN, ())]


def _refuse(trust: Trust, kind: str, name: str, auth_context: AuthContext) -> str | None:
    if not name:
        return f"over mTLS a {kind} must give its name, so that it can be compared with the certificate"
    names = _names(auth_context)
    if not names:
        return "the client shows no certificate with a subject alternative name"
    if trust.speaks_for(names, kind, name):
        return None
    return f"the certificate is for {', '.join(names)}, not for {kind} {name} ({trust.prefix}{kind}/{name})"
