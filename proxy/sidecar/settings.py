"""What a sidecar is told at start: the command line's options, as ``understudy.proxy.sidecar.sidecar`` wants them."""

from dataclasses import dataclass, field
from pathlib import Path

from understudy.proxy.peers.anti_entropy import INTERVAL
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.pool.spec import CheckSpec
from understudy.statesync.tls.identity import DOMAIN
from understudy.statesync.tls.pem_files import PemFiles

NO_HEALTH_PORT = "off"


@dataclass(frozen=True, slots=True)
class SidecarSettings:
    """What a sidecar is told at start.

    ``session_api`` is ``host:port`` or ``unix:/path``; ``peer`` is where it listens for other sidecars, and
    ``advertise`` what they are told (the same, unless given); ``app`` is where the application listens.
    ``health`` is the health port (``host:port``) that front Envoys ask: a free port of the application's host unless
    given, "off" for none. ``envoy_admin`` is the admin interface of an Envoy beside the application, if its readiness
    counts. ``allow_command_checks``: the pool's spec may have commands run here. ``checks`` are further ones of this
    member alone. ``metrics`` is where Prometheus may ask without a certificate (``host:port``), '' for nowhere.
    ``node`` is the machine it runs on, for whoever looks.
    ``scrub_interval`` is the least time in seconds between two slots that are checked against etcd.
    ``tls`` is for the peer API, on both sides, and for the control servers' gRPC ports; all are plain text without it.
    ``trust_domain`` is that of the SPIFFE ids in the others' certificates.
    ``session_token_file`` holds the tokens that the session API asks for, ``socket_mode`` its permissions if it is a
    Unix socket; ``session_keys`` is the key file that sessions are encrypted with. Without protection, and unless
    ``insecure``, both APIs must be on loopback.
    """

    member: str
    pool: str
    app: str
    session_api: str = "127.0.0.1:7600"
    peer: str = "127.0.0.1:7601"
    advertise: str = ""
    app_health: str = "/healthz"
    health: str = ""
    envoy_admin: str = ""
    allow_command_checks: bool = False
    checks: tuple[CheckSpec, ...] = ()
    metrics: str = ""
    node: str = ""
    site: str = ""
    weight: int = 10
    priority: int = 1
    drain_seconds: float = 10.0
    scrub_interval: float = INTERVAL
    etcd: EtcdSettings = field(default_factory=EtcdSettings)
    tls: PemFiles | None = None
    trust_domain: str = DOMAIN
    session_token_file: Path | None = None
    socket_mode: int = 0o660
    session_keys: Path | None = None
    insecure: bool = False
