"""``understudy checks``: the health checks of a member, through the session API of its sidecar."""

import asyncio
import os
import re
from collections.abc import Mapping
from typing import Any

import click

from understudy.deploy.cli.commands_drain import duration
from understudy.deploy.cli.watching import watch_option
from understudy.deploy.common.errors import DeployError, NegativeAnswer
from understudy.deploy.common.key_command import KeyCommand
from understudy.deploy.common.options import examples, list_output_option, show, shown_option
from understudy.deploy.common.printable import say
from understudy.statesync.http.headers import ADMIN_HEADER, ADMIN_VALUE
from understudy.statesync.pool.addresses import split_address

CALL_TIMEOUT = 5.0


def _session_api(_: click.Context, parameter: click.Parameter, value: str) -> str:
    """Option callback: the address of a session API, as in the sidecar's option or as in UNDERSTUDY_URL."""
    if re.fullmatch(r"https?://[^/\s]+/?|unix:/.+", value):
        return value.rstrip("/")
    try:
        split_address(value, lowest_port=1)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not HOST:PORT, http://HOST:PORT or unix:/path", param=parameter
        ) from None
    return f"http://{value}"


def _name(_: click.Context, parameter: click.Parameter, value: str) -> str:
    """Argument callback: the name of a check."""
    from understudy.statesync.sessions.session import valid_key

    if not valid_key(value):
        raise click.BadParameter(
            f"{value!r}: the name of a check has 1 to 256 characters of a-z A-Z 0-9 - . _ ~ :", param=parameter
        )
    return value


_session_api_option = shown_option(
    "--session-api",
    envvar="UNDERSTUDY_URL",
    default="http://127.0.0.1:7600",
    callback=_session_api,
    help="Session API of the sidecar: HOST:PORT or unix:/path. The token comes from UNDERSTUDY_TOKEN.",
)
_name_argument = click.argument("name", callback=_name)


@click.group(
    epilog=examples(
        "understudy checks register db --deadline 10s",
        "understudy checks report db problem --reason 'no connection'",
        "understudy checks list",
    )
)
def checks() -> None:
    """Register, report, remove and list the health checks of a member.

    A check that reports a problem, or does not report within its deadline, takes the member out of service at once. A
    check in state init prevents a member without slots from getting slots. The last member that can serve stays in
    service even if its checks fail.
    """


@checks.command(cls=KeyCommand, epilog=examples("understudy checks register db --deadline 10s"))
@_name_argument
@click.option(
    "--deadline",
    required=True,
    callback=duration,
    metavar="TIME",
    help="Longest time between two reports, such as 10s or 2m; a check that is late counts as a problem.",
)
@_session_api_option
def register(name: str, deadline: float, session_api: str) -> None:
    """Register the check NAME. Its state is init until its first report."""
    view = _call(session_api, "PUT", f"/{name}", {"deadline_seconds": deadline})
    say(f"check {name} is registered: {view['state']}, a report is due every {deadline:g} s")


@checks.command(
    cls=KeyCommand,
    epilog=examples("understudy checks report db ok", "understudy checks report db problem --reason 'no connection'"),
)
@_name_argument
@click.argument("state", type=click.Choice(["ok", "init", "problem"]))
@click.option("--reason", default="", help="Reason for the state, shown to operators. Default: none.")
@_session_api_option
def report(name: str, state: str, reason: str, session_api: str) -> None:
    """Report the state of the check NAME. Exit code 1: the check is not registered."""
    _call(session_api, "POST", f"/{name}", {"state": state, "reason": reason})


@checks.command(cls=KeyCommand, epilog=examples("understudy checks remove db"))
@_name_argument
@_session_api_option
def remove(name: str, session_api: str) -> None:
    """Remove the check NAME. Exit code 1: the check is not registered."""
    _call(session_api, "DELETE", f"/{name}")


@checks.command("list", epilog=examples("understudy checks list", "understudy checks list -o json"))
@watch_option
@list_output_option
@_session_api_option
def list_checks(output: str, session_api: str) -> None:
    """List all checks of this member, including those of the sidecar. Exit code 1: a check is in state problem."""
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
    """Call the sidecar. Raises :class:`DeployError`, or :class:`NegativeAnswer` if there is no such check."""
    return asyncio.run(_call_async(where, method, path, body))


async def _call_async(where: str, method: str, path: str, body: object) -> dict[str, Any]:
    import aiohttp

    unix = where.removeprefix("unix:") if where.startswith("unix:") else ""
    base = "http://sidecar" if unix else where
    token = os.environ.get("UNDERSTUDY_TOKEN")
    headers = {ADMIN_HEADER: ADMIN_VALUE, **({"Authorization": f"Bearer {token}"} if token else {})}
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(unix) if unix else None,
                timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT),
                headers=headers,
            ) as http,
            http.request(method, f"{base}/v1/checks{path}", json=body) as answer,
        ):
            content = await answer.json(content_type=None) if answer.status != 204 else {}
    except (aiohttp.ClientError, TimeoutError) as error:
        why = str(error) or f"no answer within {CALL_TIMEOUT:g} s"
        raise DeployError(
            f"no sidecar answers at {where} ({why}): set the address of its session API with --session-api"
        ) from None
    except ValueError:
        content = None  # not JSON
    reply: dict[str, Any] = content if isinstance(content, dict) else {}
    if answer.status == 204 or (answer.status < 400 and ("checks" in reply or "state" in reply)):
        return reply
    problem = str(reply.get("type", "")).rpartition("/")[2]
    if problem == "no-such-check":
        raise NegativeAnswer(str(reply["detail"]))
    if problem and problem != "not-found" and "detail" in reply:
        raise DeployError(str(reply["detail"]))
    raise DeployError(
        f"the server at {where} is not the session API of a sidecar (status {answer.status}): set its address with "
        "--session-api"
    )
