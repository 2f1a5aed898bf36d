"""The PEM files with which a process proves who it is, and checks the certificates of others."""

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from understudy.statesync.tls.secret_files import read_secret

if TYPE_CHECKING:
    import grpc


class PemFiles(msgspec.Struct, frozen=True):
    """Our certificate chain and its key, and the CA of the others' certificates.

    ``cert`` and ``key`` are None for a client that shows no certificate, such as to an etcd that asks for none.
    """

    cert: Path | None
    key: Path | None
    ca: Path

    @property
    def pair(self) -> tuple[Path, Path]:
        """Our certificate chain and its key. Raises ``ValueError`` if one is missing."""
        if self.cert is None or self.key is None:
            raise ValueError("mTLS needs a certificate and its key")
        return self.cert, self.key

    def channel_credentials(self) -> "grpc.ChannelCredentials":
        """Credentials of a gRPC client; reads the files now.

        Raises:
            OSError: a file cannot be read, or others can read the key.
        """
        import grpc  # most users of this module speak no gRPC

        return grpc.ssl_channel_credentials(
            self.ca.read_bytes(),
            read_secret(self.key) if self.key else None,
            self.cert.read_bytes() if self.cert else None,
        )
