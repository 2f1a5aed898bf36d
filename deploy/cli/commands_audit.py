"""``understudy audit``: who did what to a pool, from where, why, and how to undo it."""

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import click

from understudy.deploy.cli.commands_drain import duration
from understudy.deploy.cli.every_pool import pools_option
from understudy.deploy.common.options import (
    EtcdOptions,
    PoolLocation,
    etcd_options,
    examples,
    locate_pool,
    output_option,
    show,
)
from understudy.deploy.common.printable import one_line, say

if TYPE_CHECKING:
    from rich.console import RenderableType

    from understudy.statesync.audit.chain import ChainReport
    from understudy.statesync.etcd.client import EtcdClient
    from understudy.statesync.pool.keys import AuditKeys

NEWEST = 50
"""The number of records that are listed unless the options say otherwise."""


@click.command(
    epilog=examples(
        "understudy audit",
        "understudy audit --since 1h -o json",
        "understudy audit --follow",
        "understudy audit --verify",
        "understudy audit --tenant acme",
    )
)
@click.option(
    "--since",
    "seconds",
    callback=duration,
    metavar="TIME",
    help="List only records of the last TIME, such as 90s, 10m, 2h or 1d. Default: no limit.",
)
@click.option(
    "-n",
    "count",
    type=click.IntRange(min=1),
    help=f"Number of newest records to list. Default: {NEWEST}, with --since all.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with new records until Ctrl-C; with -o json one per line.")
@click.option("--verify", is_flag=True, help="Check that no record is missing or altered, instead of listing them.")
@click.option("--tenant", default="", help="Show the log of this tenant's quotas, of no pool. Default: none.")
@etcd_options
@output_option
@pools_option(follow="--follow")
def audit(
    seconds: float | None,
    count: int | None,
    follow: bool,
    verify: bool,
    tenant: str,
    pool: str | None,
    etcd: EtcdOptions,
    output: str,
) -> None:
    """Show who did what to a pool, from where, why, and how to undo it. The newest record comes last.

    The records are those of commands that change the pool and of the slot tables that the leading control server
    wrote. They are in etcd, so this also works while no control server runs.

    Exit code 1 with --verify: a record is missing or was altered.
    """
    if verify and (follow or seconds or count):
        raise click.UsageError("--verify checks all records: give it without --since, -n and --follow")
    if follow and output == "yaml":
        raise click.UsageError("--follow prints a table or, with -o json, one JSON object per line")
    place = locate_pool(etcd, f"tenant {tenant}" if tenant else pool)
    if verify:
        _verify(place, tenant, output)
        return
    newest = count or (0 if seconds else NEWEST)
    since_ms = int((time.time() - seconds) * 1000) if seconds else 0
    asyncio.run(_list(place, tenant, newest, since_ms, output, follow=follow))


async def _list(place: PoolLocation, tenant: str, count: int, since_ms: int, output: str, *, follow: bool) -> None:
    from understudy.deploy.inspect.audit import follow_rows, read_rows
    from understudy.deploy.inspect.query import connect

    keys = _keys(place, tenant)
    async with connect(place.etcd) as client:
        rows, revision = await read_rows(client, keys, count=count, since_ms=since_ms)
        if not rows and not tenant:
            await _require_pool(client, place)
        if not follow:
            show(output, {"pool": place.pool, "records": rows}, _table)
            return
        for row in rows:
            _print(row, output)
        async for row in follow_rows(client, keys, revision):
            _print(row, output)


def _keys(place: PoolLocation, tenant: str) -> "AuditKeys":
    """The keys of the log: a pool's, or a tenant's."""
    from understudy.statesync.pool.keys import PoolKeys
    from understudy.statesync.tenants.keys import TenantKeys

    return TenantKeys(tenant) if tenant else PoolKeys(place.pool)


async def _require_pool(client: "EtcdClient", place: PoolLocation) -> None:
    """Raise ``NoPoolError`` if there is no such pool."""
    from understudy.deploy.inspect.query import read_pool, require_pool

    state, _ = await read_pool(client, place.pool)
    require_pool(state, place.etcd)


def _print(row: dict[str, Any], output: str) -> None:
    if output == "json":
        click.echo(json.dumps(row))
    else:
        say("  ".join(one_line(cell) for cell in _cells(row) if cell))


def _table(view: dict[str, Any]) -> "RenderableType":
    from understudy.deploy.common.console_style import plain_table

    if not view["records"]:
        return f"{view['pool']}: no records"
    table = plain_table("time", "revision", "who", "from", "what", "why", "undo")
    for row in view["records"]:
        table.add_row(*_cells(row))
    return table


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    from understudy.deploy.common.console_style import utc_time

    if row["fault"]:
        return "unknown", str(row["revision"]), "", "", f"{row['chain']} {row['number']}: {row['fault']}", "", ""
    account = f" as {row['account']}" if row["account"] else ""
    what = f"{row['what']}: {row['detail']}" if row["detail"] else row["what"]
    place = f"{row['host']} ({row['process']})"
    moment = utc_time(row["time_ms"] / 1000)
    return moment, str(row["revision"]), row["who"] + account, place, what, row["why"], row["undo"]


def _verify(place: PoolLocation, tenant: str, output: str) -> None:
    from understudy.deploy.inspect.audit import verify_view

    view = verify_view(place.pool, asyncio.run(_reports(place, tenant)))
    show(output, view, _report)
    if not view["whole"]:
        raise SystemExit(1)


async def _reports(place: PoolLocation, tenant: str) -> "tuple[ChainReport, ...]":
    from understudy.deploy.inspect.audit import read_reports
    from understudy.deploy.inspect.query import connect

    async with connect(place.etcd) as client:
        reports = await read_reports(client, _keys(place, tenant))
        if not tenant and not any(report.newest.number or report.faults for report in reports):
            await _require_pool(client, place)
    return reports


def _report(view: dict[str, Any]) -> str:
    """The result as lines of text."""
    lines = []
    for row in view["chains"]:
        if not row["faults"]:
            records = f"records {row['first']} to {row['newest']}" if row["records"] else "no records"
            newest = f", newest digest {row['digest']}" if row["digest"] else ""
            lines.append(f"{row['chain']}: whole, {records}{newest}")
        lines += [f"{row['chain']}: {fault}" for fault in row["faults"]]
    return "\n".join(lines)
