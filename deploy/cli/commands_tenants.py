"""``understudy tenants``: lists tenants with what they use, sets their quotas, and deletes them."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from understudy.deploy.cli.watching import watch_option
from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.operator import reason_option, this_operator
from understudy.deploy.common.options import (
    EtcdOptions,
    F,
    etcd_options,
    examples,
    list_output_option,
    require_name,
    show,
)
from understudy.deploy.common.printable import say

if TYPE_CHECKING:
    from rich.console import RenderableType

    from understudy.statesync.etcd.settings import EtcdSettings
    from understudy.statesync.tenants.tenant import Tenant


@click.group(
    invoke_without_command=True,
    epilog=examples(
        "understudy tenants",
        "understudy tenants -o json",
        "understudy tenants set acme --pools 5 --slots 2048 --sessions 1000000",
        "understudy tenants delete acme",
    ),
)
@watch_option
@etcd_options
@list_output_option
@click.pass_context
def tenants(context: click.Context, etcd: EtcdOptions, output: str) -> None:
    """List tenants: what their pools have by their specs, and what they may have.

    A pool says its tenant in its spec (tenant: acme). The specs of a tenant's pools together stay within its quotas.
    """
    if context.invoked_subcommand is None:
        view = asyncio.run(_list(etcd.here()))
        show(output, view, _table, lambda view: [row["tenant"] for row in view["tenants"]])
        return
    if any(context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in context.params):
        raise DeployError(f"give options after the command: 'understudy tenants {context.invoked_subcommand} ...'")


async def _list(etcd: "EtcdSettings") -> dict[str, Any]:
    from understudy.deploy.data.tenants import tenants_view
    from understudy.deploy.inspect.query import connect

    async with connect(etcd) as client:
        return await tenants_view(client)


def _table(view: dict[str, Any]) -> "RenderableType":
    from understudy.deploy.common.console_style import plain_table
    from understudy.statesync.tenants.tenant import QUOTAS

    if not view["tenants"]:
        return "no tenant has quotas: set some with 'understudy tenants set NAME --pools N'"
    table = plain_table("tenant", *QUOTAS, "own")
    for row in view["tenants"]:
        cells = [f"{row['used'][what]} of {_limit(row['quotas'][what])}" for what in QUOTAS]
        table.add_row(row["tenant"], *cells, ", ".join(row["own"]) or "any")
    return table


def _limit(limit: int | None) -> str:
    return "any" if limit is None else str(limit)


def _quota(name: str, text: str) -> Callable[[F], F]:
    return click.option(f"--{name}", type=click.IntRange(min=0), help=f"{text} Default: no quota.")


@tenants.command(
    "set",
    epilog=examples(
        "understudy tenants set acme --pools 5 --slots 2048 --sessions 1000000 --bytes 4000000000",
        "understudy tenants set acme --writes 5000 --requests 20000 --own 'acme-*' --reason 'contract of May'",
    ),
)
@click.argument("name", metavar="TENANT")
@_quota("pools", "Pools that it may have.")
@_quota("slots", "Slots of all its pools.")
@_quota("sessions", "Sessions of all its pools (sum of limits.sessions).")
@_quota("bytes", "Bytes of all its sessions (sum of limits.total_bytes).")
@_quota("writes", "Writes a second of all its pools (sum of limits.writes_per_second).")
@_quota("requests", "Requests a second of all its pools at each front Envoy (sum of limits.requests_per_second).")
@click.option(
    "--own", multiple=True, help="Name of its pools, or their beginning ('acme-*'); repeatable. Default: any."
)
@click.option("--force", is_flag=True, help="Set quotas that are lower than what its pools have.")
@reason_option
@etcd_options
def set_(name: str, own: tuple[str, ...], force: bool, reason: str, etcd: EtcdOptions, **quotas: int | None) -> None:
    """Set the quotas of TENANT and the names of its pools, all of them: what is not given is not limited.

    Running pools are not touched. Quotas hold for specs that are applied from now on, and for pools that control
    servers begin to serve.
    """
    from understudy.statesync.tenants.tenant import Tenant

    require_name("TENANT", name)
    tenant = Tenant(name, **quotas, own=own)
    result = asyncio.run(_set(etcd.here(), tenant, reason, force=force))
    say(f"tenant {name}: {result}")


async def _set(etcd: "EtcdSettings", tenant: "Tenant", reason: str, *, force: bool) -> str:
    from understudy.deploy.data.tenants import set_tenant
    from understudy.deploy.inspect.query import connect

    async with connect(etcd) as client:
        return await set_tenant(client, tenant, this_operator("tenants set", etcd), reason, force=force)


@tenants.command(epilog=examples("understudy tenants delete acme --reason 'contract ended'"))
@click.argument("name", metavar="TENANT")
@reason_option
@etcd_options
def delete(name: str, reason: str, etcd: EtcdOptions) -> None:
    """Delete the quotas of TENANT. Its pools stay as they are, and only their own limits hold."""
    require_name("TENANT", name)
    asyncio.run(_delete(etcd.here(), name, reason))
    say(f"tenant {name}: deleted; its pools stay, without quotas")


async def _delete(etcd: "EtcdSettings", name: str, reason: str) -> None:
    from understudy.deploy.data.tenants import delete_tenant
    from understudy.deploy.inspect.query import connect

    async with connect(etcd) as client:
        await delete_tenant(client, name, this_operator("tenants delete", etcd), reason)
