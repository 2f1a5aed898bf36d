"""The commands that run a whole pool on this machine: ``demo`` and ``up``."""

import asyncio
from pathlib import Path

import click

from understudy.deploy.common.layout import STATE_DIRECTORY
from understudy.deploy.common.logs import LogOptions
from understudy.deploy.common.options import (
    address,
    app_health_option,
    examples,
    require_label_value,
    require_name,
    shown_option,
)


def domain_names(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Option callback: names of sites, zones or hosts, separated by commas."""
    names = tuple(name.strip() for name in (value or "").split(",") if name.strip())
    for name in names:
        require_name(parameter.opts[0], name)
    return names


def versions_in_turn(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Option callback: versions of the application, separated by commas."""
    names = tuple(name.strip() for name in (value or "").split(",") if name.strip())
    for name in names:
        require_label_value(parameter.opts[0], name, "version")
    return names


@click.command(
    epilog=examples(
        "understudy demo",
        "understudy demo --members 5 --rate 600",
    )
)
@shown_option("--sessions", type=click.IntRange(1, 5000), default=200, help="Number of clients.")
@shown_option("--rate", type=click.IntRange(1, 5000), default=300, help="Requests per second.")
@shown_option("--members", type=click.IntRange(3, 16), default=3, help="Number of members.")
@shown_option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    default="demo-report.json",
    help="File for the results (JSON).",
)
@click.option("--keep", is_flag=True, help="Keep the temporary directory with logs and data at the end.")
def demo(sessions: int, rate: int, members: int, report: Path, keep: bool) -> None:
    """Kill a member behind Envoy under load and report what its clients saw.

    The demo starts a whole pool on loopback, kills one member with SIGKILL, starts it again, checks every session and
    stops everything. Exit code 1: a client noticed something.
    """
    from understudy.deploy.demo.demo import DemoSettings, run_demo

    settings = DemoSettings(sessions=sessions, rate=float(rate), members=members, report=report, keep=keep)
    raise SystemExit(asyncio.run(run_demo(settings)))


