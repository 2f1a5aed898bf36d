"""The settings of rendered pools: specs, images, namespaces. Wrong settings raise an error that names them. Pure."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from understudy.deploy.common.errors import DeployError
from understudy.deploy.kubernetes.base.injection_settings import BadSetting, PeerCertificates
from understudy.deploy.kubernetes.base.names import (
    ALL_POOLS,
    ETCD_PORT,
    FRONT_ADMIN_PORT,
    FRONT_PORT,
    FRONT_STATUS_PORT,
)
from understudy.deploy.local.several_pools import require_apart
from understudy.statesync.pool.addresses import split_address
from understudy.statesync.pool.spec import PoolSpec

APP_PORT = 8080
"""The application's port, unless told otherwise."""
DRAIN_BY_ADMIN = "admin"
RUNBOOK_BASE = "docs/operations.md"
"""Where the alerts' runbooks are by default: a page of the repository, since no site is known to serve it."""
FRONT_TLS_DIRECTORY = "/etc/understudy-front"
"""A Secret of ``front_tls_secrets`` is mounted in front Envoys at this directory and its name."""
ENVOY_IMAGE = "docker.io/envoyproxy/envoy:v1.40.0"
TAKE_OVER = "take-over"
ETCD_IMAGE = "gcr.io/etcd-development/etcd:v3.5.21"
_LABEL = re.compile(r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$")
_POOL_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$")
"""Maximum length of names, so that all names and labels that Kubernetes derives fit, StatefulSet revisions included."""
_IMAGE = re.compile(r"^[a-z0-9][a-z0-9._:/-]*(:[A-Za-z0-9._-]+)?(@sha256:[0-9a-f]{64})?$")


_TARGET = re.compile(r"^(StatefulSet|Deployment)/[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")
_RUNBOOK = re.compile(r"^[A-Za-z0-9/.][\w.~:/?&=%@+-]*$")


@dataclass(frozen=True, slots=True)
class Images:
    """Image references, with a tag or a digest."""

    control: str
    sidecar: str
    injector: str
    envoy: str = ENVOY_IMAGE
    etcd: str = ETCD_IMAGE
    take_over: str = ""


def choose_images(registry: str, version: str, others: Sequence[str] = ()) -> Images:
    """Understudy's images in a registry; ``others`` are ``part=reference``. Raises :class:`DeployError`."""
    parts = {part: f"{registry.rstrip('/')}/understudy-{part}:{version}" for part in ("control", "sidecar", "injector")}
    parts[TAKE_OVER] = f"{registry.rstrip('/')}/understudy-{TAKE_OVER}:{version}"
    for other in others:
        part, _, reference = other.partition("=")
        if part not in (*parts, "envoy", "etcd") or not reference:
            raise DeployError(
                f"--image {other!r}: use control=, sidecar=, injector=, envoy=, etcd= or take-over=, followed by an "
                "image reference"
            )
        parts[part] = reference
    return Images(**{part.replace("-", "_"): reference for part, reference in parts.items()})


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
class Mirror:
    """This site, and the other one with its etcd, of pools that have a mirror on a distant site."""

    site: str
    peer: str
    etcd: Etcd


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool: its spec, the namespace of the application's pods ('': that of the pool's name), and their port.

    ``target`` is the workload that an autoscaler changes, as ``KIND/NAME``; '': the StatefulSet of the pool's name.
    """

    spec: PoolSpec
    app_namespace: str = ""
    app_port: int = APP_PORT
    target: str = ""

    @property
    def name(self) -> str:
        """The pool's name."""
        return self.spec.pool

    @property
    def tcp(self) -> bool:
        """Whether the pool is not HTTP."""
        return self.spec.protocol == "tcp"

    @property
    def namespace(self) -> str:
        """The namespace of the members: as given, else named after the pool."""
        return self.app_namespace or self.name

    @property
    def workload_kind(self) -> str:
        """The kind of the workload that an autoscaler changes."""
        return self.target.partition("/")[0] or "StatefulSet"

    @property
    def workload(self) -> str:
        """The name of that workload."""
        return self.target.partition("/")[2] or self.name


