"""The listeners of front Envoys: one for each group of Envoys with the same node metadata, as the pool's spec wants it.

A group's listener is made when its first Envoy connects, and again when the spec changes its content. The content comes
from :mod:`understudy.xds.envoy.listener` and :mod:`understudy.xds.envoy.tcp_listener`.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from understudy.statesync.pool.addresses import split_address
from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.server.cache import CacheError, ResourceCache
from understudy.xds.server.types import LISTENER
from understudy.xds.server.wire import Node

if TYPE_CHECKING:  # Envoy's message classes take 0.3 s to import: not while a control server starts
    from understudy.xds.envoy.tcp_listener import TcpSettings

logger = logging.getLogger(__name__)


_SITE = "site="


class FrontGroup(msgspec.Struct, frozen=True):
    """What the listener of a group of front Envoys depends on, beside the spec.

    ``listen``: where they accept clients. ``telemetry``: the cluster of their bootstrap to which they report requests;
    '' for none. ``traced``: they trace requests. ``site``: their site; '' for none.
    """

    listen: str
    telemetry: str = ""
    traced: bool = False
    site: str = ""


def group_named(name: str) -> FrontGroup:
    """The group of a name that :func:`group_of` made."""
    words = name.split(" ")
    site = words.pop().removeprefix(_SITE) if words[-1].startswith(_SITE) else ""
    listen, telemetry, traced = (*words, "", "")[:3]
    return FrontGroup(listen, telemetry, bool(traced), site)


def group_of(node: Node) -> str:
    """The group of a front Envoy, by the metadata of its node under ``understudy``.

    The group's name is the address at which the Envoy listens (``listen``), then the cluster of its bootstrap to which
    it reports requests (``telemetry``), if it has one, ``traced``, if it traces them (``tracing``), and its site. The
    site is ``site`` there, or else the zone of its locality, which Envoy's option ``--service-zone`` sets. Spaces
    separate the parts.
    """
    group = _group_without_site(node)
    ours = node.metadata.get("understudy")
    site = (ours.get("site") if isinstance(ours, Mapping) else "") or node.zone
    return f"{group} {_SITE}{site}" if group and isinstance(site, str) and site and " " not in site else group


def _group_without_site(node: Node) -> str:
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
        self._sites: frozenset[str] = frozenset()

    async def set_listener(self, group: str) -> None:
        """Set the listener of a group of Envoys (:func:`group_of`)."""
        from understudy.xds.envoy.listener import listener, listener_name
        from understudy.xds.envoy.tcp_listener import tcp_listener

        wanted = group_named(group)
        try:
            host, port = split_address(wanted.listen)
            if self._tcp:
                made = tcp_listener(self._pool, host, port, self._tcp)
            else:
                site = wanted.site if wanted.site in self._sites else ""
                made = listener(self._pool, host, port, wanted.telemetry, traced=wanted.traced, site=site)
            await self._cache.set(LISTENER, {listener_name(self._pool): made}, group=group)
        except (ValueError, CacheError) as error:
            logger.warning("no listener can be made for Envoys that listen at %r: %s", wanted.listen, error)

    async def apply_spec(self, spec: PoolSpec) -> None:
        """Make the listeners as this spec wants them, now and later; its clusters must be in the cache."""
        from understudy.xds.envoy.tcp_listener import tcp_settings

        settings, sites = tcp_settings(spec), frozenset(spec.sites)
        changed = self._sites ^ sites
        all_change = settings != self._tcp
        self._tcp, self._sites = settings, sites
        await self._set_listeners(changed, all_change=all_change)

    async def leave_sites(self, spec: PoolSpec) -> None:
        """Make listeners that need no routes for sites that this spec lacks, so that these routes can go."""
        gone = self._sites - spec.sites.keys()
        self._sites -= gone
        await self._set_listeners(gone)

    async def _set_listeners(self, sites: frozenset[str], *, all_change: bool = False) -> None:
        """Make the listeners of these sites again, or those of all groups."""
        for group in self._cache.groups:
            if group and (all_change or group_named(group).site in sites):
                await self.set_listener(group)
