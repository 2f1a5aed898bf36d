"""``understudy pools``: lists the pools in etcd, and deletes one."""

import asyncio
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from understudy.deploy.cli.watching import watch_option
from understudy.deploy.common.completion import complete_pool
from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.options import EtcdOptions, etcd_options, examples, list_output_option, show
from understudy.deploy.common.printable import say

if TYPE_CHECKING:
    from rich.console import RenderableType

    from understudy.deploy.data.pools import PoolContent
    from understudy.statesync.etcd.settings import EtcdSettings


@click.group(
    invoke_without_command=True,
    epilog=examples(
        "understudy pools",
        "understudy pools --etcd etcd-0:2379 -o json",
        "understudy pools delete crat",
    ),
)
@watch_option
@etcd_options
@list_output_option
@click.pass_context
def pools(context: click.Context, etcd: EtcdOptions, output: str) -> None:
    """List the pools in etcd: running members and control servers, slots, sessions.

    A pool without a spec was never created with 'understudy apply', or its deletion was interrupted. Deleted and
    expired sessions are counted until they are removed from etcd.
    """
    if context.invoked_subcommand is None:
        show(
            output,
            asyncio.run(_list(etcd.here())),
            _pools_table,
            lambda view: [row["pool"] for row in view["pools"]],
        )
        return
    if any(context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in context.params):
        raise DeployError(f"give options after the command: 'understudy pools {context.invoked_subcommand} ...'")


async def _list(etcd: "EtcdSettings") -> dict[str, Any]:
    from understudy.deploy.data.pools import pools_view, read_contents
    from understudy.deploy.inspect.query import connect

    async with connect(etcd) as client:
        return pools_view(await read_contents(client), etcd)


def _pools_table(view: dict[str, Any]) -> "RenderableType":
    from understudy.deploy.common.console_style import plain_table

    if not view["pools"]:
        return f"no pool in etcd at {', '.join(view['etcd'])}: create one with 'understudy apply -f pool.yaml'"
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
@click.argument("name", metavar="POOL", shell_complete=complete_pool)
@click.option("--yes", is_flag=True, help="Delete without asking.")
@click.option("--force", is_flag=True, help="Delete even while members or control servers of the pool run.")
@etcd_options
def delete(name: str, yes: bool, force: bool, etcd: EtcdOptions) -> None:
    """Delete POOL from etcd: its spec, its owner records, its audit log and all its sessions.

    Stop its members and control servers first. Only a backup can bring the pool back ('understudy backup').
    """
    settings = etcd.here()
    content = asyncio.run(_read(settings, name, force=force))
    say(f"pool {name}: {_content(content)}")
    if not yes:
        _confirm(name, settings)
    deleted, left = asyncio.run(_delete(settings, name))
    say(f"deleted pool {name}: {_counted(deleted, 'key')}")
    if left:
        raise DeployError(
            f"pool {name} has {_counted(left, 'key')} again: stop the processes that write them, and try again"
        )


def _confirm(name: str, etcd: "EtcdSettings") -> None:
    try:
        agreed = click.confirm(f"Delete all of it from etcd at {', '.join(etcd.endpoints)}?")
    except click.Abort:
        raise DeployError(f"no confirmation, so pool {name} was not deleted: give --yes") from None
    if not agreed:
        raise SystemExit(1)


async def _read(etcd: "EtcdSettings", name: str, *, force: bool) -> "PoolContent":
    from understudy.deploy.data.pools import require_content
    from understudy.deploy.inspect.query import connect

    async with connect(etcd) as client:
        return await require_content(client, name, etcd, force=force)


async def _delete(etcd: "EtcdSettings", name: str) -> tuple[int, int]:
    """How many keys were deleted, and how many exist again."""
    from understudy.deploy.data.pools import delete_pool, read_content
    from understudy.deploy.inspect.query import connect

    async with connect(etcd) as client:
        deleted = await delete_pool(client, name)
        return deleted, (await read_content(client, name)).keys


def _content(content: "PoolContent") -> str:
    """What would be deleted, as text."""
    spec = (f"its spec ({content.slots} slots)" if content.slots else "its spec") if content.made else "no spec"
    parts = [spec, _counted(content.owners, "owner record"), _counted(content.sessions, "session")]
    running = ((content.members, "running member"), (content.controls, "running control server"))
    parts += [_counted(len(names), what) for names, what in running if names]
    return f"{', '.join(parts)}; {_counted(content.keys, 'key')} in all"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
