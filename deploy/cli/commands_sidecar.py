"""``understudy sidecar``: run the sidecar of one application instance. SIGTERM stops it.

Options become settings. A sidecar that cannot start prints the reason in one line; its exit code is 2.
"""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from understudy.deploy.common.logs import LogOptions, start_logging
from understudy.deploy.common.options import (
    PRIVATE_FILE,
    EtcdOptions,
    TlsOptions,
    address,
    address_or_off,
    address_or_socket,
    app_health_option,
    etcd_options,
    examples,
    file_mode,
    pool_option,
    require_label_value,
    require_name,
    shown_option,
    tls_options,
)
from understudy.statesync.tls.identity import DOMAIN

if TYPE_CHECKING:
    from understudy.statesync.pool.spec_parts import CheckSpec


def zone_name(_: click.Context, parameter: click.Parameter, value: str) -> str:
    """Option callback: the name of a zone, which may be the value of a label in Kubernetes."""
    require_label_value(parameter.opts[0], value, "zone")
    return value


def version_name(_: click.Context, parameter: click.Parameter, value: str) -> str:
    """Option callback: a version of the application, which may be the value of a label in Kubernetes."""
    require_label_value(parameter.opts[0], value, "version")
    return value


def own_checks(_: click.Context, parameter: click.Parameter, value: str) -> "tuple[CheckSpec, ...]":
    """Option callback: health checks in YAML or JSON."""
    if not value:
        return ()
    from understudy.statesync.pool.spec import SpecError
    from understudy.statesync.pool.spec_reader import parse_checks

    try:
        return parse_checks(value, where=parameter.opts[0])
    except SpecError as error:
        raise click.BadParameter(str(error), param=parameter) from None


