"""Limits connections to the webhook: their number, and the time until the first request.

aiohttp limits the time between two requests of a connection, but not the time until the first one. Without a limit,
silent clients could occupy all connections, and API servers would get none.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from weakref import WeakSet

from aiohttp import web

logger = logging.getLogger(__name__)

MOST = 512
FIRST_REQUEST_SECONDS = 10.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Door:
    """Accepts ``most`` connections at once. Each must send a complete request head within ``patience`` seconds."""

    def __init__(self, most: int = MOST, patience: float = FIRST_REQUEST_SECONDS) -> None:
        self._most = most
        self._patience = patience
        self._known: WeakSet[asyncio.BaseTransport] = WeakSet()

    @web.middleware
    async def note(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Middleware: remember the connections that have sent a request."""
        if request.transport is not None:
            self._known.add(request.transport)
        return await handler(request)

    def protocols(self, server: web.Server) -> Callable[[], asyncio.Protocol]:
        """A factory of protocols for new connections to ``server``."""

        def make() -> asyncio.Protocol:
            if len(server.connections) >= self._most:
                return _Refusal()
            made = server()
            asyncio.get_running_loop().call_later(self._patience, self._look, made)
            return made

        return make

    def _look(self, made: asyncio.Protocol) -> None:
        transport: asyncio.Transport | None = getattr(made, "transport", None)
        if transport is not None and transport not in self._known and not transport.is_closing():
            transport.abort()


class _Refusal(asyncio.Protocol):
    """Closes the connection that it is made for."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it."""
        logger.warning("too many connections: a new one was closed")
        if isinstance(transport, asyncio.Transport):
            transport.abort()
