"""Follows the changes of active that this leader ordered, and records their spans.

A change is recorded when it is over, or when that takes too long: the root, the phases that it waited for, and what ran
beside them. What belongs to a course, and when it is over, is told by :mod:`understudy.xds.tracing.failover_timing`;
what follows a takeover by :mod:`understudy.xds.tracing.post_failover`; changes that no table ordered are counted by
:mod:`understudy.xds.tracing.untraced_changes`.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace

from understudy.statesync.pool.ownership import CUT_OFF, sites_in
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.setup import Attributes, Telemetry
from understudy.xds.membership.claim_reports import Claimed, Told
from understudy.xds.membership.cluster_state import World
from understudy.xds.planning.plan import NO_TABLE, Plan
from understudy.xds.publishing.publisher import Publisher
from understudy.xds.server.cache import ConfigRejected, ResourceCache
from understudy.xds.tracing.failover_timing import (
    Course,
    Delivery,
    Phase,
    critical_path,
    delivery_phases,
    handover_course,
    last_ack,
    leader_phases,
    slots_of,
    takeover_course,
)
from understudy.xds.tracing.post_failover import could_not_serve, returned_alive
from understudy.xds.tracing.untraced_changes import Unmeasured, Unseen

logger = logging.getLogger(__name__)

_DELIVERIES_KEPT = 20_000
_TRACES_KEPT = 1_000
_LOOK = 1.0
_JUST_BEFORE = 200_000_000
"""In this time (ns) before a takeover that only other members wanted they had their witnesses."""


@dataclass(slots=True)
class _End:
    """How a course ended. ``settled``: when its slots had new owners (ns), 0 if they had not by the bound."""

    settled: int = 0
    claims: Sequence[Claimed] = ()
    acknowledged: bool = False
    refused: str = ""
    deliveries: Sequence[Delivery] = field(default=())


class Courses:
    """The courses under way.

    Args:
        telemetry: where spans are recorded.
        cache: asked whether everything is acknowledged.
        publisher: asked whether everything is in the cache.
        look: the world as it is now.
        follow: what watches a takeover after its end, planned moves from their begin
            (:func:`understudy.xds.tracing.post_failover.watch`).
        told: what members tell of their takeovers.
        leads: whether this server leads; only then it counts what nobody measured.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        cache: ResourceCache,
        publisher: Publisher,
        look: Callable[[], World | None],
        follow: Callable[[Course], Coroutine[None, None, None]],
        *,
        told: Told,
        leads: Callable[[], bool],
    ) -> None:
        self._telemetry = telemetry
        self._cache = cache
        self._publisher = publisher
        self._look = look
        self._aftermath = follow
        self._told = told
        self._leads = leads
        self._known: OrderedDict[str, None] = OrderedDict()
        self._unmeasured = Unmeasured()
        self._deliveries: deque[Delivery] = deque(maxlen=_DELIVERIES_KEPT)
        self._begun: asyncio.Queue[Course] = asyncio.Queue()
        self._changed = asyncio.Event()

    def delivered(self, delivery: Delivery) -> None:
        """A node acknowledged an answer."""
        self._deliveries.append(delivery)

    def wake(self) -> None:
        """The world, or what is published, may have changed."""
        world = self._look()
        if world is not None:
            self._unmeasured.look(world, self._telemetry.now_ns())
        self._changed.set()
        self._changed = asyncio.Event()

    def begin(self, world: World, plan: Plan, now: int) -> None:
        """A table was written: follow the takeovers and the planned moves that it orders."""
        previous = world.table or NO_TABLE
        for member in plan.newly_lost:
            death = world.deaths.get(member)
            slots = slots_of(world, previous, plan.table, member)
            if death is not None and slots:
                told = self._told
                self._begin(
                    takeover_course(world, plan.table, member, written=now, death=death, slots=slots, told=told)
                )
        planned = handover_course(world, plan.table, written=now)
        if planned is not None and plan.table.traceparent != previous.traceparent:
            self._begin(planned)

    def _begin(self, course: Course) -> None:
        self._known[course.traceparent] = None
        if len(self._known) > _TRACES_KEPT:
            self._known.popitem(last=False)
        self._begun.put_nowait(course)

    async def run(self) -> None:
        """Follow every course to its end, and look for changes without one, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._count_unmeasured())
            while True:
                course = await self._begun.get()
                tasks.create_task(self._follow(course))
                if course.kind == names.KIND_HANDOVER:
                    tasks.create_task(self._aftermath(course))

    async def _follow(self, course: Course) -> None:
        end = await self._end_of(course)
        course = course.corrected(end.claims)
        end.deliveries = list(self._deliveries)
        path = self._path(course, end)
        whole = bool(path) or bool(end.settled and course.kind == names.KIND_HANDOVER)
        self._record(course, path or leader_phases(course))
        self._record(course, _beside(course, end, path))
        attributes = course.attributes() | _told_by(end.claims)
        if whole:
            attributes[names.ERROR_MS] = course.doubt / 1e6
        else:
            attributes[names.UNMEASURED] = True
        if end.refused:
            attributes[names.ERROR_TYPE] = end.refused
        ended = path[-1].end if path else end.settled or self._telemetry.now_ns()
        links = ((course.last_request, names.LAST_REQUEST), (_first_request(end.claims), names.FIRST_REQUEST))
        trace = self._telemetry.failover(course.traceparent)
        trace.root(course.began, ended, attributes, name=course.root_name, links=links)
        logger.info(
            "%s of %d slots%s: %.0f ms%s",
            course.root_name,
            len(course.moving),
            f" of {course.subject}" if course.subject else "",
            (ended - course.began) / 1e6,
            "" if whole else " (unmeasured: it did not end in time)",
        )
        if course.kind == names.KIND_TAKEOVER:
            await self._aftermath(course)

    async def _end_of(self, course: Course) -> _End:
        """Wait for the end, and for the Envoys, until the course's bound."""
        end = _End()
        bound = course.ends_by
        try:
            async with asyncio.timeout((bound - self._telemetry.now_ns()) / 1e9):
                while not self._over(course, end):
                    await self._changed.wait()
                await self._cache.acknowledged((bound - self._telemetry.now_ns()) / 1e9)
                end.acknowledged = True
        except TimeoutError:  # ``end`` tells what is missing
            logger.debug("%s of %s did not end in time", course.kind, course.subject or "several members")
        except ConfigRejected as error:
            end.refused = str(error)
        end.claims = self._claims(course)
        return end

    def _over(self, course: Course, end: _End) -> bool:
        """Whether all slots have come to their new owners, are served, and the cache holds what follows from it."""
        world = self._look()
        if world is None or not course.settled(world):
            return False
        end.settled = end.settled or self._telemetry.now_ns()
        served = course.kind == names.KIND_HANDOVER or course.served(world, self._claims(course))
        return served and self._publisher.current

    def _claims(self, course: Course) -> list[Claimed]:
        return self._told.claims(course.trace, self._telemetry.now_ns())

    def _path(self, course: Course, end: _End) -> list[Phase]:
        """The phases that the change waited for; empty while its end was not seen."""
        if course.kind == names.KIND_HANDOVER:
            acked = last_ack(course, end.deliveries)
            return critical_path(course, (), end.settled, acked) if end.settled and end.acknowledged else []
        world = self._look()
        seen = world is not None and course.settled(world) and course.served(world, end.claims)
        return critical_path(course, end.claims, end.settled, 0) if seen else []

    async def _count_unmeasured(self) -> None:
        """Record, as unmeasured, the changes of active that have no course (``untraced_changes``)."""
        while True:
            await asyncio.sleep(_LOOK)
            world, now = self._look(), self._telemetry.now_ns()
            if world is None:
                continue
            for one in self._unmeasured.due(now, self._known.__contains__):
                if not self._leads():
                    continue
                site = sites_in(one.cause) if one.planned else world.site(one.source)
                kind = names.KIND_HANDOVER if one.planned else names.KIND_TAKEOVER
                root = names.HANDOVER if one.planned else names.FAILOVER
                attributes: Attributes = {
                    names.POOL: world.spec.pool,
                    names.KIND: kind,
                    names.CAUSE: one.cause,
                    names.PLANNED: one.planned,
                    names.SLOTS: one.slots,
                    names.FROM: one.source,
                    names.TO: ", ".join(sorted(one.to)),
                    **({names.SITE: site} if site else {}),
                }
                trace = self._telemetry.failover(one.traceparent)
                trace.root(one.at, one.at, {**attributes, names.UNMEASURED: True}, name=root)
                if not one.planned and (one.source, one.boot) in world.beating:
                    trace.phase(names.RETURNED, one.at, now, {**attributes, **returned_alive(self._excuse(one))})
                logger.info("%s from %s was not measured: %s", root, one.source, one.cause)

    def _excuse(self, one: Unseen) -> str:
        """Why a member that was taken over from, and that was never found dead here, could not serve."""
        if one.cause.endswith(CUT_OFF):
            return CUT_OFF
        return could_not_serve(self._told, (one.source, one.boot), one.at - _JUST_BEFORE, one.at)

    def _record(self, course: Course, phases: Iterable[Phase]) -> None:
        trace = self._telemetry.failover(course.traceparent)
        for phase in phases:
            trace.phase(phase.name, phase.start, phase.end, phase.attributes)


def _beside(course: Course, end: _End, path: Sequence[Phase]) -> list[Phase]:
    """What ran beside the path: push and ack, and the table where the claims did not wait for it."""
    named = {phase.name for phase in path}
    beside = [phase for phase in leader_phases(course) if path and phase.name not in named]
    for phase in delivery_phases(course, end.deliveries):
        late = phase.name == names.ACK and not end.acknowledged
        beside.append(replace(phase, attributes={**phase.attributes, names.UNMEASURED: True}) if late else phase)
    return beside


def _told_by(claims: Sequence[Claimed]) -> dict[str, str | int | float | bool | Sequence[str]]:
    """Who took over, in words."""
    members = sorted({claim.member for claim in claims})
    return {names.TO: ", ".join(members)} if members else {}


def _first_request(claims: Sequence[Claimed]) -> str:
    """The traceparent of the first call that one of the new actives answered well; '' if it carried none."""
    answered = [claim.told for claim in claims if claim.told.answered]
    return min(answered, key=lambda told: told.answered).request if answered else ""