HPA, KEDA = "hpa", "keda"


@dataclass(frozen=True, slots=True)
class Autoscale:
    """How members are scaled: :data:`HPA` or :data:`KEDA`, at most so many, and for KEDA the URL of Prometheus."""

    form: str
    most: int = 10
    prometheus: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """One pool, or several pools on one plane, in one Kubernetes cluster.

    ``shared``: control servers, front Envoys and the operator's pod are for all pools in etcd, and each of ``pools``
    needs a ``front`` in its spec. Otherwise there is one pool, and they are for it alone.

    ``etcd`` is None where only the trial's own etcd is to be used. ``replicas`` counts control servers,
    ``front_replicas`` Envoys. ``front_drain`` is how those end: by their admin interface (``admin``), or by waiting
    alone (``sleep``). ``front_tls_secrets`` are mounted in front Envoys below :data:`FRONT_TLS_DIRECTORY`.
    ``rights_secret`` has rights.yaml for the control servers' HTTP port, and the token with which they, the operator's
    pod and Prometheus read there; '': no rights.
    ``example_members`` of the example application are part of the trial. ``certificates`` is the issuer of
    everybody's, None for plain text. ``mirror``: the other one of two distant sites. ``etcd_sites``: the sites, which
    are zones, of the trial's etcd. Of two, the first one has two members. Of three, each has one, and the third is the
    :attr:`witness`. Empty: members are anywhere.
    """

    pools: tuple[Pool, ...]
    images: Images
    shared: bool = False
    namespace: str = "understudy"
    replicas: int = 3
    front_replicas: int = 2
    front_service: str = "ClusterIP"
    front_drain: str = DRAIN_BY_ADMIN
    front_tls_secrets: tuple[str, ...] = ()
    rights_secret: str = ""
    monitoring_namespace: str = "monitoring"
    runbook_base: str = RUNBOOK_BASE
    cluster_domain: str = "cluster.local"
    etcd: Etcd | None = None
    certificates: PeerCertificates | None = None
    example_members: int = 3
    autoscale: Autoscale | None = None
    mirror: Mirror | None = None
    etcd_sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check what Kubernetes would reject, and what would not work. Raises :class:`DeployError`."""
        for pool in self.pools:
            _require_fit(pool, self.namespace)
            if self.autoscale is not None:
                _require_scalable(pool, self.autoscale.most)
        for option, name in (
            ("--namespace", self.namespace),
            ("--monitoring-namespace", self.monitoring_namespace),
        ):
            _require_namespace(option, name)
        if self.shared:
            _require_fronts([pool.spec for pool in self.pools])
        elif len(self.pools) != 1:
            raise DeployError("one pool for each plane that is not shared")
        if not _RUNBOOK.match(self.runbook_base):
            raise DeployError(
                f"--runbook-base {self.runbook_base!r} is no address of a page: use one such as "
                "https://docs.example/understudy/operations/, without spaces and #"
            )
        for image in (
            self.images.control,
            self.images.sidecar,
            self.images.injector,
            self.images.envoy,
            self.images.etcd,
            *((self.images.take_over,) if self.without_third else ()),
        ):
            _require_pinned(image)
        if self.front_drain == DRAIN_BY_ADMIN and "distroless" in self.images.envoy:
            raise DeployError(
                f"image {self.images.envoy!r} has no bash, by which front Envoys tell clients to go elsewhere at their "
                "end: use Envoy's ordinary image, or say --front-drain sleep (Kubernetes 1.30 or newer)"
            )

    @property
    def instance(self) -> str:
        """The pool that control servers, front Envoys and the operator's pod are for; :data:`ALL_POOLS` for all."""
        return ALL_POOLS if self.shared else self.pools[0].name

    @property
    def tcp(self) -> bool:
        """Whether a pool is not HTTP."""
        return any(pool.tcp for pool in self.pools)

    @property
    def witness(self) -> str:
        """The zone that has one member of etcd and nothing else; '' for none."""
        return self.etcd_sites[2] if len(self.etcd_sites) == 3 else ""

    @property
    def without_third(self) -> bool:
        """Whether etcd is on two sites without a third."""
        return len(self.etcd_sites) == 2

    @property
    def app_namespaces(self) -> tuple[str, ...]:
        """The namespaces of all members, each once."""
        return tuple(dict.fromkeys(pool.namespace for pool in self.pools))


