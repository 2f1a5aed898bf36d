"""``understudy capacity``: whether the pool can lose a member, a host, a zone or a site."""

import asyncio
from typing import Any

import click

from understudy.deploy.cli.watching import watch_option
from understudy.deploy.common.options import (
    EtcdOptions,
    etcd_options,
    examples,
    locate_pool,
    output_option,
    pool_option,
    show,
)


@click.command(epilog=examples("understudy capacity", "understudy capacity -o json"))
@watch_option
@pool_option(required=False)
@etcd_options
@output_option
def capacity(pool: str | None, etcd: EtcdOptions, output: str) -> None:
    """Show what the survivors would carry if any one member, host, zone or site went, by measured load.

    Exit code 1: the pool cannot lose every member, or the load is not known yet.
    """
    from understudy.deploy.inspect.capacity import ask_capacity, capacity_table
    from understudy.deploy.inspect.query import connect, read_pool, require_pool

    place = locate_pool(etcd, pool)

    async def run() -> dict[str, Any]:
        async with connect(place.etcd) as client:
            state, _ = await read_pool(client, place.pool)
        require_pool(state, place.etcd)
        return await ask_capacity(state)

    view = asyncio.run(run())
    show(output, view, capacity_table)
    if not view["fits"]:
        raise SystemExit(1)
