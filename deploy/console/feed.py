"""Follows pools for the console: reads their records while a browser looks on, and sends what changes.

The feed of a pool has a watch of its own on all records of the pool. The control server's watch leaves out some of them
(sync sets, drains). The feed starts with the first request for the pool and ends :data:`IDLE_SECONDS` after the last
one, so a pool that nobody looks at costs nothing. Frames are built in a thread, from copies of the records, so that
Envoys and members need not wait. If a feed fails, the control server goes on, and the next request starts it anew.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from understudy.deploy.common.errors import DeployError
from understudy.deploy.console.changes import changes
from understudy.deploy.console.frame import FAILOVERS_KEPT, Frame, Surroundings, frame_of
from understudy.deploy.console.headroom import headroom_of
from understudy.deploy.console.home import NO_HOME, home_shown
from understudy.deploy.console.measured import Measured, measured
from understudy.deploy.console.pace import REFRESH_SECONDS, Pace
from understudy.deploy.console.subscribers import StreamEvent, Subscriber, encoded
from understudy.deploy.console.traffic import Traffic, added, recent_rate
from understudy.deploy.inspect.controls import ask_controls
from understudy.deploy.inspect.envoys import read_envoys
from understudy.deploy.inspect.fronts import read_fronts
from understudy.deploy.inspect.member_views import heard_by
from understudy.deploy.inspect.sites import cut_links
from understudy.deploy.inspect.warnings import reported_warnings
from understudy.deploy.mirror.records import Side
from understudy.deploy.mirror.status import home_view
from understudy.statesync.etcd.errors import EtcdError
from understudy.statesync.etcd.informer import OUTAGE_AFTER, Informer, InformerBatch
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.state import PoolState
from understudy.telemetry.store.schema import StoreError
from understudy.xds.control.http_extension import HttpParts
from understudy.xds.control.last_read import heartbeats_view
from understudy.xds.control.load_view import member_load_view
from understudy.xds.control.pool_service import PoolService

logger = logging.getLogger(__name__)

MERGE_SECONDS = 0.05
"""How long a frame waits after a change, so that one frame shows what belongs together."""
WARNED_MOST = 1000
"""Members of a pool up to which the leader is asked for its whole status too, for what it warns of."""
ASK_SECONDS = 5.0
"""Seconds between two questions to all control servers about Envoys and requests."""
SYNC_TIMEOUT = 3.0
"""Seconds that a request waits for the first reading of etcd. After that it gets what the control server knows."""
IDLE_SECONDS = 60.0
TRACES_READ = 20
"""Traces that are read from the store at most, once a second."""
YOUNG_SECONDS = 600.0
"""Spans of a change that began so long ago may still come, such as those of a member that came back."""


class PoolFeed:
    """One pool, followed while somebody looks on. See the module."""

    def __init__(self, parts: HttpParts, service: PoolService, drill: Callable[[str], dict[str, Any]]) -> None:
        self.pool = service.pool
        self.service = service
        self._parts = parts
        self._drill = drill
        self._state = PoolState(PoolKeys(service.pool))
        self._informer = Informer(service.etcd.client, self._state.keys.records, self._on_batch)
        self._changed = asyncio.Event()
        self._building = asyncio.Lock()
        self._pace = Pace()
        self._built_at = float("-inf")
        self._asked = asyncio.Event()
        self._around = Surroundings()
        self.traffic = Traffic()
        self._frame: Frame | None = None
        self._number = 0
        self._run_id = secrets.token_hex(4)
        self._encoded: StreamEvent | None = None
        self._subscribers: set[Subscriber] = set()
        self._measured_at = float("-inf")
        self.used_at = time.monotonic()

    # What runs

    async def run(self) -> None:
        """Follow the pool until cancelled, or until nobody has looked on for a while."""
        following = asyncio.create_task(self._informer.run(), name=f"console watch of {self.pool}")
        asking = asyncio.create_task(self._keep_asking(), name=f"console questions of {self.pool}")
        try:
            await self._keep_building()
        finally:
            for task in (following, asking):
                task.cancel()
            await asyncio.gather(following, asking, return_exceptions=True)
            self.close()

    async def _keep_building(self) -> None:
        while self._subscribers or time.monotonic() - self.used_at < IDLE_SECONDS:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pace.refresh):
                    await self._changed.wait()
            await asyncio.sleep(MERGE_SECONDS)
            if self._subscribers:
                async with self._building:
                    await self._advance()
                await asyncio.sleep(self._pace.pause - MERGE_SECONDS)

    async def _keep_asking(self) -> None:
        """Ask all control servers about Envoys and requests, and the trace store how long failovers took."""
        while True:
            await self._ask()
            self._asked.set()
            self._changed.set()
            await asyncio.sleep(ASK_SECONDS)

    async def _ask(self) -> None:
        state = self.service.controller.state_builder.state
        controls = {name: at.record.http for name, at in state.controls.items()}
        leader = controls.get(state.leader.record, "") if state.leader else ""
        asked = [leader] if leader and len(state.members) <= WARNED_MOST else []
        try:
            envoys, fronts, series, statuses, etcd = await asyncio.gather(
                read_envoys(controls, self.pool),
                read_fronts(controls, self.pool),
                ask_controls(controls.values(), "/v1/traffic", self.pool),
                ask_controls(asked, "/v1/status", self.pool),
                self.service.etcd.client.status(),
            )
            self.traffic = added(series)
            warnings = reported_warnings(statuses, fronts)
            links = tuple(cut_links({one["control"]: one for one in statuses if isinstance(one, dict)}, time.time()))
        except (KeyError, TypeError, AttributeError) as error:  # a control server of another release
            logger.warning("pool %s: an answer about Envoys cannot be read: %r", self.pool, error)
            envoys, fronts = {"nodes": [], "silent": {"one of them": "its answer cannot be read"}}, []
            warnings, links, etcd = [], (), ()
        controller = self.service.controller
        cluster, load = controller.state_builder.current(), controller.loads.current(self.service.now_ns())
        room = await asyncio.to_thread(headroom_of, cluster, load, self.pool)
        self._around = msgspec.structs.replace(
            self._around,
            headroom=room,
            home=await self._home(),
            load=tuple(member_load_view(name, one) for name, one in load.members.items()),
            envoys=envoys,
            fronts=fronts,
            warnings=tuple(warnings),
            links=links,
            etcd=etcd,
            per_second=recent_rate(self.traffic),
        )

    async def _home(self) -> dict[str, str]:
        """The home of a pool on two distant sites, by the etcd of this one."""
        state = self.service.controller.state_builder.state
        if state.home is None:
            return NO_HOME
        side = Side(state.home.record.site, self.service.etcd.client, state.keys)
        try:
            return home_shown(await home_view(side, None))
        except (EtcdError, DeployError) as error:
            return {**NO_HOME, "role": "unknown", "trouble": str(error)}

    def _on_batch(self, batch: InformerBatch) -> None:
        self._state.apply(batch)
        self._changed.set()

    # Frames

    @property
    def silent_seconds(self) -> float:
        """For how long etcd has been silent; 0 while it is not."""
        silent = self._informer.silent_for
        return round(silent, 1) if silent > OUTAGE_AFTER else 0.0

    def records(self) -> tuple[PoolState, int]:
        """A copy of the newest known records, and their revision. Without etcd they are the control server's last."""
        if self._informer.synced.is_set():
            return _copied(self._state), self._informer.revision
        builder = self.service.controller.state_builder
        return _copied(builder.state), builder.revision

    async def frame(self) -> Frame:
        """The pool now."""
        self.used_at = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SYNC_TIMEOUT):
                await self._informer.synced.wait()
                await self._asked.wait()
        async with self._building:
            if self._changed.is_set() or time.monotonic() - self._built_at > self._pace.refresh:
                await self._advance()
        if self._frame is None:
            raise RuntimeError("no frame was built")
        return self._frame

    async def _advance(self) -> None:
        """Build a frame, and send what has changed since the last one. Only under the lock ``_building``."""
        began = time.monotonic()
        self._changed.clear()
        state, revision = self.records()
        detector, now_ns = self.service.controller.detector, self.service.now_ns()
        report = {"control": self._parts.name, "heartbeats": heartbeats_view(detector, now_ns)}
        self._around = msgspec.structs.replace(
            self._around,
            heard=heard_by([report]),
            measured=await self._measurements(state),
            waits_for=self.service.controller.rebalancer.waits_for,
            drill=self._drill(self.pool),
        )
        before = self._frame
        frame, differ = await asyncio.to_thread(_next, before, state, revision, self._around)
        self._built_at = time.monotonic()
        self._pace.built(self._built_at, self._built_at - began)
        if before is not None and differ is None:
            return
        self._frame = frame
        self._number += 1
        self._encoded = None
        if differ is not None and self._subscribers:
            event = encoded("changes", self.event_id, differ)
            for one in self._subscribers:
                one.offer(event)

    async def _measurements(self, state: PoolState) -> dict[str, Measured]:
        """What the trace store here tells of the newest failovers. Spans may come late: young ones are read again."""
        known, now = dict(self._around.measured), time.monotonic()
        if now - self._measured_at < REFRESH_SECONDS:
            return known
        self._measured_at = now
        started = {trace: parts[0].started for trace, parts in state.changes()[:FAILOVERS_KEPT]}
        fresh = [trace for trace in started if trace not in known]
        young = [trace for trace in known if started.get(trace, 0.0) > time.time() - YOUNG_SECONDS]
        with contextlib.suppress(StoreError):
            for trace in [*fresh, *young][:TRACES_READ]:
                known.pop(trace, None)  # the one that was read longest ago is always the first
                known[trace] = measured(await self._parts.store.trace(trace), self.pool)
        return known

    @property
    def event_id(self) -> str:
        """The id of the present frame: its revision, its number, and this run of the feed."""
        return f"{self._frame.revision if self._frame else 0}.{self._number}.{self._run_id}"

    # Browsers that follow

    def close(self) -> None:
        """End all streams."""
        for one in self._subscribers:
            one.close()

    @contextlib.contextmanager
    def subscribed(self, wake: asyncio.Event) -> Iterator[Subscriber]:
        """A browser that follows the pool; ``wake`` is set when events wait for it."""
        one = Subscriber(wake)
        self._subscribers.add(one)
        try:
            yield one
        finally:
            self._subscribers.discard(one)

    def whole(self) -> StreamEvent:
        """The present frame as an event."""
        if self._encoded is None and self._frame is not None:
            self._encoded = encoded("frame", self.event_id, {**self._frame.json(), "control": self._parts.name})
        if self._encoded is None:
            raise RuntimeError("no frame was built")
        return self._encoded


