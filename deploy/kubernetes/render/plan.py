"""The settings of a rendered pool: spec, images, namespaces. Wrong settings raise an error that names them. Pure."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from understudy.deploy.common.errors import DeployError
from understudy.deploy.kubernetes.base.injection_settings import BadSetting, PeerCertificates
from understudy.deploy.kubernetes.base.names import ETCD_PORT
from understudy.statesync.pool.addresses import split_address
from understudy.statesync.pool.spec import PoolSpec

DRAIN_BY_ADMIN = "admin"
ENVOY_IMAGE = "docker.io/envoyproxy/envoy:v1.40.0"
ETCD_IMAGE = "gcr.io/etcd-development/etcd:v3.5.21"
_LABEL = re.compile(r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$")
_POOL_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$")
"""Maximum length of names, so that all names and labels that Kubernetes derives fit, StatefulSet revisions included."""
_IMAGE = re.compile(r"^[a-z0-9][a-z0-9._:/-]*(:[A-Za-z0-9._-]+)?(@sha256:[0-9a-f]{64})?$")


@dataclass(frozen=True, slots=True)
class Images:
    """Image references, with a tag or a digest."""

    control: str
    sidecar: str
    injector: str
    envoy: str = ENVOY_IMAGE
    etcd: str = ETCD_IMAGE


def choose_images(registry: str, version: str, others: Sequence[str] = ()) -> Images:
    """Understudy's images in a registry; ``others`` are ``part=reference``. Raises :class:`DeployError`."""
    parts = {part: f"{registry.rstrip('/')}/understudy-{part}:{version}" for part in ("control", "sidecar", "injector")}
    for other in others:
        part, _, reference = other.partition("=")
        if part not in (*parts, "envoy", "etcd") or not reference:
            raise DeployError(
                f"--image {other!r}: use control=, sidecar=, injector=, envoy= or etcd=, followed by an image reference"
            )
        parts[part] = reference
    return Images(**parts)


@dataclass(frozen=True, slots=True)
class Etcd:
    """An etcd of the operator's own.

    ``login_secret`` has username and password. ``tls_secret`` has ca.crt and, unless a password says who we are, our
    tls.crt and tls.key. Both are in Understudy's namespace.
    """

    endpoints: tuple[str, ...]
    tls_secret: str = ""
    login_secret: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """One pool on one Kubernetes cluster.

    ``etcd`` is None where only the trial's own etcd is to be used. ``app_namespace`` is where the application's pods
    are, ``app_port`` the port at which they serve; ``replicas`` counts control servers, ``front_replicas`` Envoys.
    ``front_drain`` is how those end: by their admin interface (``admin``), or by waiting alone (``sleep``).
    ``example_members`` of the example application are part of the trial. ``certificates`` is the issuer of everybody's,
    None for plain text.
    """

    spec: PoolSpec
    images: Images
    namespace: str = "understudy"
    app_namespace: str = ""
    app_port: int = 8080
    replicas: int = 3
    front_replicas: int = 2
    front_service: str = "ClusterIP"
    front_drain: str = DRAIN_BY_ADMIN
    monitoring_namespace: str = "monitoring"
    cluster_domain: str = "cluster.local"
    etcd: Etcd | None = None
    certificates: PeerCertificates | None = None
    example_members: int = 3

    def __post_init__(self) -> None:
        """Check what Kubernetes would reject, and what would not work. Raises :class:`DeployError`."""
        if not _POOL_LABEL.match(self.pool):
            raise DeployError(
                f"pool {self.pool!r} cannot name Kubernetes Services: use at most 40 of a-z 0-9 -, without dots"
            )
        for option, name in (
            ("--namespace", self.namespace),
            ("--app-namespace", self.application_namespace),
            ("--monitoring-namespace", self.monitoring_namespace),
        ):
            if not _LABEL.match(name):
                raise DeployError(f"{option} {name!r} is not the name of a namespace: use at most 63 of a-z 0-9 -")
        if self.application_namespace == self.namespace:
            raise DeployError(
                f"--app-namespace {self.namespace!r} is the namespace of Understudy itself, in which no pod gets a "
                "sidecar: give the application a namespace of its own"
            )
        for image in (
            self.images.control,
            self.images.sidecar,
            self.images.injector,
            self.images.envoy,
            self.images.etcd,
        ):
            _require_pinned(image)
        if self.front_drain == DRAIN_BY_ADMIN and "distroless" in self.images.envoy:
            raise DeployError(
                f"image {self.images.envoy!r} has no bash, by which front Envoys tell clients to go elsewhere at their "
                "end: use Envoy's ordinary image, or say --front-drain sleep (Kubernetes 1.30 or newer)"
            )

    @property
    def pool(self) -> str:
        """The pool's name."""
        return self.spec.pool

    @property
    def tcp(self) -> bool:
        """Whether the pool is not HTTP."""
        return self.spec.protocol == "tcp"

    @property
    def application_namespace(self) -> str:
        """The namespace of the members: as given, else named after the pool."""
        return self.app_namespace or self.pool


def _require_pinned(image: str) -> None:
    name, _, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    if not _IMAGE.match(image) or tag == "latest" or not (tag or digest):
        raise DeployError(f"image {image!r}: give one with a tag other than latest, or with its digest")


def parse_etcd(text: str, tls_secret: str = "", login_secret: str = "") -> Etcd | None:
    """``--etcd``: ``trial`` (None), or URLs or ``host:port`` with commas between. Raises :class:`DeployError`."""
    if text == "trial":
        if tls_secret or login_secret:
            raise DeployError("--etcd-tls-secret and --etcd-login-secret need an etcd of your own: name it by --etcd")
        return None
    endpoints = tuple(part.strip() for part in text.split(",") if part.strip())
    for endpoint in endpoints:
        host_and_port(endpoint)
        if endpoint.startswith("https://") and not tls_secret:
            raise DeployError(f"--etcd {endpoint}: https needs --etcd-tls-secret, a Secret with ca.crt in it")
        if tls_secret and endpoint.startswith("http://"):
            raise DeployError(f"--etcd {endpoint}: with --etcd-tls-secret the URL must begin with https://")
    if not endpoints:
        raise DeployError("--etcd: use 'trial', or name endpoints such as https://etcd-0.etcd.data.svc:2379")
    return Etcd(endpoints, tls_secret, login_secret)


def parse_certificates(text: str) -> PeerCertificates | None:
    """``--certificates``: ``none`` or ``csi:ISSUER[:KIND[:GROUP]]``. Raises :class:`DeployError`."""
    try:
        found = PeerCertificates.parse(text)
    except BadSetting:
        found = PeerCertificates(secret=text)
    if found is not None and found.secret:
        raise DeployError(
            f"--certificates {text!r}: say none, or csi:ISSUER[:KIND[:GROUP]] for an issuer of cert-manager"
        )
    return found


def host_and_port(endpoint: str) -> tuple[str, int]:
    """Host and port of an etcd endpoint. Raises :class:`DeployError`."""
    bare = endpoint.removeprefix("https://").removeprefix("http://").rstrip("/")
    try:
        return split_address(bare if re.search(r":\d+$", bare) else f"{bare}:{ETCD_PORT}", lowest_port=1)
    except ValueError as error:
        raise DeployError(f"--etcd {endpoint}: {error}") from None


def digest(*parts: str) -> str:
    """A digest of eight hex digits, for names of objects that are replaced instead of changed."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]