@click.command(
    epilog=examples(
        "understudy up --members 3",
        "understudy up --members 2 --app 'python shop.py' --listen 127.0.0.1:9000",
        "understudy up --members 4 --sites east,west",
        "understudy up --members 4 --sites east,west --links --etcds 3 --controls 2",
        "understudy up --members 4 --sites east,west --etcds 3 --controls 2 --no-witness",
        "understudy up --members 2 --distant east,west",
        "understudy up -f cart.yaml -f desk.yaml",
        "understudy up --members 6 --zones a,b,c",
    )
)
@shown_option("--members", type=click.IntRange(1, 32), default=3, help="Number of members.")
@click.option(
    "--app",
    default="",
    help="Command that starts your application; its environment has HOST, PORT and UNDERSTUDY_URL. Default: an "
    "example application.",
)
@app_health_option
@shown_option(
    "--app-timeout",
    type=click.FloatRange(1, 3600),
    default=10.0,
    metavar="SECONDS",
    help="Time in seconds for your application to become ready, after all other processes; a JVM may need 60.",
)
@shown_option("--listen", default="127.0.0.1:8080", callback=address, help="Address of the front Envoy for clients.")
@shown_option("--controls", type=click.IntRange(1, 5), default=1, help="Number of control servers.")
@shown_option("--etcds", type=click.Choice(["1", "3", "5"]), default="1", help="Number of etcd members.")
@shown_option(
    "--etcd-election-ms",
    type=click.IntRange(50, 50_000),
    default=200,
    metavar="MS",
    help="Election timeout of etcd in milliseconds; its heartbeat interval is a tenth of that.",
)
@click.option(
    "--otlp-http", is_flag=True, help="Receive OTLP over HTTP as well, at each control server on a free port."
)
@click.option(
    "--sites",
    callback=domain_names,
    metavar="NAME,...",
    help="Assign the members to these sites in turn. Default: none.",
)
@click.option(
    "--links",
    is_flag=True,
    help="Give each site a network of its own, for 'understudy drill link'. Needs root, ip and iptables.",
)
@click.option(
    "--no-witness",
    is_flag=True,
    help="Two sites without a third: the first of --sites has the odd member of etcd, and an odd control server.",
)
@click.option(
    "--distant",
    callback=domain_names,
    metavar="HOME,MIRROR",
    help="Run two distant sites: on each a whole pool with an etcd of its own, and a mirror. The first site is the "
    "home at first. Default: one site.",
)
@click.option(
    "--zones",
    callback=domain_names,
    metavar="NAME,...",
    help="Assign the members of each site to these zones in turn. Default: none.",
)
@click.option(
    "--hosts",
    callback=domain_names,
    metavar="NAME,...",
    help="Say that the members of each zone run on these hosts in turn. Default: none.",
)
@click.option(
    "--app-versions",
    callback=versions_in_turn,
    metavar="NAME,...",
    help="Say that the members run these versions of the application in turn. Default: none.",
)
@shown_option("--pool", envvar="UNDERSTUDY_POOL", default="cart", help="Name of the pool.")
@click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Pool spec (YAML file); repeatable for several pools. Default: only defaults.",
)
@shown_option(
    "--dir",
    "directory",
    envvar="UNDERSTUDY_DIR",
    type=click.Path(path_type=Path, file_okay=False),
    default=STATE_DIRECTORY,
    help="State directory: data and logs.",
)
@click.pass_obj
def up(
    logs: LogOptions,
    members: int,
    app: str,
    app_health: str,
    app_timeout: float,
    listen: str,
    controls: int,
    etcds: str,
    etcd_election_ms: int,
    otlp_http: bool,
    sites: tuple[str, ...],
    links: bool,
    no_witness: bool,
    distant: tuple[str, ...],
    zones: tuple[str, ...],
    hosts: tuple[str, ...],
    app_versions: tuple[str, ...],
    pool: str,
    files: tuple[Path, ...],
    directory: Path,
) -> None:
    """Run a whole pool on this machine until Ctrl-C, and show its status.

    With several specs all pools have the same control servers and one front Envoy, which serves each pool at the
    'front' of its spec, or at a free port. --members, --app and --sites are for each of them.

    With --distant each site has a directory of its own in the state directory. Commands for a site need its name:
    UNDERSTUDY_DIR=.understudy/east understudy home status.

    A process that ends is started again. Sessions stay in the state directory and are there at the next start.
    """
    from understudy.deploy.local.local_layout import LocalSettings
    from understudy.deploy.local.up import run_distant, run_up
    from understudy.statesync.pool.spec import PoolSpec
    from understudy.statesync.pool.spec_reader import load_spec, parse_spec

    _check_links(sites, files, links=links)
    _check_distant(distant, sites, files, links=links)
    if no_witness:
        _check_no_witness(distant, sites, int(etcds))
    wanted: list[PoolSpec] = [load_spec(file) for file in files] or [parse_spec(f"pool: {pool}", where="--pool")]
    settings = LocalSettings(
        directory=directory,
        spec=wanted[0],
        more=tuple(wanted[1:]),
        members=members,
        controls=controls,
        etcds=int(etcds),
        etcd_election_ms=etcd_election_ms,
        app=app,
        app_health=app_health,
        app_timeout=app_timeout,
        listen=listen,
        otlp_http=otlp_http,
        sites=sites,
        links=links,
        witness=not no_witness,
        log_level=logs.level,
        zones=zones,
        hosts=hosts,
        app_versions=app_versions,
    )
    if distant:
        raise SystemExit(asyncio.run(run_distant(settings, (distant[0], distant[1]))))
    raise SystemExit(asyncio.run(run_up(settings)))


def _check_distant(distant: tuple[str, ...], sites: tuple[str, ...], files: tuple[Path, ...], *, links: bool) -> None:
    """Raise ``click.UsageError`` for options that do not go together with distant sites."""
    if distant and (len(distant) != 2 or distant[0] == distant[1]):
        raise click.UsageError(f"--distant names two sites, such as east,west, and not {','.join(distant)!r}")
    if distant and (sites or links):
        raise click.UsageError("--distant gives each site an etcd of its own; --sites and --links share one: choose")
    if distant and len(files) > 1:
        raise click.UsageError("--distant is for one pool: give one --file")


def _check_no_witness(distant: tuple[str, ...], sites: tuple[str, ...], etcds: int) -> None:
    """Raise ``click.UsageError`` for options with which there is no odd member of etcd for the first of two sites."""
    if distant:
        raise click.UsageError("--distant gives each site an etcd of its own, so there is no witness: leave one out")
    if len(sites) != 2 or sites[0] == sites[1]:
        raise click.UsageError("--no-witness is for two sites: give --sites east,west")
    if etcds == 1:
        raise click.UsageError("--no-witness is for several members of etcd on two sites: give --etcds 3")


def _check_links(sites: tuple[str, ...], files: tuple[Path, ...], *, links: bool) -> None:
    """Raise ``click.UsageError`` for sites that cannot have networks."""
    from understudy.deploy.local.linked_pool import WITNESS

    if links and len(sites) < 2:
        raise click.UsageError("--links needs two sites or more: give --sites east,west")
    if links and WITNESS in sites:
        raise click.UsageError(f"with --links {WITNESS!r} names what is on no site: give that site another name")
    if links and len(files) > 1:
        raise click.UsageError("--links is for one pool: give one --file")