def _next(
    before: Frame | None, state: PoolState, revision: int, around: Surroundings
) -> tuple[Frame, dict[str, Any] | None]:
    """The pool now, and what differs from the frame before."""
    frame = frame_of(state, revision, time.time(), around)
    return frame, changes(before, frame) if before is not None else None


def _copied(state: PoolState) -> PoolState:
    """The same records, in collections of its own; the records are frozen."""
    found = PoolState(state.keys)
    for name in PoolState.__struct_fields__:
        value = getattr(state, name)
        setattr(found, name, dict(value) if isinstance(value, dict) else value)
    return found


class Feeds:
    """The feeds of a control server's pools; each runs while its pool is looked at. ``drill`` tells of drills here."""

    def __init__(self, parts: HttpParts, drill: Callable[[str], dict[str, Any]]) -> None:
        self._parts = parts
        self._drill = drill
        self._feeds: dict[str, tuple[PoolFeed, asyncio.Task[None]]] = {}
        self.closing = False

    def of(self, service: PoolService) -> PoolFeed:
        """The feed of a pool, started if it does not run."""
        known = self._feeds.get(service.pool)
        if known is not None and not known[1].done() and known[0].service is service:
            return known[0]
        if known is not None:
            known[1].cancel()
        feed = PoolFeed(self._parts, service, self._drill)
        task = asyncio.create_task(feed.run(), name=f"console of pool {service.pool}")
        task.add_done_callback(_log_failure)
        self._feeds[service.pool] = (feed, task)
        return feed

    def close(self) -> None:
        """End all streams, so that the server's stop does not wait for them."""
        self.closing = True
        for feed, _ in self._feeds.values():
            feed.close()

    async def aclose(self) -> None:
        """End all feeds."""
        self.close()
        tasks = [task for _, task in self._feeds.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("%s failed; the next request starts it again", task.get_name(), exc_info=error)
