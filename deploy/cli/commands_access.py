"""``understudy access``: makes tokens for the HTTP port of control servers."""

import hashlib
import json
import secrets

import click

from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.options import examples, report_output_option, require_name
from understudy.deploy.common.printable import say
from understudy.xds.control.rights import EVERY, Right

RIGHTS = tuple(right.name.lower() for right in Right)
TOKEN_BYTES = 32


@click.group(
    epilog=examples(
        "understudy access token anna --tenant acme --right operator",
    )
)
def access() -> None:
    """Give people and programs rights: at the HTTP port of control servers."""


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
