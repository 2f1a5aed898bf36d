"""``understudy leave``: tells the sidecar beside it that the end is near. Made for the preStop hooks of pods.

Starts quickly, since a pod's time to end runs meanwhile: nothing but the standard library is loaded.
"""

import http.client
import json
import socket
from pathlib import Path

import click

from understudy.deploy.common.errors import DeployError, NotFoundError
from understudy.deploy.common.options import address_or_socket, examples
from understudy.statesync.http.headers import ADMIN_HEADER, ADMIN_VALUE
from understudy.statesync.pool.addresses import split_address
from understudy.statesync.tls.secret_files import fault_of, read_secret

UNTIL = ("handed-over", "application-gone")
MARGIN = 5.0


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@click.command(
    epilog=examples(
        "understudy leave --wait 20",
        "understudy leave --wait 20 --until application-gone --session-api unix:/run/understudy.sock",
    )
)
@click.option(
    "--session-api",
    envvar="UNDERSTUDY_SESSION_API",
    default="127.0.0.1:7600",
    show_default=True,
    callback=address_or_socket,
    help="Where the sidecar is.",
)
@click.option(
    "--session-token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="UNDERSTUDY_SESSION_TOKEN_FILE",
    help="The sidecar's token file, if it asks for tokens.",
)
@click.option("--wait", type=click.FloatRange(0, 600), default=0.0, show_default=True, help="Seconds to wait for it.")
@click.option("--until", type=click.Choice(UNTIL), default=UNTIL[0], show_default=True, help="What to wait for.")
def leave(session_api: str, session_token_file: Path | None, wait: float, until: str) -> None:
    """Have this pod's member hand its slots over for good, while its application still serves.

    Exit code 1 if that is not done within --wait; it goes on nevertheless.
    """
    try:
        done, reason = _ask(session_api, _token(session_token_file), f"/v1/drain?wait={wait:g}&until={until}", wait)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DeployError(f"the sidecar at {session_api} cannot be asked: {error}; is --session-api right?") from None
    if not done and wait:
        raise NotFoundError(f"not done after {wait:g} s: {reason}")


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
    """Whether it is done, and why not."""
    if session_api.startswith("unix:"):
        connection: http.client.HTTPConnection = _UnixConnection(session_api.removeprefix("unix:"), wait + MARGIN)
    else:
        host, port = split_address(session_api)
        connection = http.client.HTTPConnection(host, port, timeout=wait + MARGIN)
    try:
        shown = {"Authorization": f"Bearer {token}"} if token else {}
        connection.request("POST", path, headers={ADMIN_HEADER: ADMIN_VALUE, **shown})
        answer = connection.getresponse()
        said = json.loads(answer.read())
        if answer.status != 200:
            raise DeployError(f"the sidecar at {session_api} says {answer.status}: {said.get('detail', '')}")
        return bool(said["done"]), str(said["reason"])
    finally:
        connection.close()
