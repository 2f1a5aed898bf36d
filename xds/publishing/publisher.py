"""Brings Envoy's configuration into the resource cache: health at once, all other changes merged.

A change of health becomes one small EDS update (and, for a mesh, one of its routes), whatever else is under way. Other
changes wait until 30 ms have passed since the last publication, so a burst of them costs one. After a quiet time the
first of them goes at once. Equal content is never set again. Resources that were never encoded are first encoded in a
thread, so they do not delay heartbeats. Nothing is published before the state of the pool is known. The cache keeps the
order on the wire and waits for acknowledgements.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

import msgspec

from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_front import Front
from understudy.xds.envoy.routing_view import Endpoint, RoutingView, VersionsView
from understudy.xds.membership.cluster_state import ClusterState, pool_view
from understudy.xds.publishing.front_parts import FrontPart, older_part
from understudy.xds.server.cache import CacheError, ResourceCache
from understudy.xds.server.types import ENDPOINTS, ROUTES

logger = logging.getLogger(__name__)

MERGE_SECONDS = 0.03


class Topology(msgspec.Struct, frozen=True):
    """The part of a view that clusters and routes depend on: all but the health of the members.

    Of that only whether a version of the application has any members left.
    """

    spec: PoolSpec
    addresses: Mapping[str, Endpoint]
    orders: Sequence[tuple[str, ...]]
    late: bool
    answer_ms: int
    front: Front | None
    versions: VersionsView | None
    sites: Mapping[str, str]


def topology_of(view: RoutingView) -> Topology:
    """The topology of a view."""
    addresses = {name: replace(one, healthy=True) for name, one in view.members.items()}
    return Topology(view.spec, addresses, view.orders, view.late, view.answer_ms, view.front, view.versions, view.sites)


def no_older(_: ClusterState) -> RoutingView | None:
    """The default of ``older``: front Envoys that serve several pools accepted no other spec."""
    return None


def no_front(_: PoolSpec) -> Front | None:
    """The default of ``front_of``: the pool has no place at front Envoys that serve several pools."""
    return None


async def ignore_spec(_: PoolSpec) -> None:
    """The default of ``before_spec`` and ``on_spec``: does nothing."""


class Publisher:
    """Keeps a cache in step with the pool.

    Args:
        cache: what the xDS streams are served from.
        current: the pool as it is now, or None while it is not known.
        on_publish: called after each publication, of health too.
        front_of: the pool's place at front Envoys that serve several pools, given its spec. :meth:`wake` must be called
            when it changes.
        older: the pool with the spec that front Envoys of several pools accepted last, if another one is in force.
        before_spec: awaited with the spec of each publication except those of health, before the content is in the
            cache. Afterwards no resource of others may point at one that this spec does not have.
        on_spec: the same when the content is there, before ``on_publish`` is called.
        merge: seconds between two publications of anything but health.
    """

    def __init__(
        self,
        cache: ResourceCache,
        current: Callable[[], ClusterState | None],
        *,
        on_publish: Callable[[], None],
        before_spec: Callable[[PoolSpec], Awaitable[None]] = ignore_spec,
        on_spec: Callable[[PoolSpec], Awaitable[None]] = ignore_spec,
        front_of: Callable[[PoolSpec], Front | None] = no_front,
        older: Callable[[ClusterState], RoutingView | None] = no_older,
        merge: float = MERGE_SECONDS,
    ) -> None:
        self._cache = cache
        self._current = current
        self._on_publish = on_publish
        self._before_spec = before_spec
        self._on_spec = on_spec
        self._front_of = front_of
        self._older_view = older
        self._merge = merge
        self._wake = asyncio.Event()
        self._published_event = asyncio.Event()
        self._published: RoutingView | None = None
        self._topology: Topology | None = None
        self._resources: Mapping[str, Mapping[str, bytes]] = {}
        self._warming: asyncio.Task[None] | None = None
        self._at = 0.0
        self.publications = 0
        self.older: FrontPart | None = None
        self.fault = ""

    def wake(self) -> None:
        """The pool may have changed."""
        self._wake.set()

    @property
    def is_current(self) -> bool:
        """Whether the cache holds the pool as it is now."""
        cluster = self._current()
        return cluster is not None and self._published == self._view(cluster)

    @property
    def published(self) -> RoutingView | None:
        """The view that the cache holds; None before the first publication."""
        return self._published

    def _view(self, cluster: ClusterState) -> RoutingView:
        return replace(pool_view(cluster), front=self._front_of(cluster.spec))

    async def settled(self) -> None:
        """Return once the cache holds the pool as it is now."""
        while not self.is_current:
            await self._published_event.wait()

    async def run(self) -> None:
        """Publish until cancelled."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                cluster = self._current()
                if cluster is not None:
                    await self._follow(self._view(cluster))
        finally:
            if self._warming is not None:
                self._warming.cancel()

    async def _follow(self, view: RoutingView) -> None:
        await self._publish_health(view)
        topology = topology_of(view)
        ready = self._warming is not None and self._warming.done()
        if topology == self._topology:
            self._warming = None if ready else self._warming
        elif self._warming is None:
            self._warming = asyncio.create_task(self._warm(view))
            self._warming.add_done_callback(lambda _: self.wake())
        elif ready:
            self._warming = None
            await self._publish(view, topology)

    async def _warm(self, view: RoutingView) -> None:
        """Wait out the merging time and have everything of a view encoded, so that building it again is quick."""
        since = asyncio.get_running_loop().time() - self._at
        await asyncio.gather(
            asyncio.sleep(self._merge - since if self._at else 0),
            # An error is reported when the view is to be published.
            asyncio.gather(asyncio.to_thread(_build, view), self._make_older(), return_exceptions=True),
        )

    async def _make_older(self) -> None:
        """Make the part of the spec that front Envoys accepted last: they may reject the spec in force."""
        cluster = self._current()
        view = self._older_view(cluster) if cluster else None
        if view is None:
            self.older = None
            return
        try:
            self.older = await asyncio.to_thread(older_part, view)
        except ValueError as error:
            logger.warning("pool %s: the spec that Envoys accepted last makes no routes: %s", view.spec.pool, error)
            self.older = None

    async def _publish_health(self, view: RoutingView) -> None:
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
        logger.info("endpoints of pool %s: %s", view.spec.pool, _health_changes(before.members, members))
        for kind in (ENDPOINTS, ROUTES):
            changed = {name: value for name, value in new[kind].items() if old[kind][name] != value}
            if changed:
                await self._cache.update(kind, changed)
        self._notify()

    async def _publish(self, view: RoutingView, topology: Topology) -> None:
        self._topology = topology
        self._at = asyncio.get_running_loop().time()
        try:
            resources = _build(view)
            await self._before_spec(view.spec)
            await self._cache.set_all(resources, known=_clusters_from_elsewhere(view.spec))
            await self._on_spec(view.spec)
        except (CacheError, ValueError) as error:
            # The last good content stays. The next view is tried when the pool changes.
            self.fault = str(error)
            logger.exception(
                "pool %s: this configuration cannot be published, and Envoys keep the last one", view.spec.pool
            )
            return
        self._published, self._resources = view, resources
        self.fault = ""
        self.publications += 1
        self._notify()

    def _notify(self) -> None:
        self._published_event.set()
        self._published_event = asyncio.Event()
        self._on_publish()


def _build(view: RoutingView) -> dict[str, dict[str, bytes]]:
    """All resources of a view. The first call imports Envoy's message classes, and is made in a thread."""
    from understudy.xds.envoy.mesh import build_all

    return build_all(view)


def _clusters_from_elsewhere(spec: PoolSpec) -> frozenset[str]:
    from understudy.xds.envoy.mesh import clusters_from_elsewhere

    return clusters_from_elsewhere(spec)


def _health_changes(before: Mapping[str, Endpoint], after: Mapping[str, Endpoint]) -> str:
    """Changes of health, as text for the log."""
    changes = [
        f"{name} {'healthy' if one.healthy else 'unhealthy'}"
        for name, one in sorted(after.items())
        if before[name] != one
    ]
    return ", ".join(changes)
