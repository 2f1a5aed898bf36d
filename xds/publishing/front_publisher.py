"""Puts the parts of several pools into the xDS cache of the front Envoys that serve them.

Changes of health go at once, as one update of endpoints. Any other change makes a new composition
(:mod:`understudy.xds.publishing.front_parts`); between two of them is a pause, so that a burst of changes costs one. A
listener that comes or goes is set between two compositions, so nothing that serves points at what is gone. A part that
an Envoy rejects is held (:mod:`understudy.xds.publishing.front_holds`).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping

from understudy.statesync.pool.addresses import split_address
from understudy.xds.publishing.front_holds import FrontHolds, Held
from understudy.xds.publishing.front_parts import Composer, Composition, FrontPart, TcpPort
from understudy.xds.publishing.listener_groups import group_named
from understudy.xds.publishing.publisher import MERGE_SECONDS
from understudy.xds.server.cache import CacheError, ResourceCache
from understudy.xds.server.events import AckEvent
from understudy.xds.server.types import ENDPOINTS, LISTENER

logger = logging.getLogger(__name__)

SHARE_OF_TIME = 5.0
"""The pause after a composition is at least this many times as long as it took."""


class FrontPublisher:
    """Keeps a cache in step with the parts of the pools that its Envoys serve.

    Args:
        cache: what the Envoys' streams are served from; its ``on_group`` must be :meth:`set_listeners`.
        pools: the pools that the Envoys serve; none for all.
        parts: the last part of each pool of this control server, by its name. It is only read here.
        newest_first: orders pools by how new their specs are.
        on_proven: called with parts that Envoys have accepted for some time, of specs not known to be accepted.
        on_hold: called with the name of a pool when its newest part is held, for another reason, or no more.
    """

    def __init__(
        self,
        cache: ResourceCache,
        pools: frozenset[str],
        parts: Mapping[str, FrontPart],
        newest_first: Callable[[Iterable[str]], list[str]] = sorted,
        on_proven: Callable[[FrontPart], None] = lambda _: None,
        on_hold: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._cache = cache
        self._pools = pools
        self._parts = parts
        self._composer = Composer()
        self._composition = Composition()
        self._composed: dict[str, FrontPart] = {}
        self._seen: dict[str, FrontPart] | None = None
        self._holds = FrontHolds(newest_first)
        self._on_proven = on_proven
        self._on_hold = on_hold
        self._timer: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._published = asyncio.Event()
        self._next_at = 0.0

    def wake(self) -> None:
        """A part may have changed."""
        self._wake.set()

    def _wanted(self) -> dict[str, FrontPart]:
        return {pool: part for pool, part in self._parts.items() if not self._pools or pool in self._pools}

    @property
    def is_current(self) -> bool:
        """Whether the cache holds the parts as they are now, except those that are held."""
        return self._seen == self._wanted()

    async def settled(self) -> None:
        """Return once the cache holds the parts as they are now."""
        while not self.is_current:
            await self._published.wait()

    def answered(self, event: AckEvent) -> None:
        """An Envoy acknowledged or rejected a response."""
        before = dict(self._holds.held)
        if self._holds.answered(event, time.monotonic()):
            self.wake()
        self._tell_holds(before)
        self._set_timer(time.monotonic())

    def _tell_holds(self, before: Mapping[str, Held]) -> None:
        """Tell of the pools that are held, or are not any more, since ``before``."""
        after = self._holds.held
        for pool in sorted(before.keys() | after.keys()):
            if before.get(pool) == after.get(pool):
                continue
            if pool in after:
                logger.error("pool %s: %s", pool, self._holds.fault(pool))
            else:
                logger.info("pool %s: front Envoys get its newest configuration again", pool)
            self._on_hold(pool)

    def fault(self, pool: str) -> str:
        """Why Envoys do not get what a pool published last; '' if they do."""
        return self._holds.fault(pool)

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            newest = self._wanted()
            parts = self._choose(newest)
            await self._publish_health(parts)
            if self._same_but_health(parts):
                self._composed, self._seen = parts, newest
                self._tell()
            elif (pause := self._next_at - time.monotonic()) > 0:
                asyncio.get_running_loop().call_later(pause, self.wake)
            else:
                await self._compose(parts, newest)

    async def compose_now(self) -> None:
        """Publish the parts as they are now; for the first time, before Envoys are served."""
        newest = self._wanted()
        await self._compose(self._choose(newest), newest)

    def _choose(self, newest: Mapping[str, FrontPart]) -> dict[str, FrontPart]:
        """The parts to publish, and a timer for when that may be others."""
        now, before = time.monotonic(), dict(self._holds.held)
        chosen = self._holds.choose(newest, now)
        self._tell_holds(before)
        for part in self._holds.proven(now):
            self._on_proven(part)
        self._set_timer(now)
        return chosen

    def _set_timer(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        waits = [wait for wait in (self._holds.wake_in(now), self._holds.proven_in(now)) if wait is not None]
        self._timer = asyncio.get_running_loop().call_later(min(waits), self.wake) if waits else None

    def _tell(self) -> None:
        self._published.set()
        self._published = asyncio.Event()

    def _same_but_health(self, parts: Mapping[str, FrontPart]) -> bool:
        before = self._composed
        return parts.keys() == before.keys() and all(part.same_but_health(before[pool]) for pool, part in parts.items())

    async def _publish_health(self, parts: Mapping[str, FrontPart]) -> None:
        """Publish changed endpoints that Envoys have already; others come with their clusters."""
        held = self._composition.resources.get(ENDPOINTS, {})
        changed = {
            name: one
            for pool, part in parts.items()
            if pool in self._composed and part.endpoints is not self._composed[pool].endpoints
            for name, one in part.endpoints.resources.items()
            if name in held and held[name].version != one.version
        }
        if not changed:
            return
        await self._cache.update(ENDPOINTS, changed)
        resources = {**self._composition.resources, ENDPOINTS: {**held, **changed}}
        self._composition = Composition(resources, self._composition.ports)

    async def _compose(self, parts: dict[str, FrontPart], newest: dict[str, FrontPart]) -> None:
        began = time.monotonic()
        new, old = self._composer.compose(parts.values()), self._composition
        self._holds.offered(new.pools_of)
        try:
            if new.ports != old.ports:
                await self._cache.set_all(new.beside(old))
                self._composition = new
                for group in self._cache.groups:
                    if group:
                        await self.set_listeners(group)
            await self._cache.set_all(new.resources)
        except CacheError:
            logger.exception("front Envoys of several pools keep what they have, since the new content is not valid")
            return
        finally:
            took = time.monotonic() - began
            self._next_at = began + took + max(MERGE_SECONDS, SHARE_OF_TIME * took)
        self._composition, self._composed, self._seen = new, parts, newest
        self._tell()

    async def set_listeners(self, group: str) -> None:
        """Set the listeners of a group of Envoys (:func:`understudy.xds.publishing.listener_groups.group_of`)."""
        wanted = group_named(group)
        try:
            host, _ = split_address(wanted.listen)
            made = _listeners(self._composition, host, wanted.telemetry, traced=wanted.traced)
            await self._cache.set(LISTENER, made, group=group)
        except (ValueError, CacheError) as error:
            logger.warning("no listeners can be made for Envoys that listen at %r: %s", wanted.listen, error)


def _listeners(composition: Composition, address: str, telemetry: str, *, traced: bool) -> dict[str, bytes]:
    from understudy.xds.envoy.front_listener import port_listener, port_listener_name
    from understudy.xds.envoy.listener import listener_name
    from understudy.xds.envoy.tcp_listener import tcp_listener

    made = {}
    for one in composition.ports:
        if isinstance(one, TcpPort):
            made[listener_name(one.pool)] = tcp_listener(one.pool, address, one.port, one.settings)
        else:
            made[port_listener_name(one.port)] = port_listener(address, one, telemetry, traced=traced)
    return made
