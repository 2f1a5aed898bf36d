"""Certificates for tests, made by openssl as docs/security.md tells: authorities, and members of a pool."""

import subprocess
from pathlib import Path

from understudy.statesync.tls.identity import Trust
from understudy.statesync.tls.peer_tls import Identity

_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


TRUST = Trust("cart")


class Authority:
    """A certificate authority in a directory of its own, for the members of one pool."""

    def __init__(self, directory: Path, pool: str = "cart") -> None:
        self.trust = Trust(pool)
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.ca = directory / "ca.pem"
        self._run(
            "req", "-x509", *_CURVE, "-days", "30", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem"
        )

    def issue(self, name: str, san: str, *, days: int = 30, use: str = "clientAuth,serverAuth") -> Identity:
        """A certificate in ``<name>.pem`` with its key in ``<name>.key``."""
        self._run("req", *_CURVE, "-subj", f"/CN={name}", "-keyout", f"{name}.key.new", "-out", f"{name}.csr")
        (self.directory / f"{name}.ext").write_text(f"subjectAltName={san}\nextendedKeyUsage={use}\n")
        self._run(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-days", str(days), "-extfile", f"{name}.ext", "-out", f"{name}.pem.new"),
        )
        for kind in ("key", "pem"):
            (self.directory / f"{name}.{kind}.new").replace(self.directory / f"{name}.{kind}")
        return Identity(self.directory / f"{name}.pem", self.directory / f"{name}.key", self.ca, self.trust)

    def member(self, name: str) -> Identity:
        """The certificate of a member of the pool."""
        return self.issue(name, f"URI:{self.trust.prefix}member/{name}")

    def control(self, name: str) -> Identity:
        """The certificate of a control server on this machine."""
        return self.issue(name, f"IP:127.0.0.1,URI:{self.trust.prefix}control/{name}")

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.directory, check=True, capture_output=True, timeout=30)
