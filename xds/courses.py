"""Follows the changes of active that this leader ordered, and records their spans.

A takeover's ``detect`` and ``decide`` are recorded with the table; ``push``, ``ack`` and the root span when
all its slots have new owners and the routes are acknowledged, or unmeasured when that takes too long. What
belongs to a course, and when it is over, is told by :mod:`xds.measure`; what follows a takeover by
:mod:`xds.aftermath`.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

from telemetry import names
from telemetry.setup import Telemetry
from xds.cache import ConfigRejected, ResourceCache
from xds.measure import (
    Course,
    Delivery,
    Phase,
    delivery_phases,
    handover_course,
    leader_phases,
    takeover_course,
)
from xds.plan import NO_TABLE, Plan
from xds.publisher import Publisher
from xds.world import World

logger = logging.getLogger(__name__)

_DELIVERIES_KEPT = 20_000


class Courses:
    """The courses under way.

    Args:
        telemetry: where spans are recorded.
        cache: asked whether everything is acknowledged.
        publisher: asked whether everything is in the cache.
        look: the world as it is now.
        follow: what watches a takeover after its end (:func:`xds.aftermath.watch`).
    """

    def __init__(
        self,
        telemetry: Telemetry,
        cache: ResourceCache,
        publisher: Publisher,
        look: Callable[[], World | None],
        follow: Callable[[Course], Awaitable[None]],
    ) -> None:
        self._telemetry = telemetry
        self._cache = cache
        self._publisher = publisher
        self._look = look
        self._aftermath = follow
        self._deliveries: deque[Delivery] = deque(maxlen=_DELIVERIES_KEPT)
        self._begun: asyncio.Queue[Course] = asyncio.Queue()
        self._changed = asyncio.Event()

    def delivered(self, delivery: Delivery) -> None:
        """A node acknowledged an answer."""
        self._deliveries.append(delivery)

    def wake(self) -> None:
        """The world, or what is published, may have changed."""
        self._changed.set()
        self._changed = asyncio.Event()

    def begin(self, world: World, plan: Plan, now: int) -> None:
        """A table was written: follow the takeovers and the planned moves that it orders."""
        previous = world.table or NO_TABLE
        for member in plan.newly_lost:
            death = world.deaths.get(member)
            boot = plan.table.lost[member].boot
            active = {slot for slot in range(previous.slots) if previous.active_of(slot) == member}
            slots = frozenset(active | world.owned_by(member, boot))
            if death is not None and slots:
                self._begin(takeover_course(world, plan.table, member, written=now, death=death, slots=slots))
        planned = handover_course(world, plan.table, written=now)
        if planned is not None and plan.table.traceparent != previous.traceparent:
            self._begin(planned)

    def _begin(self, course: Course) -> None:
        self._record(course, leader_phases(course))
        self._begun.put_nowait(course)

    async def run(self) -> None:
        """Follow every course to its end, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(self._follow(await self._begun.get()))

    async def _follow(self, course: Course) -> None:
        attributes = course.attributes()
        bound = course.ends_by
        try:
            async with asyncio.timeout((bound - self._telemetry.now_ns()) / 1e9):
                await self._until_settled(course)
                settled = self._telemetry.now_ns()
                await self._cache.acknowledged((bound - settled) / 1e9)
        except TimeoutError:
            attributes[names.UNMEASURED] = True
            settled = self._telemetry.now_ns()
        except ConfigRejected as error:
            attributes[names.ERROR_TYPE] = str(error)
            settled = self._telemetry.now_ns()
        phases = delivery_phases(course, list(self._deliveries))
        self._record(course, phases)
        end = max([settled, *(phase.end for phase in phases if phase.name == names.ACK)])
        trace = self._telemetry.failover(course.traceparent)
        trace.root(course.began, end, attributes, name=course.root_name)
        logger.info(
            "%s of %d slots%s: %.0f ms%s",
            course.root_name,
            len(course.moving),
            f" of {course.subject}" if course.subject else "",
            (end - course.began) / 1e6,
            " (unmeasured: it did not end in time)" if names.UNMEASURED in attributes else "",
        )
        if course.kind == names.KIND_TAKEOVER:
            await self._aftermath(course)

    async def _until_settled(self, course: Course) -> None:
        """Return when all slots have come to their new owners and the cache holds what follows from it."""
        while True:
            changed = self._changed
            world = self._look()
            if world is not None and course.settled(world) and self._publisher.current:
                return
            await changed.wait()

    def _record(self, course: Course, phases: Iterable[Phase]) -> None:
        trace = self._telemetry.failover(course.traceparent)
        for phase in phases:
            trace.phase(phase.name, phase.start, phase.end, phase.attributes)
