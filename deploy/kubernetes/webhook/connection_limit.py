"""Who may stay connected to the webhook: so many at once, and nobody who asks nothing.

aiohttp limits how long a kept connection may rest between requests, but not how long a new one may take to send its
first: whoever opens connections and says nothing would hold them for ever, and API servers would find none.
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
    """Lets connections in; ``most`` at once, each to have sent a whole request head within ``patience`` seconds."""

    def __init__(self, most: int = MOST, patience: float = FIRST_REQUEST_SECONDS) -> None:
        self._most = most
        self._patience = patience
        self._known: WeakSet[asyncio.BaseTransport] = WeakSet()

    @web.middleware
    async def note(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Middleware: whoever has asked something may stay."""
        if request.transport is not None:
            self._known.add(request.transport)
        return await handler(request)

    def protocols(self, server: web.Server) -> Callable[[], asyncio.Protocol]:
        """What makes the protocol of each new connection to ``server``."""

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
    """Ends the connection that it is made for."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hang up."""
        logger.warning("too many connections: one is refused")
        if isinstance(transport, asyncio.Transport):
            transport.abort()
