"""The commands that run one process of a pool: ``control``, ``sidecar`` and ``envoy``. SIGTERM stops each of them.

They turn options into settings. A process that cannot start prints the reason in one line; its exit code is 2.
"""

import asyncio
import ipaddress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

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
from understudy.statesync.pool.addresses import split_address
from understudy.statesync.tls.identity import DOMAIN, is_loopback

if TYPE_CHECKING:
    from understudy.deploy.console.security import ConsoleSettings
    from understudy.statesync.pool.spec import CheckSpec
    from understudy.xds.control.http_extension import HttpExtension


DEFAULT_LISTEN = "127.0.0.1:8080"


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
    epilog=examples(
        "understudy control --name control-1 --pool cart",
        "understudy control --name control-2 --pool cart --grpc 0.0.0.0:18000 --advertise-grpc 10.0.0.7:18000 \\",
        "    --tls-cert control-2.pem --tls-key control-2.key --tls-ca ca.pem",
        "understudy control --name control-1 --all-pools --etcd 10.0.0.2:2379",
    )
)
@click.option("--name", required=True, help="Name of this control server, unique in each of its pools.")
@click.option(
    "--pool",
    "pools",
    envvar="UNDERSTUDY_POOL",
    multiple=True,
    help="Name of a pool; repeatable. Required without --all-pools.",
)
@click.option("--all-pools", is_flag=True, help="Serve every pool in etcd, also those that are applied later.")
@shown_option("--grpc", default="127.0.0.1:18000", callback=address, help="Address for xDS, heartbeats and OTLP.")
@shown_option("--http", default="127.0.0.1:18001", callback=address, help="Address of the admin interface.")
@click.option("--advertise-grpc", default="", help="Address that other processes use for --grpc. Default: --grpc.")
@click.option("--advertise-http", default="", help="Address that other processes use for --http. Default: --http.")
@click.option("--otlp-http", default="", help="Address for OTLP over HTTP, such as 127.0.0.1:4318. Default: none.")
@shown_option("--traces", default=":memory:", help="SQLite file for traces, or :memory:.")
@click.option(
    "--insecure", is_flag=True, help="Allow plain text on addresses of --grpc and --http that are not loopback."
)
@click.option(
    "--open-http",
    is_flag=True,
    help="Allow an address of --http that is not loopback. Callers need no certificate there.",
)
@click.option(
    "--http-tls",
    is_flag=True,
    help="Serve --http over TLS with --tls-cert. Callers may show a certificate of --tls-ca.",
)
@click.option(
    "--rights",
    type=PRIVATE_FILE,
    envvar="UNDERSTUDY_RIGHTS",
    help="File that says who may see and change the pools of which tenant at --http. Default: everybody may read.",
)
@click.option(
    "--console/--no-console",
    default=None,
    help="Serve the console at /console/ of the address of --http. Default: only if that is on loopback.",
)
@click.option(
    "--console-host",
    "console_hosts",
    multiple=True,
    metavar="NAME",
    help="Host name under which browsers reach the console, beside IP addresses and localhost; repeatable. "
    "Default: none.",
)
@click.option(
    "--etcd-cluster",
    "etcd_clusters",
    multiple=True,
    metavar="NAME=HOST:PORT,...",
    help="One of several etcd clusters whose pools are served, instead of --etcd; repeatable. NAME=FILE.yaml: with "
    "its own certificates and login. Default: one etcd, that of --etcd.",
)
@tls_options
@etcd_options
@click.pass_context
def control(
    context: click.Context,
    name: str,
    pools: tuple[str, ...],
    all_pools: bool,
    grpc: str,
    http: str,
    advertise_grpc: str,
    advertise_http: str,
    otlp_http: str,
    traces: str,
    insecure: bool,
    open_http: bool,
    http_tls: bool,
    rights: Path | None,
    console: bool | None,
    console_hosts: tuple[str, ...],
    etcd_clusters: tuple[str, ...],
    tls: TlsOptions | None,
    etcd: EtcdOptions,
) -> None:
    """Run a control server. It writes slot tables and configures Envoys over xDS.

    It serves one pool, several, or all that etcd has. Several control servers may run for one pool. One of them is the
    leader of the pool; all of them serve its Envoys.
    """
    from understudy.deploy.common.etcd_clusters import read_clusters
    from understudy.deploy.console.security import ConsoleSettings
    from understudy.xds.control.server import run_control
    from understudy.xds.control.settings import ControlSettings

    pools = _pools(context, pools, all_pools=all_pools)
    if etcd_clusters and context.get_parameter_source("etcd_endpoints") is ParameterSource.COMMANDLINE:
        raise click.UsageError("give --etcd or --etcd-cluster, not both")
    for pool in pools:
        require_name("--pool", pool)
    require_name("--name", name)
    start_logging(context.obj, pool=pools[0] if len(pools) == 1 else "", control=name)
    settings = ControlSettings(
        pools=pools,
        name=name,
        etcd=etcd.settings(None),
        clusters=read_clusters(etcd_clusters, etcd),
        grpc=grpc,
        http=http,
        advertise_grpc=advertise_grpc,
        advertise_http=advertise_http,
        otlp_http=otlp_http,
        traces=traces,
        tls=tls,
        trust_domain=tls.domain if tls else DOMAIN,
        insecure=insecure,
        open_http=open_http,
        http_tls=http_tls,
        rights=rights,
    )
    extension = _console(console, ConsoleSettings(http, console_hosts))
    raise SystemExit(asyncio.run(run_control(settings, extension)))


