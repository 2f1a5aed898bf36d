"""``understudy control``: run a control server. SIGTERM stops it.

Options become settings. A control server that cannot start prints the reason in one line; its exit code is 2.
"""

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from understudy.deploy.common.logs import start_logging
from understudy.deploy.common.options import (
    PRIVATE_FILE,
    EtcdOptions,
    TlsOptions,
    address,
    etcd_options,
    examples,
    require_name,
    shown_option,
    tls_options,
)
from understudy.statesync.tls.identity import DOMAIN, is_loopback

if TYPE_CHECKING:
    from understudy.deploy.console.security import ConsoleSettings
    from understudy.xds.control.http_extension import HttpExtension


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
@click.option(
    "--etcd-leader",
    default="",
    metavar="HOST:PORT",
    help="Member of etcd, one of --etcd, that is to lead etcd while it is well, such as the witness of two sites. "
    "Default: the one that etcd elects.",
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
    etcd_leader: str,
    tls: TlsOptions | None,
    etcd: EtcdOptions,
) -> None:
    """Run a control server. It writes slot tables and configures Envoys over xDS.

    It serves one pool, several, or all that etcd has. Several control servers may run for one pool. One of them is the
    leader of the pool; all of them serve its Envoys.
    """
    from understudy.deploy.common.etcd_clusters import led_by, read_clusters
    from understudy.deploy.console.security import ConsoleSettings
    from understudy.xds.control.server import run_control
    from understudy.xds.control.settings import ControlSettings

    pools = _pools(context, pools, all_pools=all_pools)
    if etcd_clusters and context.get_parameter_source("etcd_endpoints") is ParameterSource.COMMANDLINE:
        raise click.UsageError("give --etcd or --etcd-cluster, not both")
    if etcd_clusters and etcd_leader:
        raise click.UsageError("give 'leader' in the files of --etcd-cluster instead of --etcd-leader")
    for pool in pools:
        require_name("--pool", pool)
    require_name("--name", name)
    start_logging(context.obj, pool=pools[0] if len(pools) == 1 else "", control=name)
    settings = ControlSettings(
        pools=pools,
        name=name,
        etcd=led_by(etcd.settings(None), etcd_leader, "--etcd-leader"),
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
    extension = _console(console, ConsoleSettings(http, console_hosts, tls))
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


def _pools(context: click.Context, pools: tuple[str, ...], *, all_pools: bool) -> tuple[str, ...]:
    """The pools to serve; none for all. Without ``--all-pools`` there must be one; with it a variable is ignored."""
    given = context.get_parameter_source("pools") is ParameterSource.COMMANDLINE
    if all_pools and given:
        raise click.UsageError("give --pool or --all-pools, not both")
    if not (all_pools or pools):
        raise click.UsageError("name the pool with --pool, or give --all-pools")
    return () if all_pools else tuple(dict.fromkeys(pools))
