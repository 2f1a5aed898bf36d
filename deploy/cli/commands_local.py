"""The commands that run a whole pool on this machine: ``demo`` and ``up``."""

import asyncio
from pathlib import Path

import click

from understudy.deploy.common.layout import STATE_DIRECTORY
from understudy.deploy.common.options import address, app_health_option, examples, require_name


def site_names(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Option callback: names of sites with commas between them."""
    names = tuple(name.strip() for name in (value or "").split(",") if name.strip())
    for name in names:
        require_name(parameter.opts[0], name)
    return names


@click.command(
    epilog=examples(
        "understudy demo",
        "understudy demo --members 5 --rate 600",
    )
)
@click.option("--sessions", type=click.IntRange(1, 5000), default=200, show_default=True, help="How many clients.")
@click.option("--rate", type=click.IntRange(1, 5000), default=300, show_default=True, help="Requests a second.")
@click.option("--members", type=click.IntRange(3, 16), default=3, show_default=True, help="How many members.")
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    default="demo-report.json",
    show_default=True,
    help="Where to write the numbers.",
)
@click.option("--keep", is_flag=True, help="Keep the temporary directory with logs and data.")
def demo(sessions: int, rate: int, members: int, report: Path, keep: bool) -> None:
    """Kill a member behind Envoy under load, and show what its clients noticed.

    Starts a whole pool on loopback, kills one member with SIGKILL, starts it again, checks every session and stops
    everything. Exits with 1 if a client noticed anything.
    """
    from understudy.deploy.demo.demo import DemoSettings, run_demo

    settings = DemoSettings(sessions=sessions, rate=float(rate), members=members, report=report, keep=keep)
    raise SystemExit(asyncio.run(run_demo(settings)))


@click.command(
    epilog=examples(
        "understudy up --members 3",
        "understudy up --members 2 --app 'python shop.py' --listen 127.0.0.1:9000",
        "understudy up --members 4 --sites east,west",
    )
)
@click.option("--members", type=click.IntRange(1, 32), default=3, show_default=True, help="How many members.")
@click.option("--app", default="", help="Command of your application; it gets HOST, PORT and UNDERSTUDY_URL.")
@app_health_option
@click.option(
    "--app-timeout",
    type=click.FloatRange(1, 3600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Time for your application to get ready, once all else is; a JVM may want 60.",
)
@click.option("--listen", default="127.0.0.1:8080", show_default=True, callback=address, help="Where clients come in.")
@click.option("--controls", type=click.IntRange(1, 5), default=1, show_default=True, help="How many control servers.")
@click.option("--etcds", type=click.Choice(["1", "3", "5"]), default="1", show_default=True, help="Members of etcd.")
@click.option("--otlp-http", is_flag=True, help="Have control servers take OTLP over HTTP too, each on a free port.")
@click.option("--sites", callback=site_names, metavar="NAME,...", help="Put members on these sites, in turn.")
@click.option("--pool", envvar="UNDERSTUDY_POOL", default="cart", show_default=True, help="Name of the pool.")
@click.option("-f", "--file", "spec", type=click.Path(path_type=Path, dir_okay=False), help="A pool spec (YAML).")
@click.option(
    "--dir",
    "directory",
    envvar="UNDERSTUDY_DIR",
    type=click.Path(path_type=Path, file_okay=False),
    default=STATE_DIRECTORY,
    show_default=True,
    help="Where data, logs and notes are kept.",
)
@click.pass_obj
def up(
    log_level: str,
    members: int,
    app: str,
    app_health: str,
    app_timeout: float,
    listen: str,
    controls: int,
    etcds: str,
    otlp_http: bool,
    sites: tuple[str, ...],
    pool: str,
    spec: Path | None,
    directory: Path,
) -> None:
    """Run a whole pool on this machine until Ctrl-C, with a live status.

    What dies is started again. Sessions are kept in the state directory and are there again next time.
    """
    from understudy.deploy.local.local_pool import LocalSettings
    from understudy.deploy.local.up import run_up
    from understudy.statesync.pool.spec import PoolSpec
    from understudy.statesync.pool.spec_reader import load_spec, parse_spec

    wanted: PoolSpec = load_spec(spec) if spec else parse_spec(f"pool: {pool}", where="--pool")
    settings = LocalSettings(
        directory=directory,
        spec=wanted,
        members=members,
        controls=controls,
        etcds=int(etcds),
        app=app,
        app_health=app_health,
        app_timeout=app_timeout,
        listen=listen,
        otlp_http=otlp_http,
        sites=sites,
        log_level=log_level,
    )
    raise SystemExit(asyncio.run(run_up(settings)))
