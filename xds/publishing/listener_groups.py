"""The listeners of front Envoys: one for each group of Envoys with the same node metadata, as the pool's spec wants it.

A group's listener is made when its first Envoy connects, and again when the spec changes its content. The content comes
from :mod:`understudy.xds.envoy.listener` and :mod:`understudy.xds.envoy.tcp_listener`.
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
    from understudy.xds.envoy.tcp_listener import TcpSettings

logger = logging.getLogger(__name__)


def group_of(node: Node) -> str:
    """The group of a front Envoy, by the metadata of its node under ``understudy``.

    The group's name is the address at which the Envoy listens (``listen``), then the cluster of its bootstrap to which
    it reports requests (``telemetry``), if it has one, and ``traced``, if it traces them (``tracing``). Spaces separate
    the parts.
    """
    ours = node.metadata.get("understudy")
    if not isinstance(ours, Mapping):
        return ""
    said = [ours.get("listen"), ours.get("telemetry")]
    words = [word for word in said if isinstance(word, str) and word and " " not in word]
    if not said[0] or len(words) < 2:
        return "".join(words) if said[0] else ""
    return " ".join([*words, "traced"] if ours.get("tracing") is True else words)


class ListenerGroups:
    """Keeps the listener of every group of front Envoys in ``cache``. Its ``on_group`` must be :meth:`set_listener`."""

    def __init__(self, cache: ResourceCache, pool: str) -> None:
        self._cache = cache
        self._pool = pool
        self._tcp: TcpSettings | None = None

    async def set_listener(self, group: str) -> None:
        """Set the listener of a group of Envoys (:func:`group_of`)."""
        from understudy.xds.envoy.listener import listener, listener_name
        from understudy.xds.envoy.tcp_listener import tcp_listener

        listen, telemetry, traced = (*group.split(" "), "", "")[:3]
        try:
            host, port = split_address(listen)
            if self._tcp:
                made = tcp_listener(self._pool, host, port, self._tcp)
            else:
                made = listener(self._pool, host, port, telemetry, traced=bool(traced))
            await self._cache.set(LISTENER, {listener_name(self._pool): made}, group=group)
        except (ValueError, CacheError) as error:
            logger.warning("no listener can be made for Envoys that listen at %r: %s", listen, error)

    async def apply_spec(self, spec: PoolSpec) -> None:
        """Make the listeners as this spec wants them, now and later; its clusters must be in the cache."""
        from understudy.xds.envoy.tcp_listener import tcp_settings

        settings = tcp_settings(spec)
        if settings == self._tcp:
            return
        self._tcp = settings
        for group in self._cache.groups:
            if group:
                await self.set_listener(group)
