"""``understudy leave``: asks the sidecar of this pod to hand over all slots. Made for preStop hooks.

It must start fast, because the pod's grace period is running: it imports only the standard library and click.
"""

import http.client
import json
import socket
import time
from pathlib import Path

import click

from understudy.deploy.common.errors import DeployError, NegativeAnswer
from understudy.deploy.common.options import address_or_socket, examples, shown_option
from understudy.statesync.http.headers import ADMIN_HEADER, ADMIN_VALUE
from understudy.statesync.pool.addresses import split_address
from understudy.statesync.tls.secret_files import fault_of, read_secret

UNTIL = ("handed-over", "application-gone")
TIMEOUT_MARGIN = 5.0
"""Seconds that an answer may take longer than ``--wait``."""


class _UnixConnection(http.client.HTTPConnection):
    """An HTTP connection over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@click.command(
    epilog=examples(
        "understudy leave --wait 20",
        "understudy leave --wait 20 --until application-gone --session-api unix:/run/understudy.sock",
    )
)
@shown_option(
    "--session-api",
    envvar="UNDERSTUDY_SESSION_API",
    default="127.0.0.1:7600",
    callback=address_or_socket,
    help="Session API of the sidecar: HOST:PORT or unix:/path.",
)
@click.option(
    "--session-token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="UNDERSTUDY_SESSION_TOKEN_FILE",
    help="Token file of the sidecar. Required if its session API asks for tokens.",
)
@shown_option(
    "--wait",
    type=click.FloatRange(0, 600),
    default=0.0,
    help="Seconds to wait for the end of the handover; 0: do not wait.",
)
@shown_option(
    "--until",
    type=click.Choice(UNTIL),
    default=UNTIL[0],
    help="What to wait for: the handover of all slots, or also the end of the application.",
)
def leave(session_api: str, session_token_file: Path | None, wait: float, until: str) -> None:
    """Hand over all slots of this pod's member for good, while its application still serves.

    Exit code 1: the handover is not done within --wait, and continues; or the member gave it up. The reason is said.
    """
    began = time.monotonic()
    try:
        done, reason = _ask(session_api, _token(session_token_file), f"/v1/drain?wait={wait:g}&until={until}", wait)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DeployError(f"the sidecar at {session_api} does not answer: {error}; check --session-api") from None
    if not done and wait:
        given_up = time.monotonic() - began < wait
        raise NegativeAnswer(
            f"not done, and given up: {reason}" if given_up else f"not done after {wait:g} s: {reason}"
        )
    if done and reason:
        click.echo(reason, err=True)


def _token(file: Path | None) -> str:
    """The first token of a token file."""
    if file is None:
        return ""
    try:
        lines = [line.strip() for line in read_secret(file).decode().splitlines()]
    except OSError as error:
        raise DeployError(fault_of(error)) from None
    return next((line for line in lines if line and not line.startswith("#")), "")


def _ask(session_api: str, token: str, path: str, wait: float) -> tuple[bool, str]:
    """Call the sidecar. Returns whether the handover is done, and if not, why."""
    if session_api.startswith("unix:"):
        connection: http.client.HTTPConnection = _UnixConnection(
            session_api.removeprefix("unix:"), wait + TIMEOUT_MARGIN
        )
    else:
        host, port = split_address(session_api)
        connection = http.client.HTTPConnection(host, port, timeout=wait + TIMEOUT_MARGIN)
    try:
        authorization = {"Authorization": f"Bearer {token}"} if token else {}
        connection.request("POST", path, headers={ADMIN_HEADER: ADMIN_VALUE, **authorization})
        answer = connection.getresponse()
        reply = json.loads(answer.read())
        if answer.status != 200:
            raise DeployError(f"the sidecar at {session_api} answered {answer.status}: {reply.get('detail', '')}")
        return bool(reply["done"]), str(reply["reason"])
    finally:
        connection.close()