@click.command(
    # Pods get their options from variables UNDERSTUDY_<OPTION>, such as UNDERSTUDY_SITE.
    context_settings={"auto_envvar_prefix": "UNDERSTUDY"},
    epilog=examples(
        "understudy sidecar --member cart-1 --pool cart --app 127.0.0.1:8000",
        "understudy sidecar --member cart-2 --pool cart --app 127.0.0.1:8000 \\",
        "    --session-api unix:/run/understudy.sock --peer 10.0.0.5:7601 --site east \\",
        "    --tls-cert cart-2.pem --tls-key cart-2.key --tls-ca ca.pem",
    ),
)
@click.option("--member", envvar="UNDERSTUDY_MEMBER", required=True, help="Name of this member.")
@pool_option(required=True)
@click.option("--app", required=True, callback=address, help="Address of the application.")
@app_health_option
@shown_option(
    "--session-api",
    default="127.0.0.1:7600",
    callback=address_or_socket,
    help="Address of the session API for the application: HOST:PORT or unix:/path.",
)
@click.option(
    "--redis",
    default="",
    callback=lambda context, parameter, value: address_or_socket(context, parameter, value) if value else "",
    help="Address of the Redis port for the application: HOST:PORT or unix:/path. Default: no Redis port.",
)
@shown_option("--peer", default="127.0.0.1:7601", callback=address, help="Address of the peer API for other sidecars.")
@click.option("--advertise", default="", help="Address that other sidecars use for --peer. Default: --peer.")
@click.option(
    "--health",
    default="",
    callback=address_or_off,
    help="Address for the health checks of front Envoys: HOST:PORT, *:PORT for all addresses, or 'off'. Default: a "
    "free port on the host of --app.",
)
@click.option(
    "--envoy-admin",
    default="",
    help="Admin address of a local Envoy that must be ready before this member is, HOST:PORT. Default: none.",
)
@click.option(
    "--allow-command-checks", is_flag=True, help="Allow checks of the pool spec that run commands on this machine."
)
@click.option(
    "--checks",
    default="",
    callback=own_checks,
    help="Health checks of this member only, as in the pool spec: [{name: db, http: 'http://...'}]. Default: none.",
)
@click.option(
    "--app-memory-limit",
    type=click.IntRange(min=0),
    default=0,
    metavar="BYTES",
    help="Limit for the resident memory of the application, for forecasts. Default: that of its control group.",
)
@click.option(
    "--watch-disk",
    type=click.Path(exists=True, path_type=Path),
    multiple=True,
    help="A path whose file system must not fill, for forecasts; repeatable. Default: none.",
)
@click.option(
    "--metrics",
    default="",
    callback=address,
    help="Address for /metrics without a client certificate, HOST:PORT. Default: only on --peer.",
)
@click.option(
    "--host",
    "--node",
    "node",
    envvar=["UNDERSTUDY_HOST", "UNDERSTUDY_NODE"],
    default="",
    help="Name of the host that this member runs on (failure domain). Default: not known.",
)
@click.option(
    "--app-cgroup",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Directory of the application's cgroup (v2); its CPU and memory count as this member's load. Default: none.",
)
@click.option("--site", default="", help="Name of the site (failure domain). Default: none.")
@click.option(
    "--zone",
    default="",
    callback=zone_name,
    help="Name of the host's zone within the site (failure domain). Default: not known.",
)
@shown_option(
    "--weight",
    type=click.IntRange(1, 1000),
    default=10,
    help="Weight in mode load_sharing; a member with twice the weight gets twice the slots.",
)
@shown_option(
    "--priority",
    type=click.IntRange(1, 1000),
    default=1,
    help="Rank in mode active_standby; the lowest number becomes active first.",
)
@click.option(
    "--app-version",
    default="",
    callback=version_name,
    help="Version of the application, for pools with 'versions' in their spec. Default: none.",
)
@shown_option(
    "--drain-seconds",
    type=click.FloatRange(0, 600),
    default=10.0,
    help="Maximum seconds for the handover of all slots when the sidecar stops.",
)
@click.option(
    "--session-token-file",
    type=PRIVATE_FILE,
    envvar="UNDERSTUDY_SESSION_TOKEN_FILE",
    help="Require one of the tokens in this file (one per line) on the session API. Default: no token.",
)
@shown_option(
    "--session-socket-mode",
    default="0660",
    callback=file_mode,
    help="Permissions of the Unix socket of the session API, in octal.",
)
@click.option(
    "--session-keys",
    type=PRIVATE_FILE,
    envvar="UNDERSTUDY_SESSION_KEYS",
    help="Key file. Session content in etcd is encrypted with its first key. Default: no encryption.",
)
@click.option(
    "--insecure",
    is_flag=True,
    help="Allow the session API and the peer API without protection on addresses that are not loopback.",
)
@tls_options
@etcd_options
@click.pass_obj
def sidecar(
    logs: LogOptions,
    member: str,
    pool: str,
    app: str,
    app_health: str,
    session_api: str,
    redis: str,
    peer: str,
    advertise: str,
    health: str,
    envoy_admin: str,
    allow_command_checks: bool,
    checks: "tuple[CheckSpec, ...]",
    app_memory_limit: int,
    watch_disk: tuple[Path, ...],
    metrics: str,
    node: str,
    app_cgroup: Path | None,
    site: str,
    zone: str,
    weight: int,
    priority: int,
    app_version: str,
    drain_seconds: float,
    session_token_file: Path | None,
    session_socket_mode: int,
    session_keys: Path | None,
    insecure: bool,
    tls: TlsOptions | None,
    etcd: EtcdOptions,
) -> None:
    """Run the sidecar of one application instance. It keeps the application's sessions.

    Every option can also be set in the environment, for example --drain-seconds as UNDERSTUDY_DRAIN_SECONDS.
    """
    from understudy.proxy.sidecar.settings import SidecarSettings
    from understudy.proxy.sidecar.sidecar import run_sidecar

    for option, name in (("--member", member), ("--pool", pool), ("--site", site)):
        if name:
            require_name(option, name)
    start_logging(logs, pool=pool, member=member)
    settings = SidecarSettings(
        member=member,
        pool=pool,
        app=app,
        session_api=session_api,
        redis=redis,
        peer=peer,
        advertise=advertise,
        app_health=app_health,
        health=health,
        envoy_admin=envoy_admin,
        allow_command_checks=allow_command_checks,
        checks=checks,
        app_memory_limit=app_memory_limit,
        watched_disks=watch_disk,
        metrics=metrics,
        node=node,
        app_cgroup=app_cgroup,
        site=site,
        zone=zone,
        weight=weight,
        priority=priority,
        app_version=app_version,
        drain_seconds=drain_seconds,
        etcd=etcd.settings(None),
        tls=tls,
        trust_domain=tls.domain if tls else DOMAIN,
        session_token_file=session_token_file,
        socket_mode=session_socket_mode,
        session_keys=session_keys,
        insecure=insecure,
    )
    raise SystemExit(asyncio.run(run_sidecar(settings)))
