"""Brings what Envoy is told into the resource cache: health at once, everything else merged.

A change of health becomes one small EDS update (and, for a mesh, one of its routes), whatever else is under way.
Other changes wait until 30 ms have passed since the last publication, so a burst costs one; after a quiet time the
first of them goes at once. Equal content is never set again. Resources that were never encoded before are encoded in a
thread first, so that heartbeats are not held up by it. Nothing is published before the world is known. Order on the
wire and acknowledgement are the cache's.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.envoy.pool_view import Endpoint, PoolView
from understudy.xds.membership.cluster_state import World, pool_view
from understudy.xds.server.cache import CacheError, ResourceCache
from understudy.xds.server.types import ENDPOINTS, ROUTES

logger = logging.getLogger(__name__)

MERGE_SECONDS = 0.03


@dataclass(frozen=True, slots=True)
class Shape:
    """The part of a view that makes clusters and routes: everything but health."""

    spec: PoolSpec
    addresses: Mapping[str, Endpoint]
    orders: Sequence[tuple[str, ...]]
    late: bool


def shape_of(view: PoolView) -> Shape:
    """The shape of a view."""
    addresses = {name: replace(one, healthy=True) for name, one in view.members.items()}
    return Shape(view.spec, addresses, view.orders, view.late)


async def nothing_more(_: PoolSpec) -> None:
    """For who has nothing to do with a spec that is published."""


class Publisher:
    """Keeps a cache in step with the world.

    Args:
        cache: what the xDS streams are served from.
        look: the world as it is now, or None while nothing can be said.
        on_publish: called after each publication, of health too.
        on_spec: awaited with the spec of each publication but of health, before ``on_publish`` is called.
        merge: seconds between publications of anything but health.
    """

    def __init__(
        self,
        cache: ResourceCache,
        look: Callable[[], World | None],
        *,
        on_publish: Callable[[], None],
        on_spec: Callable[[PoolSpec], Awaitable[None]] = nothing_more,
        merge: float = MERGE_SECONDS,
    ) -> None:
        self._cache = cache
        self._look = look
        self._on_publish = on_publish
        self._on_spec = on_spec
        self._merge = merge
        self._awake = asyncio.Event()
        self._moved = asyncio.Event()
        self._published: PoolView | None = None
        self._shape: Shape | None = None
        self._resources: Mapping[str, Mapping[str, bytes]] = {}
        self._warming: asyncio.Task[None] | None = None
        self._at = 0.0
        self.publications = 0
        self.fault = ""

    def wake(self) -> None:
        """The world may have changed."""
        self._awake.set()

    @property
    def current(self) -> bool:
        """Whether the cache holds what the world is now."""
        world = self._look()
        return world is not None and self._published == pool_view(world)

    async def settled(self) -> None:
        """Return once the cache holds what the world is now."""
        while not self.current:
            await self._moved.wait()

    async def run(self) -> None:
        """Publish until cancelled."""
        try:
            while True:
                await self._awake.wait()
                self._awake.clear()
                world = self._look()
                if world is not None:
                    await self._follow(pool_view(world))
        finally:
            if self._warming is not None:
                self._warming.cancel()

    async def _follow(self, view: PoolView) -> None:
        await self._publish_health(view)
        shape = shape_of(view)
        ready = self._warming is not None and self._warming.done()
        if shape == self._shape:
            self._warming = None if ready else self._warming
        elif self._warming is None:
            self._warming = asyncio.create_task(self._warm(view))
            self._warming.add_done_callback(lambda _: self.wake())
        elif ready:
            self._warming = None
            await self._publish(view, shape)

    async def _warm(self, view: PoolView) -> None:
        """Wait out the merging time and have everything of a view encoded, so that building it again is quick."""
        since = asyncio.get_running_loop().time() - self._at
        await asyncio.gather(
            asyncio.sleep(self._merge - since if self._at else 0),
            # What cannot be built is told when it is to be published.
            asyncio.gather(asyncio.to_thread(_build, view), return_exceptions=True),
        )

    async def _publish_health(self, view: PoolView) -> None:
        before = self._published
        if before is None:
            return
        members = {
            name: replace(one, healthy=view.members[name].healthy) if name in view.members else one
            for name, one in before.members.items()
        }
        if members == before.members:
            return
        after = replace(before, members=members)
        old, new = self._resources, _build(after)
        self._published, self._resources = after, new
        logger.info("endpoints of pool %s: %s", view.spec.pool, _told(before.members, members))
        for kind in (ENDPOINTS, ROUTES):
            changed = {name: value for name, value in new[kind].items() if old[kind][name] != value}
            if changed:
                await self._cache.update(kind, changed)
        self._tell()

    async def _publish(self, view: PoolView, shape: Shape) -> None:
        self._shape = shape
        self._at = asyncio.get_running_loop().time()
        try:
            resources = _build(view)
            await self._cache.set_all(resources, known=_clusters_from_elsewhere(view.spec))
            await self._on_spec(view.spec)
        except (CacheError, ValueError) as error:
            # The last good content stays. Another view is tried when there is one.
            self.fault = str(error)
            logger.exception("pool %s: this view cannot be published", view.spec.pool)
            return
        self._published, self._resources = view, resources
        self.fault = ""
        self.publications += 1
        self._tell()

    def _tell(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()
        self._on_publish()


def _build(view: PoolView) -> dict[str, dict[str, bytes]]:
    """All resources of a view. The first call imports Envoy's message classes, and is made in a thread."""
    from understudy.xds.envoy.mesh import build_all

    return build_all(view)


def _clusters_from_elsewhere(spec: PoolSpec) -> frozenset[str]:
    from understudy.xds.envoy.mesh import clusters_from_elsewhere

    return clusters_from_elsewhere(spec)


def _told(before: Mapping[str, Endpoint], after: Mapping[str, Endpoint]) -> str:
    """Changes of health in words."""
    changes = [
        f"{name} {'healthy' if one.healthy else 'unhealthy'}"
        for name, one in sorted(after.items())
        if before[name] != one
    ]
    return ", ".join(changes)
