"""Settings of an injector for all pods: image, etcd, certificates. Pure."""

import re
from dataclasses import dataclass, field, replace
from typing import Self

NATIVE, CLASSIC = "native", "classic"
NATIVE_SINCE = (1, 29)
"""The first Kubernetes version with native sidecars on by default (1.28 has them, off by default)."""


class BadSetting(ValueError):
    """A setting that is wrong; the text says what would be right."""


@dataclass(frozen=True, slots=True)
class PeerCertificates:
    """The source of members' certificates for the peer API.

    Either a Secret in the pod's namespace (``secret``: ``tls.crt``, ``tls.key``, ``ca.crt``, with a name for each
    member in the certificate), or an issuer of cert-manager, whose CSI driver makes one for each pod.
    """

    secret: str = ""
    issuer: str = ""
    issuer_kind: str = "Issuer"
    issuer_group: str = "cert-manager.io"

    @classmethod
    def parse(cls, told: str) -> "PeerCertificates | None":
        """``none``, ``secret:NAME`` or ``csi:ISSUER[:KIND[:GROUP]]``. Raises :class:`BadSetting`."""
        kind, *parts = told.split(":")
        if kind == "none" and not parts:
            return None
        if kind == "secret" and len(parts) == 1 and parts[0]:
            return cls(secret=parts[0])
        if kind == "csi" and 1 <= len(parts) <= 3 and all(parts):
            return cls("", *parts)
        raise BadSetting(f"{told!r}: say none, secret:NAME or csi:ISSUER[:KIND[:GROUP]]")

    def told(self) -> str:
        """The text from which :meth:`parse` makes it."""
        if self.secret:
            return f"secret:{self.secret}"
        return f"csi:{self.issuer}:{self.issuer_kind}:{self.issuer_group}"


@dataclass(frozen=True, slots=True)
class InjectionSettings:
    """The sidecar that all pods get, unless their annotations say otherwise. Secrets are in the pod's namespace.

    ``etcd_tls_secret`` has ``ca.crt`` and, for etcd that wants certificates, ``tls.crt`` and ``tls.key`` (then
    ``etcd_client_certificate``); ``etcd_login_secret`` has ``username`` and ``password``;
    ``session_keys_secret`` has ``keys``. ``form`` is :data:`NATIVE` or :data:`CLASSIC`. ``run_as_user`` is the user id
    in the image, 0 to leave it to the cluster (OpenShift). ``drain_seconds``: how long a handover may take.
    """

    image: str
    etcd: tuple[str, ...]
    form: str = NATIVE
    peer_certificates: PeerCertificates | None = None
    etcd_tls_secret: str = ""
    etcd_client_certificate: bool = False
    etcd_login_secret: str = ""
    session_keys_secret: str = ""
    control_port: int = 18000
    log_level: str = "info"
    drain_seconds: float = 10.0
    run_as_user: int = 65532
    cpu_request: str = "100m"
    memory_request: str = "128Mi"
    memory_limit: str = "512Mi"
    excluded_namespaces: frozenset[str] = field(
        default_factory=lambda: frozenset({"kube-system", "kube-public", "kube-node-lease"})
    )

    def excluding(self, *namespaces: str) -> Self:
        """The same, with more namespaces excluded."""
        return replace(self, excluded_namespaces=self.excluded_namespaces | frozenset(filter(None, namespaces)))


def form_for(version: str) -> str:
    """The form for a Kubernetes version such as ``1.31``, ``v1.28.3`` or ``1.29+``. Raises :class:`BadSetting`."""
    match = re.match(r"v?(\d{1,3})\.(\d{1,3})(?!\d)", version)
    if match is None:
        raise BadSetting(f"{version!r} is no Kubernetes version like 1.31")
    return NATIVE if (int(match[1]), int(match[2])) >= NATIVE_SINCE else CLASSIC
