"""``understudy mirror``: run the process that each side of a pool needs whose home has a mirror. SIGTERM stops it."""

import asyncio
from pathlib import Path

import click

from understudy.deploy.common.logs import start_logging
from understudy.deploy.common.options import (
    EtcdOptions,
    address,
    etcd_options,
    examples,
    pool_option,
    require_name,
    shown_option,
)
from understudy.deploy.common.peer_option import peer_of, peer_option


@click.command(
    epilog=examples(
        "understudy mirror --pool cart --site west --etcd etcd-west:2379 --peer east=etcd-east:2379",
        "understudy mirror --pool cart --site east --etcd etcd-east:2379 --peer west=west.yaml",
    )
)
@click.option("--site", required=True, help="Name of the site of --etcd.")
@peer_option(required=True)
@shown_option(
    "--tails",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Directory for the writes that the new home does not have, if this side is fenced after a take-over.",
)
@click.option(
    "--metrics", default="", callback=address, help="Address for metrics, such as 127.0.0.1:9465. Default: none."
)
@pool_option(required=True)
@etcd_options
@click.pass_context
def mirror(
    context: click.Context, site: str, peer: str, tails: Path, metrics: str, pool: str, etcd: EtcdOptions
) -> None:
    """Copy a pool from the etcd of its home into the etcd of another site, and keep the two sides apart.

    Run one on each side. It writes to --etcd only, and reads the peer's. The home record in --etcd says what it does.

    At the mirror it copies sessions, outcomes of requests and the spec. At the home it confirms each second that this
    side still is the home, and fences it if the other one has become the home. A side that was fenced keeps what the
    new home does not have in a file, and becomes the mirror. So does an empty etcd, if the home names this site
    ('understudy home pair').
    """
    from understudy.deploy.mirror.process import MirrorSettings, run_mirror

    require_name("--site", site)
    require_name("--pool", pool)
    name, peer_etcd = peer_of(peer, etcd, site)
    start_logging(context.obj, pool=pool)
    settings = MirrorSettings(pool, site, etcd.settings(None), name, peer_etcd, tails, metrics)
    raise SystemExit(asyncio.run(run_mirror(settings)))
