"""How many streams clients may have open on the gRPC port: per connection, per address, and in all.

Each open stream costs about 30 KB, and a client needs one or two. The limit per connection is HTTP/2's own: clients
get it when they connect, and gRPC resets streams past it. Clients that need more streams open another connection. The
quota limits clients that open very many connections: a stream past it ends with ``RESOURCE_EXHAUSTED``.
"""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

logger = logging.getLogger(__name__)

STREAMS_PER_CONNECTION = 32
"""Envoy has one stream for xDS, and sends its spans and counts over a few short ones."""
HTTP2_LIMIT = (("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION),)
"""Options of a gRPC server: the limit per connection."""
LOG_INTERVAL = 60.0
"""Seconds between two warnings."""
ADDRESS, TOTAL = "address", "total"
"""Which limit was passed; label of the metric."""


@dataclass(frozen=True, slots=True)
class QuotaLimits:
    """How many streams may be open.

    Attributes:
        address: from one IP address. Many clients may share one, behind a proxy. So this is only a part of ``total``
            that leaves room for others.
        total: from all clients.
    """

    address: int = 5_000
    total: int = 10_000


@dataclass(slots=True)
class StreamQuota:
    """Counts the open streams of one service, and refuses those past a limit.

    Attributes:
        limits: how many may be open.
        open: how many are open.
        refused: how many were refused so far, by the limit that they passed.
    """

    limits: QuotaLimits = field(default_factory=QuotaLimits)
    open: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    _by_address: Counter[str] = field(default_factory=Counter)
    _logged: float = float("-inf")

    @contextlib.asynccontextmanager
    async def held(self, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
        """Count one stream while it is open. Ends it with ``RESOURCE_EXHAUSTED`` if there are too many."""
        address = context.peer().rpartition(":")[0]  # ipv4:127.0.0.1 of ipv4:127.0.0.1:40000
        passed = self._passed(address)
        if passed:
            self._count_refusal(passed, address)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"too many open streams ({passed})")
        self._add(address, 1)
        try:
            yield
        finally:
            self._add(address, -1)

    def _passed(self, address: str) -> str:
        """The limit that one more stream would pass, '' for none."""
        if self._by_address[address] >= self.limits.address:
            return ADDRESS
        return TOTAL if self.open >= self.limits.total else ""

    def _add(self, address: str, streams: int) -> None:
        self.open += streams
        self._by_address[address] += streams
        if not self._by_address[address]:
            del self._by_address[address]

    def _count_refusal(self, passed: str, address: str) -> None:
        self.refused[passed] += 1
        now = time.monotonic()
        if now - self._logged >= LOG_INTERVAL:
            self._logged = now
            logger.warning(
                "streams from %s are refused: too many are open (limit per %s: %d)",
                *(address, passed, getattr(self.limits, passed)),
            )
