"""The webhook's TLS: new certificates are loaded while connections stay open.

New handshakes use the newest pair. Certificate and key are checked together before they are used; if they do not fit,
the last good pair stays. Keys that the injector makes itself are never written to disk.
"""

import asyncio
import logging
import os
import ssl
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from understudy.deploy.common.errors import DeployError
from understudy.statesync.tls.secret_files import TooOpen, fault_of, read_secret

logger = logging.getLogger(__name__)

CERTIFICATE, KEY = "tls.crt", "tls.key"
LOOK = 1.0
"""Seconds between two checks of the files."""
_Stamp = tuple[tuple[int, int, int], ...]


class BadPair(ValueError):
    """Certificate and key do not fit together; the text says why."""


class ServingCertificate:
    """The webhook's TLS context. It has no certificate until :meth:`take` was called."""

    def __init__(self, on_change: Callable[[bytes], None] = lambda _: None) -> None:
        """``on_change`` is called with every certificate (PEM) that is loaded."""
        self.context = _context()
        self.current: tuple[bytes, bytes] | None = None
        self._on_change = on_change

    def take(self, certificate: bytes, key: bytes) -> bool:
        """Use this pair (PEM) from now on. False if it is in use already. Raises :class:`BadPair`."""
        if (certificate, key) == self.current:
            return False
        with _as_file(certificate + b"\n" + key) as path:
            try:
                # Loading a pair that does not fit would break the serving context, so another context tries it first.
                _context().load_cert_chain(path)
                self.context.load_cert_chain(path)
            except OSError as error:
                raise BadPair(_why(error)) from None
        self.current = certificate, key
        self._on_change(certificate)
        return True


class CertificateFiles:
    """``tls.crt`` and ``tls.key`` in a directory, as cert-manager and the kubelet keep them."""

    def __init__(self, directory: Path, serving: ServingCertificate) -> None:
        """Raises :class:`DeployError` if they cannot be used now."""
        self._files = directory / CERTIFICATE, directory / KEY
        self._serving = serving
        self._stamp: _Stamp = ()
        try:
            self._take()
        except TooOpen as error:
            raise DeployError(fault_of(error)) from None
        except (OSError, BadPair) as error:
            raise DeployError(f"{directory}: {CERTIFICATE} and {KEY} cannot be used: {_why(error)}") from None

    async def follow(self) -> None:
        """Load new files until cancelled."""
        while True:
            await asyncio.sleep(LOOK)
            self.look()

    def look(self) -> None:
        """Load the files if they are new and usable."""
        try:
            if self._take():
                logger.info("certificate loaded from %s", self._files[0])
        except (OSError, BadPair) as error:
            logger.warning("new certificate not loaded, the old one stays in use: %s: %s", self._files[0], _why(error))

    def _take(self) -> bool:
        stamp = tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in map(Path.stat, self._files))
        if stamp == self._stamp:
            return False
        certificate, key = self._files
        taken = self._serving.take(certificate.read_bytes(), read_secret(key))
        self._stamp = stamp
        return taken


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """A temporary path to ``content``; in memory if the system supports it (Linux)."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("certificate")
        try:
            os.write(number, content)
            yield f"/proc/self/fd/{number}"
        finally:
            os.close(number)
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        yield file.name


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or getattr(error, "reason", None) or error)
