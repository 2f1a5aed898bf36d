"""Asks control servers at their admin interfaces."""

import asyncio
import re
from collections.abc import Iterable
from http import HTTPStatus
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


async def ask_control(address: str, path: str) -> Any:  # noqa: ANN401 - JSON
    """GET ``path`` from a control server's admin interface; raises :class:`AdminError`."""
    try:
        async with asyncio.timeout(HTTP_TIMEOUT):
            status, content = await _get(address, path)
        if status != HTTPStatus.OK:
            raise AdminError(address, f"{path} answered {status}")
        return read_json(content)
    except (OSError, TimeoutError, ValueError) as error:
        raise AdminError(address, str(error) or "no answer in time") from None


async def _get(address: str, path: str) -> tuple[int, bytes]:
    """Status and content of an answer over HTTP/1.0, whose content ends with its connection (RFC 1945).

    An HTTP library would take longer to import than most commands take in all.
    """
    reader, writer = await asyncio.open_connection(*split_address(address))
    try:
        writer.write(f"GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n".encode())
        head, end, content = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    found = re.match(rb"HTTP/1\.[01] (\d{3})\b", head)
    if not found or not end:
        raise ValueError("its answer is not HTTP")
    return int(found[1]), content


async def ask_controls(addresses: Iterable[str], path: str) -> list[Any]:
    """GET ``path`` from several control servers at once. Returns for each its JSON, or an error text."""

    async def ask(address: str) -> Any:  # noqa: ANN401 - JSON
        try:
            return await ask_control(address, path)
        except AdminError as fault:
            return str(fault)

    return await asyncio.gather(*(ask(address) for address in addresses))
