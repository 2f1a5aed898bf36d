"""Asks control servers at their admin interfaces.

Who asks is taken from the environment, for all commands alike: ``UNDERSTUDY_CONTROL_TOKEN_FILE`` names a file with a
bearer token; ``UNDERSTUDY_TLS_CA``, ``UNDERSTUDY_TLS_CERT`` and ``UNDERSTUDY_TLS_KEY`` are for servers that speak TLS.
"""

import asyncio
import contextlib
import os
import ssl
from collections.abc import Iterable
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any

from understudy.statesync.parsing.stored import read_json
from understudy.statesync.pool.addresses import split_address
from understudy.statesync.tls.secret_files import fault_of, read_secret, require_secret

HTTP_TIMEOUT = 3.0
TOKEN_VARIABLE = "UNDERSTUDY_CONTROL_TOKEN_FILE"  # noqa: S105 - its name
_SECURE = "https://"


class AdminError(Exception):
    """The admin interface of a control server at ``address`` gave no usable answer; ``detail`` says why."""

    def __init__(self, address: str, detail: str) -> None:
        super().__init__(f"{address}: {detail}")
        self.address = address
        self.detail = detail


async def ask_control(address: str, path: str, pool: str = "") -> Any:  # noqa: ANN401 - JSON
    """GET ``path`` from a control server's admin interface; raises :class:`AdminError`.

    Give the ``pool`` that the path is about: the server may serve several.
    """
    path = f"{path}{'&' if '?' in path else '?'}pool={pool}" if pool else path
    try:
        async with asyncio.timeout(HTTP_TIMEOUT):
            status, content = await asyncio.to_thread(_get, address, path)
        if status != HTTPStatus.OK:
            raise AdminError(
                address,
                _detail(content) if status == HTTPStatus.CONFLICT else f"{path} answered {status}{_remedy(status)}",
            )
        return read_json(content)
    except (OSError, HTTPException, TimeoutError, ValueError) as error:
        raise AdminError(address, str(error) or "no answer in time") from None


def _remedy(status: int) -> str:
    """What to do about a refusal for lack of rights; '' for other answers."""
    if status == HTTPStatus.UNAUTHORIZED:
        return f": give a token that its rights file knows ({TOKEN_VARIABLE}), or a certificate (UNDERSTUDY_TLS_CERT)"
    return ": its rights file does not give you this right" if status == HTTPStatus.FORBIDDEN else ""


def _detail(content: bytes) -> str:
    """What a problem document says; '' if it is none."""
    with contextlib.suppress(ValueError):
        problem = read_json(content)
        if isinstance(problem, dict) and isinstance(problem.get("detail"), str):
            return str(problem["detail"])
    return ""


def _get(address: str, path: str) -> tuple[int, bytes]:
    """Status and content of an answer. http.client, since importing aiohttp takes longer than most commands run."""
    with contextlib.closing(_connection(address)) as connection:
        connection.request("GET", path, headers=_authorization())
        answer = connection.getresponse()
        return answer.status, answer.read()


def _connection(address: str) -> HTTPConnection:
    """A connection to a control server, which says in etcd whether it speaks TLS."""
    host, port = split_address(address.removeprefix(_SECURE))
    if not address.startswith(_SECURE):
        return HTTPConnection(host, port, timeout=HTTP_TIMEOUT)
    ca, cert, key = (os.environ.get(f"UNDERSTUDY_TLS_{part}") for part in ("CA", "CERT", "KEY"))
    context = ssl.create_default_context(cafile=ca)
    if cert and key:
        require_secret(Path(key))
        context.load_cert_chain(cert, key)
    return HTTPSConnection(host, port, timeout=HTTP_TIMEOUT, context=context)


def _authorization() -> dict[str, str]:
    """The header with the token in the file that the environment names, if it names one. Raises ``ValueError``."""
    file = os.environ.get(TOKEN_VARIABLE)
    if not file:
        return {}
    try:
        token = read_secret(Path(file)).decode("ascii").strip()
    except UnicodeDecodeError:
        raise ValueError(f"{file} ({TOKEN_VARIABLE}) holds no token") from None
    except OSError as error:
        raise ValueError(f"{TOKEN_VARIABLE}: {fault_of(error)}") from None
    if not token or not token.isprintable() or " " in token:
        raise ValueError(f"{file} ({TOKEN_VARIABLE}) holds no token")
    return {"Authorization": f"Bearer {token}"}


async def ask_controls(addresses: Iterable[str], path: str, pool: str = "") -> list[Any]:
    """GET ``path`` from several control servers at once. Returns for each its JSON, or an error text.

    See :func:`ask_control`.
    """

    async def ask(address: str) -> Any:  # noqa: ANN401 - JSON
        try:
            return await ask_control(address, path, pool)
        except AdminError as fault:
            return str(fault)

    return await asyncio.gather(*(ask(address) for address in addresses))