def client_ports(plan: Plan) -> tuple[int, ...]:
    """The ports of front Envoys for clients, in ascending order."""
    if not plan.shared:
        return (FRONT_PORT,)
    return tuple(sorted({pool.spec.front.port for pool in plan.pools if pool.spec.front is not None}))


def _require_fit(pool: Pool, namespace: str) -> None:
    if not _POOL_LABEL.match(pool.name):
        raise DeployError(
            f"pool {pool.name!r} cannot name Kubernetes Services: use at most 40 of a-z 0-9 -, without dots"
        )
    _require_namespace("--app-namespace", pool.namespace)
    if pool.namespace == namespace:
        raise DeployError(
            f"--app-namespace {namespace!r} is the namespace of Understudy itself, in which no pod gets a "
            "sidecar: give the application a namespace of its own"
        )


def _require_scalable(pool: Pool, most: int) -> None:
    if most < pool.spec.copies:
        raise DeployError(
            f"--autoscale-max {most} is less than the {pool.spec.copies} copies of pool {pool.name!r}: give more"
        )
    if pool.target and not _TARGET.match(pool.target):
        raise DeployError(
            f"--autoscale-target {pool.target!r} of pool {pool.name!r}: use StatefulSet/NAME or Deployment/NAME"
        )


def _require_namespace(option: str, name: str) -> None:
    if not _LABEL.match(name):
        raise DeployError(f"{option} {name!r} is not the name of a namespace: use at most 63 of a-z 0-9 -")


def _require_fronts(specs: Sequence[PoolSpec]) -> None:
    """Raise :class:`DeployError` if these pools cannot be behind the same front Envoys."""
    for spec in specs:
        if spec.front is None:
            raise DeployError(
                f"pool {spec.pool!r} has no front, so front Envoys of several pools do not serve it: "
                "write front: {port: 8080} into its spec"
            )
        if spec.front.port in (FRONT_STATUS_PORT, FRONT_ADMIN_PORT):
            raise DeployError(
                f"pool {spec.pool!r}: front.port {spec.front.port} is one of Envoy's own ports; choose another"
            )
    require_apart(specs)


def _require_pinned(image: str) -> None:
    name, _, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    if not _IMAGE.match(image) or tag == "latest" or not (tag or digest):
        raise DeployError(f"image {image!r}: give one with a tag other than latest, or with its digest")


def parse_etcd(text: str, tls_secret: str = "", login_secret: str = "", option: str = "--etcd") -> Etcd | None:
    """``--etcd``: ``trial`` (None), or URLs or ``host:port`` with commas between. Raises :class:`DeployError`."""
    if text == "trial":
        if tls_secret or login_secret:
            raise DeployError("--etcd-tls-secret and --etcd-login-secret need an etcd of your own: name it by --etcd")
        return None
    return _own_etcd(text, tls_secret, login_secret, option)


def _own_etcd(text: str, tls_secret: str, login_secret: str, option: str) -> Etcd:
    endpoints = tuple(part.strip() for part in text.split(",") if part.strip())
    for endpoint in endpoints:
        host_and_port(endpoint, option)
        if endpoint.startswith("https://") and not tls_secret:
            raise DeployError(f"{option} {endpoint}: https needs {option}-tls-secret, a Secret with ca.crt in it")
        if tls_secret and endpoint.startswith("http://"):
            raise DeployError(f"{option} {endpoint}: with {option}-tls-secret the URL must begin with https://")
    if not endpoints:
        trial = "use 'trial', or " if option == "--etcd" else ""
        raise DeployError(f"{option}: {trial}name endpoints such as https://etcd-0.etcd.data.svc:2379")
    return Etcd(endpoints, tls_secret, login_secret)


