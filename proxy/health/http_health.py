"""The health check of an application by HTTP/1.1: a GET ten times a second, over one connection that stays open.

aiohttp's client takes five times the CPU for such a check, and does not tell that an idle connection has ended. Here
the end of the connection is the first sign of a killed application. An answer counts when its head is here (RFC 9112,
2.1). Redirects are not followed: they are an answer.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable
from typing import cast

from yarl import URL

from understudy.statesync.pool.addresses import split_address

HEAD_MOST = 65_536
"""Bytes of the head of an answer."""
KEPT_FROM = 3
"""Answers on one connection from which on its end means something: some applications end each after one or two."""
_STATUS = re.compile(rb"HTTP/1\.([01]) (\d{3})[ \r]")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,15})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[^\r]*\bclose\b", re.IGNORECASE)
_NO_CONTENT = {204, 304}
_END = b"\r\n\r\n"


class _Connection(asyncio.Protocol):
    """One connection, and the answer that is awaited on it."""

    def __init__(self, on_end: Callable[[], None]) -> None:
        self._on_end = on_end
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._content_left = 0
        self._status: asyncio.Future[int] | None = None
        self.answers = 0
        self.usable = True
        """Whether another question may be sent: the last answer is here in whole, and the connection stays open."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        was_kept, self.usable = self.usable and self.answers >= KEPT_FROM, False
        if self._status is not None and not self._status.done():
            self._status.set_exception(ConnectionResetError(str(exc or "the connection was closed without an answer")))
        elif was_kept:
            self._on_end()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        status = self._status
        if status is None or status.done():
            self._content_left -= len(data)
            if self._content_left < 0:
                self.close()  # nobody has asked for this
            return
        self._head += data
        while (end := self._head.find(_END) + len(_END)) >= len(_END):
            head, self._head = self._head[:end], self._head[end:]
            if head.startswith((b"HTTP/1.1 1", b"HTTP/1.0 1")):
                continue  # RFC 9110, 15.2: interim
            self._answered(head, self._head, status)
            return
        if len(self._head) > HEAD_MOST:
            self._fail(status, "its head is too long")

    def _answered(self, head: bytes, content: bytes, answer: "asyncio.Future[int]") -> None:
        """RFC 9112, 6.3 tells where an answer ends. Where that is not plain, the connection is not used again."""
        found = _STATUS.match(head)
        if found is None:
            self._fail(answer, "it is not HTTP/1.1")
            return
        status, length = int(found[2]), _LENGTH.search(head)
        if _CHUNKED.search(head):
            whole = content == b"0\r\n\r\n" or content.endswith(b"\r\n0\r\n\r\n")
            self._content_left = 0 if whole else -1
        elif status in _NO_CONTENT:
            self._content_left = -len(content)
        else:
            self._content_left = int(length[1]) - len(content) if length else -1
        self.answers += 1
        answer.set_result(status)
        if self._content_left < 0 or found[1] == b"0" or _CLOSE.search(head):
            self.close()

    def _fail(self, answer: "asyncio.Future[int]", why: str) -> None:
        answer.set_exception(OSError(f"what it sent is no answer: {why}"))
        self.close()

    async def ask(self, question: bytes) -> int:
        """Send the question; the status of its answer. Raises ``OSError`` if there is none."""
        self._head, self._status = b"", asyncio.get_running_loop().create_future()
        if self._transport is not None:
            self._transport.write(question)
        try:
            return await self._status
        except asyncio.CancelledError:
            self.close()  # the answer may still come
            raise

    @property
    def free(self) -> bool:
        """Whether the next question may be sent now."""
        return self.usable and not self._content_left

    def close(self) -> None:
        """End the connection."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()


class HttpHealth:
    """The check of one application. Close it when done.

    Args:
        app: ``host:port``.
        path: where to ask, with its query.
        on_end: called when the application ends a connection that has answered for a while.
    """

    def __init__(self, app: str, path: str, on_end: Callable[[], None]) -> None:
        self._where = split_address(app)
        target = URL(f"http://{app}{path}").raw_path_qs
        fields = f"host: {app}\r\naccept: */*\r\nuser-agent: understudy"
        self._question = f"GET {target} HTTP/1.1\r\n{fields}\r\n\r\n".encode()
        self._on_end = on_end
        self._connection: _Connection | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a connection that the next question can use."""
        return self._connection is not None and self._connection.free

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def ask(self, patience: float) -> str:
        """What the application says, '' if it is well.

        Raises ``TimeoutError`` when it is silent for ``patience`` seconds, ``ConnectionRefusedError`` when nobody
        listens, and another ``OSError`` when there is no answer.
        """
        async with asyncio.timeout(patience):
            status = await self._status()
        return "" if status < 400 else f"answers {status}"

    async def _status(self) -> int:
        connection = self._connection
        if connection is not None and connection.free:
            with contextlib.suppress(OSError):  # the application may have ended it just as we asked
                return await connection.ask(self._question)
        self.close()
        connection = _Connection(self._on_end)
        try:
            await asyncio.get_running_loop().create_connection(lambda: connection, *self._where)
        except OSError as error:
            raise ConnectionRefusedError(str(error)) from None
        self._connection = connection
        return await connection.ask(self._question)
