"""Asks control servers at their admin interfaces."""

import asyncio
import contextlib
from collections.abc import Iterable
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Any

from understudy.statesync.parsing.stored import read_json
from understudy.statesync.pool.addresses import split_address

HTTP_TIMEOUT = 3.0


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
    path = f"{path}?pool={pool}" if pool else path
    try:
        async with asyncio.timeout(HTTP_TIMEOUT):
            status, content = await asyncio.to_thread(_get, address, path)
        if status != HTTPStatus.OK:
            raise AdminError(address, f"{path} answered {status}")
        return read_json(content)
    except (OSError, HTTPException, TimeoutError, ValueError) as error:
        raise AdminError(address, str(error) or "no answer in time") from None


def _get(address: str, path: str) -> tuple[int, bytes]:
    """Status and content of an answer. http.client, since importing aiohttp takes longer than most commands run."""
    connection = HTTPConnection(*split_address(address), timeout=HTTP_TIMEOUT)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()


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
