"""``understudy pools``: the pools in etcd, and the end of one."""

import asyncio
import os
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.options import EtcdOptions, etcd_options, examples, list_output_option, show
from understudy.deploy.common.printable import say

if TYPE_CHECKING:
    from rich.console import RenderableType

    from understudy.deploy.data.pools import Stock
    from understudy.statesync.etcd.settings import EtcdSettings


@click.group(
    invoke_without_command=True,
    epilog=examples(
        "understudy pools",
        "understudy pools --etcd etcd-0:2379 -o json",
        "understudy pools delete crat",
    ),
)
@etcd_options
@list_output_option
@click.pass_context
def pools(context: click.Context, etcd: EtcdOptions, output: str) -> None:
    """List the pools in etcd: members and control servers that run, slots, sessions.

    A pool without a spec was never made with 'understudy apply', or is half deleted. Sessions that were deleted a
    moment ago are counted until they are swept.
    """
    if context.invoked_subcommand is None:
        show(output, asyncio.run(_list(_settings(etcd))), _drawn, lambda view: [row["pool"] for row in view["pools"]])
        return
    if any(context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in context.params):
        raise DeployError(f"options stand behind the command: 'understudy pools {context.invoked_subcommand} ...'")


def _settings(etcd: EtcdOptions) -> "EtcdSettings":
    from understudy.deploy.common.layout import read_layout, state_directory

    return etcd.settings(read_layout(state_directory(os.environ)))


async def _list(etcd: "EtcdSettings") -> dict[str, Any]:
    from understudy.deploy.data.pools import pools_view, read_stocks
    from understudy.deploy.inspect.query import connect

    async with connect(etcd) as client:
        return pools_view(await read_stocks(client), etcd)


def _drawn(view: dict[str, Any]) -> "RenderableType":
    from understudy.deploy.common.console_style import plain_table

    if not view["pools"]:
        return f"no pool in etcd at {', '.join(view['etcd'])}: 'understudy apply -f pool.yaml' makes one"
    table = plain_table("pool", "members", "control servers", "slots", "sessions")
    for row in view["pools"]:
        slots = "no spec" if not row["made"] else "unreadable" if row["slots"] is None else str(row["slots"])
        table.add_row(row["pool"], str(row["members"]), str(row["controls"]), slots, str(row["sessions"]))
    return table


@pools.command(
    epilog=examples(
        "understudy pools delete crat",
        "understudy pools delete cart --yes --etcd etcd-0:2379",
    )
)
@click.argument("name", metavar="POOL")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Also while members or control servers of the pool run.")
@etcd_options
def delete(name: str, yes: bool, force: bool, etcd: EtcdOptions) -> None:
    """Delete POOL from etcd: its spec, its slots' owners, and all its sessions.

    Stop its members and control servers first. There is no way back but a backup ('understudy backup').
    """
    settings = _settings(etcd)
    stock = asyncio.run(_look(settings, name, force=force))
    say(f"pool {name}: {_content(stock)}")
    if not yes:
        _confirm(name, settings)
    deleted, left = asyncio.run(_delete(settings, name))
    say(f"deleted pool {name}: {_counted(deleted, 'key')}")
    if left:
        raise DeployError(f"pool {name} has {_counted(left, 'key')} again: stop what writes there, and try again")


def _confirm(name: str, etcd: "EtcdSettings") -> None:
    try:
        agreed = click.confirm(f"Delete all of it from etcd at {', '.join(etcd.endpoints)}?")
    except click.Abort:
        raise DeployError(f"nobody answered, so pool {name} was not deleted: say --yes") from None
    if not agreed:
        raise SystemExit(1)


async def _look(etcd: "EtcdSettings", name: str, *, force: bool) -> "Stock":
    from understudy.deploy.data.pools import require_stock
    from understudy.deploy.inspect.query import connect

    async with connect(etcd) as client:
        return await require_stock(client, name, etcd, force=force)


async def _delete(etcd: "EtcdSettings", name: str) -> tuple[int, int]:
    """How many keys were deleted, and how many stand there again."""
    from understudy.deploy.data.pools import delete_pool, read_stock
    from understudy.deploy.inspect.query import connect

    async with connect(etcd) as client:
        deleted = await delete_pool(client, name)
        return deleted, (await read_stock(client, name)).keys


def _content(stock: "Stock") -> str:
    """What would be deleted, in words."""
    spec = (f"its spec ({stock.slots} slots)" if stock.slots else "its spec") if stock.made else "no spec"
    parts = [spec, _counted(stock.owners, "owner record"), _counted(stock.sessions, "session")]
    running = ((stock.members, "running member"), (stock.controls, "running control server"))
    parts += [_counted(len(names), what) for names, what in running if names]
    return f"{', '.join(parts)}; {_counted(stock.keys, 'key')} in all"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
