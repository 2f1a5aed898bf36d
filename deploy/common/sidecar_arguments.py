"""The command line of ``understudy sidecar`` and the environment of applications, for local pools and for pods.

``make demo`` and the injector start the same program with the same options. Only the values differ: addresses of this
machine, or ``$(VARIABLE)``, which Kubernetes expands. Options without a value are left out and keep their defaults.
"""

from dataclasses import dataclass

SESSION_API_VARIABLE = "UNDERSTUDY_URL"
MEMBER_VARIABLE = "UNDERSTUDY_MEMBER"


@dataclass(frozen=True, slots=True)
class SidecarTls:
    """Paths of the three PEM files of a member; see docs/security.md."""

    cert: str
    key: str
    ca: str


@dataclass(frozen=True, slots=True)
class EtcdAccess:
    """Addresses of etcd, and paths of PEM files for TLS: ``ca``, and ``cert`` with ``key`` for a client certificate."""

    endpoints: tuple[str, ...]
    ca: str = ""
    cert: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarOptions:
    """The options of ``understudy sidecar`` for one sidecar, as text; '' leaves an option out.

    ``app``, ``session_api``, ``peer``, ``health`` and ``metrics`` are ``host:port``. ``insecure`` permits a peer API
    without ``tls`` on an address that other machines can reach.
    """

    member: str
    pool: str
    etcd: EtcdAccess
    app: str
    app_health: str
    session_api: str
    peer: str
    health: str
    metrics: str = ""
    site: str = ""
    node: str = ""
    weight: str = ""
    priority: str = ""
    drain_seconds: str = ""
    checks: str = ""
    session_keys: str = ""
    log_level: str = ""
    tls: SidecarTls | None = None
    insecure: bool = False


def sidecar_arguments(place: SidecarOptions) -> tuple[str, ...]:
    """The arguments after ``understudy``."""
    tls = place.tls or SidecarTls("", "", "")
    options = {
        "--member": place.member,
        "--pool": place.pool,
        "--etcd": ",".join(place.etcd.endpoints),
        "--etcd-ca": place.etcd.ca,
        "--etcd-cert": place.etcd.cert,
        "--etcd-key": place.etcd.key,
        "--session-api": place.session_api,
        "--peer": place.peer,
        "--health": place.health,
        "--metrics": place.metrics,
        "--app": place.app,
        "--app-health": place.app_health,
        "--site": place.site,
        "--node": place.node,
        "--weight": place.weight,
        "--priority": place.priority,
        "--drain-seconds": place.drain_seconds,
        "--checks": place.checks,
        "--session-keys": place.session_keys,
        "--tls-cert": tls.cert,
        "--tls-key": tls.key,
        "--tls-ca": tls.ca,
    }
    given = tuple(part for option, value in options.items() if value for part in (option, value))
    level = ("--log-level", place.log_level) if place.log_level else ()
    return (*level, "sidecar", *given, *(("--insecure",) if place.insecure else ()))


def application_environment(*, session_api: str, member: str) -> dict[str, str]:
    """The environment variables for an application: the URL of its sidecar, and the name of its member."""
    return {SESSION_API_VARIABLE: f"http://{session_api}", MEMBER_VARIABLE: member}
