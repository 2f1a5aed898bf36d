"""The settings for an Istio mesh. Wrong settings raise an error that names them. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from understudy.deploy.common.errors import DeployError
from understudy.deploy.kubernetes.base.names import control_name
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Mesh

OLDEST = (1, 29)
"""The first Istio whose proxy has all that our routes use: ``use_hash_policy`` of weighted clusters came with Envoy
1.36, matching cookies with Envoy 1.37. An older proxy would drop both without a word and scatter the sessions."""

GATEWAY_NAMESPACE = "istio-system"
GATEWAY_LABELS: Mapping[str, str] = {"istio": "ingressgateway"}
"""The namespace and label of the gateway that Istio's own installation creates."""

_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
_LABEL_VALUE = re.compile(r"^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")
_LABEL_KEY = re.compile(r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")
_DOMAIN = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
_VERSION = re.compile(r"^v?(\d+)\.(\d+)(?:[.-].*)?$")


@dataclass(frozen=True, slots=True)
class MeshPlan:
    """One pool and the proxies that are to route by its slots.

    ``mode`` is ``gateway`` (proxies that clients come in at) or ``client`` (sidecars of pods that call the pool).
    ``namespace`` is that of the control servers, ``proxy_namespace`` and ``selector`` (labels) say which pods' proxies.
    ``port`` is the gateway's: its Service's port; ``listener_port`` is what the gateway's pods listen at for it. With a
    ``credential``, the name of a Secret, the gateway ends TLS for ``host``, and other hosts may share the port.
    ``app_port`` is where members serve. ``xds_tls`` is ``mesh`` or ``none``.
    """

    spec: PoolSpec
    mode: str
    istio: tuple[int, int]
    namespace: str = "understudy"
    proxy_namespace: str = GATEWAY_NAMESPACE
    selector: Mapping[str, str] = field(default_factory=lambda: GATEWAY_LABELS)
    port: int = 8080
    listener_port: int = 0
    host: str = "*"
    credential: str = ""
    app_port: int = 8080
    xds_tls: str = "mesh"
    trust_domain: str = "cluster.local"
    cluster_domain: str = "cluster.local"

    def __post_init__(self) -> None:
        """Check what would not work. Raises :class:`DeployError`."""
        if self.istio < OLDEST:
            raise DeployError(
                f"--istio-version {_written(self.istio)}: its proxy lacks what the routes use (clusters picked by "
                f"hash, cookies matched: Envoy 1.37, Istio {_written(OLDEST)}) and would scatter sessions unnoticed. "
                "Upgrade Istio, or put front Envoys of your own before the members: understudy render kubernetes"
            )
        if not _LABEL.match(self.pool):
            raise DeployError(f"pool {self.pool!r} cannot be part of names on Kubernetes: use a-z 0-9 -, without dots")
        self._require_pods()
        self._require_host()
        for option, name in (("--trust-domain", self.trust_domain), ("--cluster-domain", self.cluster_domain)):
            if not _DOMAIN.match(name):
                raise DeployError(f"{option} {name!r} is not a domain")
        self._place()

    def _require_host(self) -> None:
        if (self.credential or self.host != "*") and self.mode == "client":
            raise DeployError(
                "--host and --credential are for gateways: sidecars listen at the port of the spec's mesh"
            )
        if self.credential and not _DOMAIN.match(self.credential):
            raise DeployError(f"--credential {self.credential!r} is not the name of a Secret")
        if self.host != "*" and not (self.credential and _DOMAIN.match(self.host)):
            raise DeployError(
                f"--host {self.host!r}: one name, together with --credential. Without TLS all hosts of a port have "
                "their routes in common, so the port is the pool's alone and --host says nothing"
            )
        if self.credential and self.host == "*":
            raise DeployError("--credential: give --host too: the proxy selects the routes by it")

    def _require_pods(self) -> None:
        if not self.selector:
            raise DeployError("--selector: name the pods whose proxies are meant, as in app=web: not all of them")
        for key, value in self.selector.items():
            if not _LABEL_KEY.match(key) or not _LABEL_VALUE.match(value):
                raise DeployError(f"--selector {key}={value}: not a label of pods")
        if not self.proxy_namespace:
            raise DeployError("--proxy-namespace: name the namespace of the pods whose proxies are meant")
        for option, name in (("--namespace", self.namespace), ("--proxy-namespace", self.proxy_namespace)):
            if not _LABEL.match(name):
                raise DeployError(f"{option} {name!r} is not the name of a namespace: use at most 63 of a-z 0-9 -")

    @property
    def pool(self) -> str:
        """The pool's name."""
        return self.spec.pool

    @property
    def mesh(self) -> Mesh:
        """The Service of the spec's ``mesh``. Raises :class:`DeployError` if it names none."""
        if self.spec.mesh is None:
            raise DeployError(
                f"the spec of pool {self.pool!r} names no Service for the mesh. Add to it, and apply it:\n"
                f"  mesh: {{host: {self.pool}-slots.{self.pool}.svc.{self.cluster_domain}, port: 7680}}"
            )
        return self.spec.mesh

    @property
    def service(self) -> str:
        """The Service's name."""
        return self._place()[0]

    @property
    def app_namespace(self) -> str:
        """The Service's namespace, which is the members'."""
        return self._place()[1]

    @property
    def control_host(self) -> str:
        """The DNS name that proxies use for the control servers."""
        return f"{control_name(self.pool)}.{self.namespace}.svc.{self.cluster_domain}"

    @property
    def control_identity(self) -> str:
        """The identity in the control servers' certificate from Istio: their ServiceAccount."""
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{control_name(self.pool)}"

    @property
    def proxy_port(self) -> int:
        """The port of the listener whose routes come from the control servers."""
        return self.mesh.port if self.mode == "client" else self.listener_port or self.port

    def _place(self) -> tuple[str, str]:
        service, _, rest = self.mesh.host.partition(".")
        namespace, svc, domain = (*rest.split(".", 2), "", "")[:3]
        if svc != "svc" or domain != self.cluster_domain:
            raise DeployError(
                f"mesh.host {self.mesh.host!r} in the spec: say SERVICE.NAMESPACE.svc.{self.cluster_domain}, "
                "of a Service that is made by that name for the pool alone"
            )
        return service, namespace


def parse_version(text: str) -> tuple[int, int]:
    """``1.29`` or ``1.29.2`` as a pair of numbers. Raises :class:`DeployError`."""
    found = _VERSION.match(text)
    if found is None:
        raise DeployError(f"--istio-version {text!r}: write it like 1.29 or 1.29.2 ('istioctl version' tells)")
    return int(found[1]), int(found[2])


def parse_selector(texts: Sequence[str]) -> dict[str, str]:
    """``key=value`` each. Raises :class:`DeployError`."""
    pairs = [text.partition("=") for text in texts]
    for text, (key, equals, value) in zip(texts, pairs, strict=True):
        if not (key and equals and value):
            raise DeployError(f"--selector {text!r}: write it as KEY=VALUE")
    return {key: value for key, _, value in pairs}


def _written(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
