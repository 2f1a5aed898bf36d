"""Front Envoys that serve several pools, on a control server process that serves all of these pools.

Such an Envoy names its pools by the cluster of its node
(:func:`understudy.statesync.pool.front_node.cluster_of_front`).
Every set of pools that an Envoy here has asked for has a cache and an xDS server of its own, for as long as an Envoy is
connected. It is fed with what each pool last published, so a pool that fails keeps its routes.

A pool that has published nothing since this process began is not known here. An Envoy that has routes of such a pool
from another control server is refused, so that it keeps them and tries the next one.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Protocol

import msgspec

from understudy.statesync.etcd.client import EtcdError
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_front import Front
from understudy.xds.control.identity import AuthContext, refuse_front
from understudy.xds.envoy.routing_view import RoutingView
from understudy.xds.publishing.front_parts import FrontPart, part_of
from understudy.xds.publishing.front_places import FrontPlaces
from understudy.xds.publishing.front_publisher import FrontPublisher
from understudy.xds.publishing.listener_groups import group_of
from understudy.xds.server.ads import AdsServer, StreamSettings
from understudy.xds.server.ads_router import NotServed
from understudy.xds.server.cache import AckEvent, ResourceCache, TypeStatus
from understudy.xds.server.snapshot import Snapshot
from understudy.xds.server.wire import Node, Request

logger = logging.getLogger(__name__)

MOST_SETS = 32
"""Sets of pools that are served at the same time."""
IDLE_SECONDS = 60.0
"""A set is kept for this long without an Envoy."""
CONFIRM_TIMEOUT = 5.0
"""Seconds that a pool has to confirm that it is as new as etcd; one that hangs must not hold up the others."""
CONFIRM_AT_ONCE = 16


class FrontPools(Protocol):
    """The pools of the process, as this module asks for them."""

    def names(self) -> set[str]:
        """The names of all pools that this process serves, or tries to."""

    def were_read(self) -> bool:
        """Whether it is known which pools there are."""

    def waited_long(self) -> bool:
        """Whether an etcd cluster has not been read for so long that the pools of the others go on without it."""

    def starting(self) -> Iterable[str]:
        """The pools that are expected to publish soon, and have not yet."""

    async def confirm_fresh(self, pool: str) -> None:
        """Return when the pool is published as it was in etcd at the call, or is not running."""

    def acknowledged(self, pool: str, event: AckEvent) -> None:
        """A front Envoy of the pool acknowledged a response."""

    def proven(self, pool: str, spec: PoolSpec) -> None:
        """Front Envoys of the pool have accepted what this spec makes."""

    def held(self, pool: str) -> None:
        """What front Envoys get of the pool is held, or for another reason, or not any more."""

    def wake(self, pool: str) -> None:
        """The pool's place at front Envoys has changed."""


class _FrontSet(msgspec.Struct, eq=False):
    """The Envoys of one set of pools; ``pools`` is empty for all. ``asked_at``: when one last connected."""

    pools: frozenset[str]
    cache: ResourceCache
    ads: AdsServer
    publisher: FrontPublisher
    task: asyncio.Task[None]
    asked_at: float