def parse_mirror(site: str, peer: str, tls_secret: str = "") -> Mirror | None:
    """``--mirror-site`` and ``--mirror-peer SITE=URL,...``; None without both. Raises :class:`DeployError`."""
    if not (site or peer or tls_secret):
        return None
    name, _, endpoints = peer.partition("=")
    if not (site and name and endpoints):
        raise DeployError("--mirror-site and --mirror-peer SITE=URL,... go together: give both")
    for one in (site, name):
        if not _LABEL.match(one):
            raise DeployError(f"site {one!r}: use a name of at most 63 of a-z 0-9 -")
    if site == name:
        raise DeployError(f"--mirror-peer {name}: it is the other site, and not --mirror-site")
    return Mirror(site, name, _own_etcd(endpoints, tls_secret, "", "--mirror-peer"))


def parse_etcd_sites(text: str, etcd: Etcd | None) -> tuple[str, ...]:
    """``--etcd-sites LARGER,SMALLER`` or ``SITE,SITE,WITNESS``; empty without it. Raises :class:`DeployError`."""
    sites = tuple(part.strip() for part in text.split(",") if part.strip())
    if not sites:
        return ()
    if etcd is not None:
        raise DeployError("--etcd-sites places the members of '--etcd trial': an etcd of yours is where you put it")
    if len(sites) not in (2, 3) or len(set(sites)) != len(sites):
        raise DeployError(
            "--etcd-sites names two zones, such as east,west, or two and a witness, such as east,west,north, "
            f"each once, and not {text!r}"
        )
    for site in sites:
        if not _POOL_LABEL.match(site):
            raise DeployError(f"--etcd-sites {site!r}: use at most 40 of a-z 0-9 -")
    return sites


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


def make_pools(
    specs: Sequence[PoolSpec], namespaces: Sequence[str], ports: Sequence[str], targets: Sequence[str] = ()
) -> tuple[Pool, ...]:
    """The pools, as ``--app-namespace``, ``--app-port`` and ``--autoscale-target`` say: ``[POOL=]VALUE``.

    Raises :class:`DeployError` for a pool that is not among ``specs``, and for a port that is none.
    """
    names = [spec.pool for spec in specs]
    namespace, port = _by_pool("--app-namespace", namespaces, names), _by_pool("--app-port", ports, names)
    target = _by_pool("--autoscale-target", targets, names)
    for pool, number in port.items():
        if not (number.isdecimal() and 1 <= int(number) <= 65535):
            raise DeployError(f"--app-port {number!r} of pool {pool!r} is not a port: use 1 to 65535")
    return tuple(
        Pool(
            spec,
            namespace.get(spec.pool, ""),
            int(port.get(spec.pool, APP_PORT)),
            target.get(spec.pool, ""),
        )
        for spec in specs
    )


def _by_pool(option: str, values: Sequence[str], pools: Sequence[str]) -> dict[str, str]:
    """The value for each pool: that with its name, else the one without a name."""
    found: dict[str, str] = {}
    for value in sorted(values, key=lambda one: "=" in one):
        pool, given, rest = value.partition("=")
        if not given:
            found |= dict.fromkeys(pools, value)
        elif pool in pools:
            found[pool] = rest
        else:
            raise DeployError(f"{option} {value!r}: no -f has pool {pool!r}; the pools are {', '.join(pools)}")
    return found


def host_and_port(endpoint: str, option: str = "--etcd") -> tuple[str, int]:
    """Host and port of an etcd endpoint. Raises :class:`DeployError`."""
    bare = endpoint.removeprefix("https://").removeprefix("http://").rstrip("/")
    try:
        return split_address(bare if re.search(r":\d+$", bare) else f"{bare}:{ETCD_PORT}", lowest_port=1)
    except ValueError as error:
        raise DeployError(f"{option} {endpoint}: {error}") from None


def digest(*parts: str) -> str:
    """A digest of eight hex digits, for names of objects that are replaced instead of changed."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]