def _console(wanted: bool | None, settings: "ConsoleSettings") -> "HttpExtension":
    """What adds the console to the HTTP port, or adds nothing."""
    from understudy.xds.control.http_extension import no_extension

    if wanted is None:
        wanted = is_loopback(settings.http.rpartition(":")[0])
    if not wanted:
        return no_extension
    from understudy.deploy.console.routes import add_console

    return partial(add_console, settings=settings)


def address_or_host(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Option callback: ``HOST:PORT``, or an IP address alone, which becomes ``HOST:0``."""
    try:
        version = ipaddress.ip_address(value.strip("[]")).version
    except ValueError:
        return str(address(context, parameter, value))
    return f"[{value.strip('[]')}]:0" if version == 6 else f"{value}:0"


def _pools(context: click.Context, pools: tuple[str, ...], *, all_pools: bool) -> tuple[str, ...]:
    """The pools to serve; none for all. Without ``--all-pools`` there must be one; with it a variable is ignored."""
    given = context.get_parameter_source("pools") is ParameterSource.COMMANDLINE
    if all_pools and given:
        raise click.UsageError("give --pool or --all-pools, not both")
    if not (all_pools or pools):
        raise click.UsageError("name the pool with --pool, or give --all-pools")
    return () if all_pools else tuple(dict.fromkeys(pools))


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


@click.command(
    epilog=examples(
        "understudy envoy --node front-1 --pool cart --control 127.0.0.1:18000",
        "understudy envoy --node front-2 --pool cart --control 10.0.0.7:18000 --control 10.0.0.8:18000 \\",
        "    --listen 0.0.0.0:80",
        "understudy envoy --node front-1 --pools all --control 127.0.0.1:18000 --listen 0.0.0.0",
    )
)
@click.option("--node", required=True, help="Name of this Envoy (its node id), unique in each of its pools.")
@click.option("--pool", envvar="UNDERSTUDY_POOL", help="Name of the pool. Required without --pools.")
@click.option(
    "--pools",
    default="",
    metavar="all|NAME,...",
    help="Serve all pools whose spec has a front, or these, at the ports in their specs. Default: only --pool.",
)
@click.option(
    "--control", multiple=True, required=True, callback=address, help="xDS address of a control server; repeatable."
)
@shown_option(
    "--listen",
    default=DEFAULT_LISTEN,
    callback=address_or_host,
    help="Address for clients. With --pools an IP address, without a port.",
)
@shown_option("--admin", default="127.0.0.1:9901", callback=address, help="Address of Envoy's admin interface.")
@shown_option("--xds", type=click.Choice(["delta", "sotw"]), default="delta", help="Variant of ADS.")
@click.option(
    "--trace-requests",
    is_flag=True,
    help="Add spans to the traces of callers. This costs about 10 % of the throughput.",
)
@shown_option(
    "--concurrency", type=click.IntRange(0, 256), default=2, help="Number of worker threads; 0: one per core."
)
@shown_option(
    "--drain",
    type=click.FloatRange(0, 600),
    default=3.0,
    help="Seconds that open requests have to finish when Envoy stops.",
)
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for Envoy's bootstrap file. Default: a temporary directory.",
)
@tls_options
@click.pass_obj
def envoy(
    logs: LogOptions,
    node: str,
    pool: str | None,
    pools: str,
    control: tuple[str, ...],
    listen: str,
    admin: str,
    xds: str,
    trace_requests: bool,
    concurrency: int,
    drain: float,
    directory: Path | None,
    tls: TlsOptions | None,
) -> None:
    """Run a front Envoy that gets its configuration from the control servers.

    It serves one pool, or several at the hosts, paths and ports in their specs (docs/many-pools.md). If Envoy ends
    unexpectedly, this command starts it again.
    """
    from understudy.proxy.front.envoy import EnvoySettings, run_envoy

    start_logging(logs, pool=pool or "", front=node)
    settings = EnvoySettings(
        node_id=node,
        pool="" if pools else _own_pool(pool),
        pools=_several(pools) if pools else (),
        every_pool=pools == "all",
        listen=_listen_at(listen, several=bool(pools)),
        xds_addresses=control,
        admin=admin,
        delta=xds == "delta",
        trace_requests=trace_requests,
        concurrency=concurrency,
        drain=drain,
        directory=directory,
        tls=tls,
    )
    raise SystemExit(asyncio.run(run_envoy(settings)))


def _own_pool(pool: str | None) -> str:
    if not pool:
        raise click.UsageError("name the pool with --pool, or give --pools")
    require_name("--pool", pool)
    return pool


def _several(pools: str) -> tuple[str, ...]:
    """The pools of ``--pools``; none for all."""
    names = () if pools == "all" else tuple(pools.split(","))
    for pool in names:
        require_name("--pools", pool)
    return names


def _listen_at(listen: str, *, several: bool) -> str:
    """``--listen`` as ``host:port``. With several pools the port is 0, since their specs have the ports."""
    host, port = split_address(listen)
    if several and listen == DEFAULT_LISTEN:
        return f"{host}:0"
    if bool(port) == several:
        need = "an IP address without a port, since the specs have the ports" if several else "HOST:PORT"
        raise click.BadParameter(f"{listen.removesuffix(':0')}: needs to be {need}", param_hint="--listen")
    return listen
