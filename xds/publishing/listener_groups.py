"""The listeners of front Envoys: one per group of Envoys that say the same of themselves, as the pool's spec wants it.

A group's listener is made when its first Envoy connects, and again when the spec changes what is in it. Leaves the
content of a listener to :mod:`understudy.xds.envoy.listener` and :mod:`understudy.xds.envoy.tcp`.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from understudy.statesync.pool.addresses import split_address
from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.server.cache import CacheError, ResourceCache
from understudy.xds.server.types import LISTENER
from understudy.xds.server.wire import Node

if TYPE_CHECKING:  # Envoy's message classes take 0.3 s to import: not while a control server starts
    from understudy.xds.envoy.tcp import TcpTerms

logger = logging.getLogger(__name__)


def listen_of(node: Node) -> str:
    """The group of a front Envoy, by the metadata of its node under ``understudy``.

    It is where the Envoy says that it listens (``listen``) and, after a space, the cluster of its bootstrap through
    which it reports requests (``telemetry``), if it has one, and ``traced``, if it is to trace them (``tracing``).
    """
    ours = node.metadata.get("understudy")
    if not isinstance(ours, Mapping):
        return ""
    said = [ours.get("listen"), ours.get("telemetry")]
    words = [word for word in said if isinstance(word, str) and word and " " not in word]
    if not said[0] or len(words) < 2:
        return "".join(words) if said[0] else ""
    return " ".join([*words, "traced"] if ours.get("tracing") is True else words)


class Fronts:
    """Keeps the listener of every group of front Envoys in ``cache``; ``give`` is to be its ``on_group``."""

    def __init__(self, cache: ResourceCache, pool: str) -> None:
        self._cache = cache
        self._pool = pool
        self._terms: TcpTerms | None = None

    async def give(self, group: str) -> None:
        """Set the listener of the Envoys of a group (:func:`listen_of`)."""
        from understudy.xds.envoy.listener import listener, listener_name
        from understudy.xds.envoy.tcp import tcp_listener

        listen, telemetry, traced = (*group.split(" "), "", "")[:3]
        try:
            host, port = split_address(listen)
            if self._terms:
                made = tcp_listener(self._pool, host, port, self._terms)
            else:
                made = listener(self._pool, host, port, telemetry, traced=bool(traced))
            await self._cache.set(LISTENER, {listener_name(self._pool): made}, group=group)
        except (ValueError, CacheError) as error:
            logger.warning("no listener for an Envoy that would listen at %r: %s", listen, error)

    async def follow(self, spec: PoolSpec) -> None:
        """From now on listeners are as this spec wants them; its clusters must be in the cache."""
        from understudy.xds.envoy.tcp import tcp_terms

        terms = tcp_terms(spec)
        if terms == self._terms:
            return
        self._terms = terms
        for group in self._cache.groups:
            if group:
                await self.give(group)
