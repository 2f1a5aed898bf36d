"""``understudy envoy``: run a front Envoy. SIGTERM stops it.

Options become settings. An Envoy that cannot start prints the reason in one line; its exit code is 2.
"""

import asyncio
import ipaddress
from pathlib import Path

import click

from understudy.deploy.common.logs import LogOptions, start_logging
from understudy.deploy.common.options import (
    TlsOptions,
    address,
    examples,
    require_name,
    shown_option,
    tls_options,
)
from understudy.statesync.pool.addresses import split_address

DEFAULT_LISTEN = "127.0.0.1:8080"


def address_or_host(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Option callback: ``HOST:PORT``, or an IP address alone, which becomes ``HOST:0``."""
    try:
        version = ipaddress.ip_address(value.strip("[]")).version
    except ValueError:
        return str(address(context, parameter, value))
    return f"[{value.strip('[]')}]:0" if version == 6 else f"{value}:0"


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
    "--site",
    default="",
    envvar="UNDERSTUDY_SITE",
    help="Site of this Envoy. It prefers members of this site for new sessions (docs/sites.md). Default: none.",
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
    site: str,
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

    if site:
        require_name("--site", site)
    if site and pools:
        raise click.UsageError("--site needs --pool: an Envoy of several pools prefers no site")
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
        site=site,
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
