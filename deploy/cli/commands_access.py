"""``understudy access``: tokens for the HTTP port of control servers, and roles for etcd."""

import asyncio
import hashlib
import json
import re
import secrets
from typing import TYPE_CHECKING

import click

from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.options import EtcdOptions, etcd_options, examples, report_output_option, require_name
from understudy.deploy.common.printable import say
from understudy.xds.control.rights import EVERY, Right

if TYPE_CHECKING:
    from understudy.statesync.etcd.settings import EtcdSettings
    from understudy.statesync.tenants.tenant import Tenant

RIGHTS = tuple(right.name.lower() for right in Right)
TOKEN_BYTES = 32
_USER = re.compile(r"[A-Za-z0-9._@-]+")


@click.group(
    epilog=examples(
        "understudy access token anna --tenant acme --right operator",
        "understudy access etcd acme --right operator --user anna",
    )
)
def access() -> None:
    """Give people and programs rights: at the HTTP port of control servers, and in etcd."""


@access.command(
    epilog=examples(
        "understudy access token anna --tenant acme --right operator",
        "understudy access token prometheus --tenant '*' --right reader -o json",
    )
)
@click.argument("name")
@click.option(
    "--tenant",
    "tenants",
    multiple=True,
    required=True,
    help="Tenant whose pools the right is for, or '*' for all pools; repeatable.",
)
@click.option("--right", type=click.Choice(RIGHTS), required=True, help="What NAME may do with these pools.")
@report_output_option
def token(name: str, tenants: tuple[str, ...], right: str, output: str) -> None:
    """Make a token for NAME, and the entry for the rights file of control servers (--rights).

    Nothing is stored. The token goes to stdout, once: NAME keeps it in a file with mode 0600 and names that file in
    UNDERSTUDY_CONTROL_TOKEN_FILE. The entry has only its SHA-256 and goes to stderr; append it to the rights file. With
    -o json both go to stdout.
    """
    for tenant in tenants:
        if tenant != EVERY:
            require_name("--tenant", tenant)
    if not name.isprintable() or not name.strip():
        raise DeployError("NAME: printable characters")
    made = secrets.token_urlsafe(TOKEN_BYTES)
    digest = f"sha256:{hashlib.sha256(made.encode()).hexdigest()}"
    entry = {"name": name, "token": digest, "tenants": dict.fromkeys(tenants, right)}
    if output == "json":
        click.echo(json.dumps({"token": made, "entry": entry}, indent=2))
        return
    say(made)
    say(f"- {json.dumps(entry)}", err=True)


@access.command(
    epilog=examples(
        "understudy access etcd acme --right operator --user anna",
        "understudy access etcd acme --right admin --user acme-admin | sh",
    )
)
@click.argument("tenant")
@click.option("--right", type=click.Choice(RIGHTS), required=True, help="What the role may do with TENANT's pools.")
@click.option("--user", "users", multiple=True, help="User of etcd who gets the role; repeatable. Default: none.")
@etcd_options
def etcd(tenant: str, right: str, users: tuple[str, ...], etcd: EtcdOptions) -> None:
    """Print the etcdctl lines that make a role for TENANT's pools in etcd. Nothing is changed.

    The tenant needs names of pools ('understudy tenants set --own'). Roles of readers and operators are for the pools
    that exist: print them again when a pool was added. The users must exist ('etcdctl user add').
    """
    from understudy.deploy.common.etcd_roles import commands, permissions, role_of

    require_name("TENANT", tenant)
    unfit = next((user for user in users if not _USER.fullmatch(user)), None)
    if unfit is not None:
        raise DeployError(f"--user {unfit!r}: a name here has letters, digits and . _ @ - only")
    record, pools = asyncio.run(_tenant_of(etcd.here(), tenant))
    wanted = Right[right.upper()]
    for line in commands(role_of(tenant, wanted), permissions(record, wanted, pools), users):
        say(line)


async def _tenant_of(etcd: "EtcdSettings", name: str) -> "tuple[Tenant, list[str]]":
    """A tenant and the names of its pools that exist."""
    from understudy.deploy.inspect.query import connect
    from understudy.statesync.pool.pools import names_within
    from understudy.statesync.tenants.keys import range_of
    from understudy.statesync.tenants.read import TenantUnknown, read_tenant

    async with connect(etcd) as client:
        try:
            tenant = await read_tenant(client, name)
        except TenantUnknown as error:
            raise DeployError(str(error)) from None
        if tenant is None or not tenant.own:
            raise DeployError(
                f"tenant {name} has no names of pools, so etcd cannot tell its keys: "
                f"'understudy tenants set {name} --own ...'"
            )
        return tenant, [pool for one in tenant.own for pool in await names_within(client, range_of(one))]