class ServedFronts:
    """The front Envoys of several pools.

    Args:
        pools: the pools of the process.
        settings: how streams are kept.
        every_pool: whether this process serves every pool in etcd.
        domain: the trust domain of certificates that clients must show; '' if they need none.
    """

    def __init__(self, pools: FrontPools, settings: StreamSettings, *, every_pool: bool, domain: str) -> None:
        self._pools = pools
        self._settings = settings
        self._every_pool = every_pool
        self._domain = domain
        self._places = FrontPlaces(self._wake_pools)
        self._parts: dict[str, FrontPart] = {}
        self._published: set[str] = set()
        self._sets: dict[frozenset[str], _FrontSet] = {}
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Publish for all sets until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            await asyncio.Event().wait()

    # What pools tell

    def place(self, spec: PoolSpec, revision: int) -> Front | None:
        """The place of a pool, given its spec and the revision of that; None if it has none."""
        return self._places.place(spec, revision)

    def fault(self, pool: str) -> str:
        """Why front Envoys do not serve a pool as its spec says; '' if they do, or it has no place there."""
        return "; ".join(filter(None, [self._places.refused.get(pool, ""), self.hold(pool)]))

    def hold(self, pool: str) -> str:
        """Which Envoys reject what a pool's spec makes, and why; '' if none does."""
        return "; ".join(sorted({one.publisher.fault(pool) for one in self._of_pool(pool)} - {""}))

    def published(
        self, view: RoutingView, content: Snapshot, proven: PoolSpec | None = None, older: FrontPart | None = None
    ) -> None:
        """A pool has published a view; its cache holds ``content`` now.

        ``proven``: the spec that front Envoys accepted last; ``older``: the part that this one makes.
        """
        pool = view.spec.pool
        self._published.add(pool)
        part = part_of(view, content, proven, older)
        if part is None:
            if self._parts.pop(pool, None) is None:
                return
        else:
            self._parts[pool] = part
        self._wake_sets(pool)

    def gone(self, pool: str) -> None:
        """A pool is not served any more, since it is gone from etcd."""
        self._published.discard(pool)
        self._places.forget(pool)
        if self._parts.pop(pool, None) is not None:
            self._wake_sets(pool)

    def _wake_sets(self, pool: str) -> None:
        for one in self._of_pool(pool):
            one.publisher.wake()

    def _wake_pools(self, pools: Iterable[str]) -> None:
        for pool in pools:
            self._pools.wake(pool)

    # What is asked for

    def rows(self, pool: str) -> list[TypeStatus]:
        """How far the front Envoys of a pool are."""
        return [row for one in self._of_pool(pool) for row in one.cache.status()]

    async def acknowledged(self, pool: str, timeout: float) -> None:
        """Wait until the front Envoys of a pool have acknowledged what is published now.

        Raises as :meth:`understudy.xds.server.cache.ResourceCache.acknowledged`.
        """
        async with asyncio.timeout(timeout):
            for one in self._of_pool(pool):
                await one.publisher.settled()
                await one.cache.acknowledged(timeout)

    def _of_pool(self, pool: str) -> list[_FrontSet]:
        return [one for one in self._sets.values() if not one.pools or pool in one.pools]

    @property
    def pushes(self) -> int:
        """Responses written to these Envoys."""
        return sum(one.cache.counters.pushes for one in self._sets.values())

    async def end_streams(self, grace: float) -> None:
        """End all streams cleanly."""
        await asyncio.gather(*(one.ads.stop(grace) for one in self._sets.values()))

    def for_stream(self, pools: tuple[str, ...], request: Request) -> AdsServer:
        """The server of a stream with this first request; no ``pools``: all. Raises :class:`NotServed`."""
        names = self._pools.names()
        if not pools and not self._every_pool:
            raise NotServed(
                "a front Envoy for all pools needs a control server with --all-pools, and this one serves "
                f"{', '.join(sorted(names))} alone: name these with --pools, or ask another control server"
            )
        if self._pools.were_read() and (missing := sorted(set(pools) - names)):
            raise NotServed(
                f"a front Envoy of pools {', '.join(pools)} needs a control server that serves all of them, and this "
                f"one does not serve {', '.join(missing)}: start it with --all-pools, or with --pool for each"
            )
        if not self._pools.were_read() and (set(pools) - names or (not pools and not self._may_lack_pools(request))):
            raise NotServed("this control server has not read yet which pools there are", later=True)
        wanted = set(pools) or names
        if early := wanted.intersection(self._pools.starting()):
            raise NotServed(f"pool {min(early)} starts on this control server", later=True)
        if unknown := sorted(_held_pools(request, wanted - self._published)):
            raise NotServed(
                f"pool {unknown[0]} has not been published since this control server began, and the Envoy would lose "
                "its routes",
                later=True,
            )
        return self._set_of(frozenset(pools)).ads

    def _may_lack_pools(self, request: Request) -> bool:
        """Whether an Envoy of all pools can be served without those of an etcd cluster that does not answer.

        An Envoy that has routes already might lose some.
        """
        return self._pools.waited_long() and not request.version and not request.held

    def _set_of(self, pools: frozenset[str]) -> _FrontSet:
        now = asyncio.get_running_loop().time()
        found = self._sets.get(pools)
        if found is None or found.task.done():
            found = self._begin(pools, now)
        found.asked_at = now
        return found

    def _begin(self, pools: frozenset[str], now: float) -> _FrontSet:
        if self._group is None:
            raise NotServed("this control server starts", later=True)
        idle = [one for one in self._sets.values() if not one.ads.streams and now - one.asked_at > IDLE_SECONDS]
        for one in idle:
            one.task.cancel()
            del self._sets[one.pools]
        if len(self._sets) >= MOST_SETS:
            raise NotServed(f"front Envoys here serve {MOST_SETS} sets of pools already", later=True)
        made = self._sets[pools] = self._make(pools, self._group)
        return made

    def _make(self, pools: frozenset[str], group: asyncio.TaskGroup) -> _FrontSet:
        cache = ResourceCache(group_of, on_ack=lambda event: self._on_ack(pools, event))
        publisher = FrontPublisher(
            cache, pools, self._parts, self._places.newest_first, on_proven=self._proven, on_hold=self._pools.held
        )
        cache.on_group = publisher.set_listeners

        async def confirm_fresh() -> None:
            await self._confirm_fresh(pools)
            await publisher.settled()

        def identify(node: Node, auth_context: AuthContext) -> str | None:
            return refuse_front(self._domain, pools, node, auth_context)

        ads = AdsServer(cache, self._settings, confirm_fresh=confirm_fresh, identify=identify if self._domain else None)
        name = f"fronts of {', '.join(sorted(pools)) or 'all pools'}"
        return _FrontSet(pools, cache, ads, publisher, group.create_task(_publish(publisher, ads), name=name), 0.0)

    def _proven(self, part: FrontPart) -> None:
        if part.spec is not None and part.front == part.spec.front:  # else the pool has not the place that it wants
            self._pools.proven(part.pool, part.spec)

    async def _confirm_fresh(self, pools: frozenset[str]) -> None:
        at_once = asyncio.Semaphore(CONFIRM_AT_ONCE)

        async def confirm(pool: str) -> None:
            try:
                async with at_once, asyncio.timeout(CONFIRM_TIMEOUT):
                    await self._pools.confirm_fresh(pool)
            except TimeoutError:
                logger.warning("pool %s does not get as new as etcd; front Envoys get what it published last", pool)

        results = await asyncio.gather(*map(confirm, pools or self._parts), return_exceptions=True)
        faults = [result for result in results if isinstance(result, EtcdError)]
        if faults and len(faults) == len(results):
            raise faults[0]
        if faults:  # one of several etcd clusters is away
            logger.warning("some pools are served as they were published last: %s", faults[0])

    def _on_ack(self, pools: frozenset[str], event: AckEvent) -> None:
        if (found := self._sets.get(pools)) is not None:
            found.publisher.answered(event)
        if event.error is not None:
            logger.warning("front Envoy %s rejected %s: %s", event.node, event.type_url, event.error)
            return
        for pool in pools or self._parts:
            self._pools.acknowledged(pool, event)


async def _publish(publisher: FrontPublisher, ads: AdsServer) -> None:
    """Publish until cancelled. After an error the streams end, and the set is made anew when an Envoy comes back."""
    try:
        await publisher.compose_now()
        ads.cache.ready()
        await publisher.run()
    except Exception:
        logger.exception("the content of front Envoys of several pools cannot be made; they keep what they have")
        await ads.stop()


def _held_pools(request: Request, unknown: set[str]) -> set[str]:
    """Those of the ``unknown`` pools of which a client has resources, as far as its first request tells.

    In the state of the world a request tells no names of clusters, so a client that has any may have all.
    """
    if request.version:
        return unknown
    return unknown & {name.partition("/")[0] for name in request.held}
