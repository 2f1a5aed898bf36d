"""``understudy checks``: a member's checks, at the session API of its own sidecar."""

import asyncio
import os
import re
from collections.abc import Mapping
from typing import Any

import click

from understudy.deploy.cli.commands_admin import duration
from understudy.deploy.common.errors import DeployError, NotFoundError
from understudy.deploy.common.options import KeyCommand, examples, list_output_option, show
from understudy.deploy.common.printable import say
from understudy.statesync.http.headers import ADMIN_HEADER, ADMIN_VALUE
from understudy.statesync.pool.addresses import split_address

PATIENCE = 5.0


def _session_api(_: click.Context, parameter: click.Parameter, value: str) -> str:
    """Option callback: where a session API is, as the sidecar's own option says it or as an application is told."""
    if re.fullmatch(r"https?://[^/\s]+/?|unix:/.+", value):
        return value.rstrip("/")
    try:
        split_address(value, lowest_port=1)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is none of HOST:PORT, http://HOST:PORT or unix:/path", param=parameter
        ) from None
    return f"http://{value}"


def _name(_: click.Context, parameter: click.Parameter, value: str) -> str:
    """Argument callback: what can name a check."""
    from understudy.statesync.sessions.session import valid_key

    if not valid_key(value):
        raise click.BadParameter(f"{value!r}: a check's name has 1 to 256 of a-z A-Z 0-9 - . _ ~ :", param=parameter)
    return value


_where = click.option(
    "--session-api",
    envvar="UNDERSTUDY_URL",
    default="http://127.0.0.1:7600",
    show_default=True,
    callback=_session_api,
    help="The sidecar's session API: HOST:PORT or unix:/path. Its token is taken from UNDERSTUDY_TOKEN.",
)
_which = click.argument("name", callback=_name)


@click.group(
    epilog=examples(
        "understudy checks register db --deadline 10s",
        "understudy checks report db problem --reason 'no connection'",
        "understudy checks list",
    )
)
def checks() -> None:
    """What must be well for this member to serve: register checks, report for them, list them all.

    A check that reports a problem, or nothing within its deadline, takes the member out of service at once. One that
    says init keeps a member without slots from getting any. The last member that could serve goes on all the same.
    """


@checks.command(cls=KeyCommand, epilog=examples("understudy checks register db --deadline 10s"))
@_which
@click.option("--deadline", required=True, callback=duration, metavar="TIME", help="Reports come at least so often.")
@_where
def register(name: str, deadline: float, session_api: str) -> None:
    """Have a check NAME from now on; it is init until its first report."""
    view = _call(session_api, "PUT", f"/{name}", {"deadline_seconds": deadline})
    say(f"check {name} is registered: {view['state']}, a report is due every {deadline:g} s")


@checks.command(
    cls=KeyCommand,
    epilog=examples("understudy checks report db ok", "understudy checks report db problem --reason 'no connection'"),
)
@_which
@click.argument("state", type=click.Choice(["ok", "init", "problem"]))
@click.option("--reason", default="", help="Why, in words for people.")
@_where
def report(name: str, state: str, reason: str, session_api: str) -> None:
    """Say how the check NAME is. Exits with 1 if nobody has registered it."""
    _call(session_api, "POST", f"/{name}", {"state": state, "reason": reason})


@checks.command(cls=KeyCommand, epilog=examples("understudy checks remove db"))
@_which
@_where
def remove(name: str, session_api: str) -> None:
    """Forget the check NAME. Exits with 1 if nobody has registered it."""
    _call(session_api, "DELETE", f"/{name}")


@checks.command("list", epilog=examples("understudy checks list", "understudy checks list -o json"))
@list_output_option
@_where
def list_checks(output: str, session_api: str) -> None:
    """All checks of this member, the sidecar's own too. Exits with 1 if one of them is a problem."""
    view = _call(session_api, "GET", "")
    show(output, view, _table, lambda view: [check["name"] for check in view["checks"]])
    if any(check["state"] == "problem" for check in view["checks"]):
        raise SystemExit(1)


def _table(view: Mapping[str, Any]) -> Any:  # noqa: ANN401 - rich is loaded only here
    from rich.table import Table

    table = Table("check", "state", "reason", "deadline s", "reported s ago", "by", box=None)
    for check in view["checks"]:
        numbers = (str(check.get(name, "")) for name in ("deadline_seconds", "reported_seconds_ago"))
        table.add_row(check["name"], check["state"], check["reason"], *numbers, check["source"])
    return table


def _call(where: str, method: str, path: str, body: object = None) -> dict[str, Any]:
    """Ask the sidecar. Raises :class:`DeployError`, or :class:`NotFoundError` for a check that is not there."""
    return asyncio.run(_asked(where, method, path, body))


async def _asked(where: str, method: str, path: str, body: object) -> dict[str, Any]:
    import aiohttp

    unix = where.removeprefix("unix:") if where.startswith("unix:") else ""
    base = "http://sidecar" if unix else where
    token = os.environ.get("UNDERSTUDY_TOKEN")
    headers = {ADMIN_HEADER: ADMIN_VALUE, **({"Authorization": f"Bearer {token}"} if token else {})}
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(unix) if unix else None,
                timeout=aiohttp.ClientTimeout(total=PATIENCE),
                headers=headers,
            ) as http,
            http.request(method, f"{base}/v1/checks{path}", json=body) as answer,
        ):
            content = await answer.json(content_type=None) if answer.status != 204 else {}
    except (aiohttp.ClientError, TimeoutError) as error:
        why = str(error) or f"nothing within {PATIENCE:g} s"
        raise DeployError(f"no sidecar answers at {where} ({why}): name its session API with --session-api") from None
    except ValueError:
        content = None  # no JSON
    told: dict[str, Any] = content if isinstance(content, dict) else {}
    if answer.status == 204 or (answer.status < 400 and ("checks" in told or "state" in told)):
        return told
    problem = str(told.get("type", "")).rpartition("/")[2]
    if problem == "no-such-check":
        raise NotFoundError(str(told["detail"]))
    if problem and problem != "not-found" and "detail" in told:
        raise DeployError(str(told["detail"]))
    raise DeployError(
        f"what answers at {where} is no sidecar's session API (status {answer.status}): name that with --session-api"
    )
