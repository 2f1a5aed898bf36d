"""mTLS between sidecars, and from control servers to sidecars: contexts that follow their files and check names.

Both sides show a certificate of the pool's authority. The side that connects continues only if the other certificate
speaks for the member that it wants to reach. The peer API decides which clients it accepts. To renew certificates,
replace the files. Each handshake checks whether they changed (modification time, size, inode), and uses the new ones.
If new files cannot be used, the last good ones stay in use. Open connections are not affected.
"""

import logging
import ssl
from collections.abc import Callable, Iterator

from understudy.statesync.tls.identity import MEMBER, Trust, names_in
from understudy.statesync.tls.pem_files import PemFiles
from understudy.statesync.tls.secret_files import fault_of, require_secret

logger = logging.getLogger(__name__)

_Stamp = tuple[tuple[int, int, int], ...]


class BadTlsFiles(Exception):
    """Certificate, key or authority cannot be used; the text names the files and the fault, in one line."""


class WrongName(ssl.SSLCertVerificationError):
    """A certificate of the right authority for another name. ``names`` are the names for which it speaks."""

    def __init__(self, member: str, names: tuple[str, ...]) -> None:
        super().__init__(f"the certificate is for {', '.join(names) or 'nobody'}, not for member {member}")
        self.names = names


class Identity(PemFiles, frozen=True):
    """The PEM files of a process that takes part in mTLS. ``trust`` says which names in other certificates count."""

    trust: Trust

    def stamp(self) -> _Stamp:
        """A value that changes when a file is replaced. Raises ``OSError``."""
        found = [path.stat() for path in (*self.pair, self.ca)]
        return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in found)

    def load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        """Make ``context`` show our certificate, and require one of the authority. Raises ``OSError``."""
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        cert, key = self.pair
        require_secret(key)
        context.load_cert_chain(cert, key)
        context.load_verify_locations(self.ca)
        return context


class PeerTls:
    """The TLS contexts of one process."""

    def __init__(self, identity: Identity) -> None:
        """Raises :class:`BadTlsFiles` unless the files can be used now."""
        self._identity = identity
        self._clients: dict[str, _Following] = {}
        try:
            identity.stamp()
            identity.load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        except OSError as error:
            raise BadTlsFiles(_fault(identity, error)) from None

    def server(self, *, certificate_wanted: bool = True) -> ssl.SSLContext:
        """For listening: every client must show a certificate of the authority.

        Without ``certificate_wanted`` it may come without one; one that it shows must be of the authority all the same.
        """

        def make() -> ssl.SSLContext:
            context = self._identity.load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
            context.verify_mode = ssl.CERT_REQUIRED if certificate_wanted else ssl.CERT_OPTIONAL
            context.sslobject_class = _Outspoken
            return context

        return _following(ssl.PROTOCOL_TLS_SERVER, self._identity, make)

    def client(self, member: str) -> ssl.SSLContext:
        """The context for calls to ``member`` only. It is the same object each time, so connections are reused."""
        context = self._clients.get(member)
        if context is None:
            checked = type("_Checked", (_NamedPeer,), {"member": member, "trust": self._identity.trust})

            def make() -> ssl.SSLContext:
                fresh = self._identity.load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
                fresh.sslobject_class = checked
                return fresh

            context = self._clients[member] = _following(ssl.PROTOCOL_TLS_CLIENT, self._identity, make)
        return context


def trust_fault(error: BaseException) -> ssl.SSLError | None:
    """The TLS fault of either side that is somewhere in ``error``; None if the error is another one.

    Such a fault does not mean that the member is dead: a process is there, and the certificates are wrong. A peer that
    speaks no TLS, closes the connection or does not answer has no such fault.
    """
    for one in _within(error, set()):
        refused = isinstance(one, ssl.SSLError) and "ALERT" in str(getattr(one, "reason", None) or "")
        if isinstance(one, ssl.SSLCertVerificationError) and not hasattr(one, "certificate_error"):
            return one
        if refused and isinstance(one, ssl.SSLError):
            return one
    return None


def _within(error: BaseException | None, seen: set[int]) -> Iterator[BaseException]:
    """The error, and those that caused it."""
    if not isinstance(error, BaseException) or id(error) in seen:
        return
    seen.add(id(error))
    yield error
    for inner in (getattr(error, "certificate_error", None), getattr(error, "os_error", None), error.__cause__):
        yield from _within(inner, seen)
    yield from _within(error.__context__, seen)


class _NamedPeer(ssl.SSLObject):
    """The client's side: it ends the handshake unless the server is ``member``, of the pool in ``trust``."""

    member = ""
    trust = Trust("")

    def do_handshake(self) -> None:
        super().do_handshake()
        names = names_in(self.getpeercert())
        if not self.trust.speaks_for(names, MEMBER, self.member):
            raise WrongName(self.member, names)


class _Outspoken(ssl.SSLObject):
    """The server's side: it tells the client why it is refused.

    asyncio closes the connection on a failed handshake and drops the alert that OpenSSL wants to send. So this object
    first reports the failure as "more input needed", which sends the alert. At the next call, or at the time limit on
    handshakes, it reports the real failure.
    """

    _failure: ssl.SSLError | None = None
    outgoing: ssl.MemoryBIO

    def do_handshake(self) -> None:
        if self._failure is not None:
            raise self._failure
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            if not self.outgoing.pending:
                raise
            self._failure = error
            raise ssl.SSLWantReadError from None


class _Following(ssl.SSLContext):
    """A context whose connections use what the files hold when they begin."""

    _identity: Identity
    _make: Callable[[], ssl.SSLContext]
    _current: ssl.SSLContext
    _stamp: _Stamp

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        self._follow()
        wrapped = self._current.wrap_bio(incoming, outgoing, server_side, server_hostname, session)
        if isinstance(wrapped, _Outspoken):
            wrapped.outgoing = outgoing
        return wrapped

    def _follow(self) -> None:
        try:
            stamp = self._identity.stamp()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._current = self._make()
        except OSError as error:
            logger.warning("the certificates in use stay: %s", _fault(self._identity, error))
        else:
            logger.info("certificates renewed from %s", self._identity.cert)


def _following(protocol: int, identity: Identity, make: Callable[[], ssl.SSLContext]) -> _Following:
    context = _Following(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context._identity, context._make = identity, make  # noqa: SLF001 - SSLContext allows no constructor of ours
    context._stamp, context._current = identity.stamp(), make()  # noqa: SLF001 - as above
    return context


def _fault(identity: Identity, error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (
            f"{identity.cert}, {identity.key} and {identity.ca} cannot be used together as certificate, "
            f"key and authority (PEM): {error.reason or error}"
        )
    return fault_of(error)
