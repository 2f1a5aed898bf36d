"""The command line of ``understudy sidecar`` and the environment of applications, for local pools and for pods.

``make demo`` and the injector start the same program with the same options. Only the values differ: addresses of this
machine, or ``$(VARIABLE)``, which Kubernetes expands. Options without a value are left out and keep their defaults.
"""

from dataclasses import dataclass

from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.tls.pem_files import PemFiles

SESSION_API_VARIABLE = "UNDERSTUDY_URL"
REDIS_VARIABLE = "UNDERSTUDY_REDIS_URL"
MEMBER_VARIABLE = "UNDERSTUDY_MEMBER"


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarOptions:
    """The options of ``understudy sidecar`` for one sidecar, as text; '' leaves an option out.

    ``app``, ``session_api``, ``redis``, ``peer``, ``health`` and ``metrics`` are ``host:port``. ``insecure`` permits a
    peer API without ``tls`` on an address that other machines can reach.
    """

    member: str
    pool: str
    etcd: EtcdSettings
    app: str
    app_health: str
    session_api: str
    peer: str
    health: str
    redis: str = ""
    metrics: str = ""
    site: str = ""
    zone: str = ""
    node: str = ""
    weight: str = ""
    priority: str = ""
    app_version: str = ""
    drain_seconds: str = ""
    checks: str = ""
    session_keys: str = ""
    log_level: str = ""
    tls: PemFiles | None = None
    insecure: bool = False


def sidecar_arguments(place: SidecarOptions) -> tuple[str, ...]:
    """The arguments after ``understudy``."""
    etcd_tls, tls = _paths(place.etcd.tls), _paths(place.tls)
    options = {
        "--member": place.member,
        "--pool": place.pool,
        "--etcd": ",".join(place.etcd.endpoints),
        "--etcd-ca": etcd_tls["ca"],
        "--etcd-cert": etcd_tls["cert"],
        "--etcd-key": etcd_tls["key"],
        "--session-api": place.session_api,
        "--redis": place.redis,
        "--peer": place.peer,
        "--health": place.health,
        "--metrics": place.metrics,
        "--app": place.app,
        "--app-health": place.app_health,
        "--site": place.site,
        "--zone": place.zone,
        "--node": place.node,
        "--weight": place.weight,
        "--priority": place.priority,
        "--app-version": place.app_version,
        "--drain-seconds": place.drain_seconds,
        "--checks": place.checks,
        "--session-keys": place.session_keys,
        "--tls-cert": tls["cert"],
        "--tls-key": tls["key"],
        "--tls-ca": tls["ca"],
    }
    given = tuple(part for option, value in options.items() if value for part in (option, value))
    level = ("--log-level", place.log_level) if place.log_level else ()
    return (*level, "sidecar", *given, *(("--insecure",) if place.insecure else ()))


def _paths(files: PemFiles | None) -> dict[str, str]:
    """The path of each part, '' for one that is not given."""
    return {part: str(getattr(files, part, None) or "") for part in ("cert", "key", "ca")}


def application_environment(*, session_api: str, redis: str, member: str) -> dict[str, str]:
    """The environment of an application: the URLs of its sidecar over HTTP and over Redis, and its member's name."""
    return {
        SESSION_API_VARIABLE: f"http://{session_api}",
        REDIS_VARIABLE: f"redis://{redis}/0",
        MEMBER_VARIABLE: member,
    }
