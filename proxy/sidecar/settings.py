"""The settings of a sidecar, made from the options of the command line."""

from dataclasses import dataclass, field
from pathlib import Path

from understudy.proxy.peers.anti_entropy import INTERVAL
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.pool.spec_parts import CheckSpec
from understudy.statesync.tls.identity import DOMAIN
from understudy.statesync.tls.pem_files import PemFiles

NO_HEALTH_PORT = "off"


@dataclass(frozen=True, slots=True)
class SidecarSettings:
    """How a sidecar is started.

    ``session_api`` is ``host:port`` or ``unix:/path``, and so is ``redis``, the Redis port; '' for none.
    ``peer`` is where it listens for other sidecars, ``advertise``
    the address that they use (the same, unless given). ``app`` is where the application listens.
    ``health`` is the health port (``host:port``) for front Envoys: a free port of the application's host unless given,
    "off" for none. ``envoy_admin`` is the admin address of a local Envoy that must be ready before this member is.
    ``allow_command_checks``: the pool's spec may run commands here. ``checks`` are further checks of this member alone.
    ``metrics`` is a port for Prometheus without certificates (``host:port``), '' for none. ``node`` is the name of the
    host, and ``zone`` that of its zone within ``site``. ``app_cgroup`` is the directory of the application's cgroup
    (v2), whose CPU and memory count as this member's. ``app_version`` is the version of the application, for
    pools that run several. ``scrub_interval`` is the shortest time in seconds between two slots compared with etcd.
    ``app_memory_limit`` is a limit in bytes for the application's resident memory, 0 for that
    of its control group. ``watched_disks`` are paths whose file systems must not fill.
    ``tls`` is for the peer API, on both sides, and for the control servers' gRPC ports; without it all are plain text.
    ``trust_domain`` is that of the SPIFFE ids in the others' certificates.
    ``session_token_file`` holds the tokens of the session API, ``socket_mode`` its permissions if it is a Unix socket.
    ``session_keys`` is the key file for encrypted sessions. Without protection, and unless ``insecure``, both APIs must
    be on loopback.
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
    redis: str = ""
    node: str = ""
    app_cgroup: Path | None = None
    site: str = ""
    zone: str = ""
    weight: int = 10
    priority: int = 1
    app_version: str = ""
    drain_seconds: float = 10.0
    scrub_interval: float = INTERVAL
    app_memory_limit: int = 0
    watched_disks: tuple[Path, ...] = ()
    etcd: EtcdSettings = field(default_factory=EtcdSettings)
    tls: PemFiles | None = None
    trust_domain: str = DOMAIN
    session_token_file: Path | None = None
    socket_mode: int = 0o660
    session_keys: Path | None = None
    insecure: bool = False
