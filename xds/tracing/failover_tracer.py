"""Follows the changes of active that this leader ordered, and records their spans.

A change is recorded when it is over, or when its bound has passed: the root span, the phases of its critical path, and
the phases beside it. What belongs to a change, and when it is over, is decided by
:mod:`understudy.xds.tracing.failover_timing`. What follows a takeover is recorded by
:mod:`understudy.xds.tracing.post_failover`. Changes that no table ordered come from
:mod:`understudy.xds.tracing.untraced_changes`.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import msgspec

from understudy.statesync.pool.ownership import CUT_OFF, sites_in
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.setup import Attributes, Telemetry
from understudy.xds.membership.claim_reports import ClaimReports, ReportedClaim
from understudy.xds.membership.cluster_state import ClusterState
from understudy.xds.planning.plan import NO_TABLE, TablePlan
from understudy.xds.publishing.publisher import Publisher
from understudy.xds.server.cache import ConfigRejected
from understudy.xds.tracing.failover_timing import (
    Delivery,
    OwnershipChange,
    PhaseSpan,
    critical_path,
    delivery_phases,
    handover_change,
    last_ack,
    leader_phases,
    slots_of,
    takeover_change,
)
from understudy.xds.tracing.post_failover import could_not_serve, returned_alive
from understudy.xds.tracing.site_losses import EndedTakeover, SiteLoss, SiteLosses
from understudy.xds.tracing.untraced_changes import UntracedChange, UntracedChanges

logger = logging.getLogger(__name__)

POLL_INTERVAL = 1.0
_MAX_DELIVERIES = 20_000
_MAX_TRACES = 1_000
_WITNESS_TIME_NS = 200_000_000
"""Members that took over by themselves found their proof within this time before the claim."""


class _Outcome(msgspec.Struct):
    """How a change ended.

    ``settled``: when its slots had new owners (ns), 0 if they had not by the bound. ``served``: all of them were
    served; since then they may have gone on to other members, while the Envoys acknowledged.
    """

    settled: int = 0
    served: bool = False
    claims: Sequence[ReportedClaim] = ()
    acknowledged: bool = False
    refused: str = ""
    deliveries: Sequence[Delivery] = msgspec.field(default=())


class Envoys(Protocol):
    """All Envoys of a pool that this control server serves."""

    async def acknowledged(self, timeout: float) -> None:
        """Wait until they have acknowledged what is published now, as ``ResourceCache.acknowledged`` does."""


class FailoverTracer:
    """The changes of active under way.

    Args:
        telemetry: where spans are recorded.
        envoys: asked whether everything is acknowledged.
        publisher: asked whether everything is in the cache.
        current: the pool as it is now.
        watch_after: watches a takeover after its end, and planned moves from their beginning
            (:func:`understudy.xds.tracing.post_failover.watch`).
        reports: what members report about their claims.
        leads: whether this server leads. Only the leader records changes that nobody measured.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        envoys: Envoys,
        publisher: Publisher,
        current: Callable[[], ClusterState | None],
        watch_after: Callable[[OwnershipChange], Coroutine[None, None, None]],
        *,
        reports: ClaimReports,
        leads: Callable[[], bool],
    ) -> None:
        self._telemetry = telemetry
        self._envoys = envoys
        self._publisher = publisher
        self._current = current
        self._watch_after = watch_after
        self._reports = reports
        self._leads = leads
        self._traced: OrderedDict[str, None] = OrderedDict()
        self._untraced = UntracedChanges()
        self._site_losses = SiteLosses()
        self._deliveries: deque[Delivery] = deque(maxlen=_MAX_DELIVERIES)
        self._started: asyncio.Queue[OwnershipChange] = asyncio.Queue()
        self._changed = asyncio.Event()

    def on_delivery(self, delivery: Delivery) -> None:
        """A node acknowledged a response."""
        self._deliveries.append(delivery)

    def wake(self) -> None:
        """The pool, the claim reports or the published content may have changed."""
        self._changed.set()
        self._changed = asyncio.Event()

    def on_owners(self) -> None:
        """The owner records may have changed."""
        cluster = self._current()
        if cluster is not None:
            self._untraced.observe(cluster, self._telemetry.now_ns())

    def on_table(self, cluster: ClusterState, plan: TablePlan, now: int) -> None:
        """A table was written: follow the takeovers and the planned moves that it orders."""
        previous = cluster.table or NO_TABLE
        for member in plan.newly_lost:
            death = cluster.deaths.get(member)
            slots = slots_of(cluster, previous, plan.table, member)
            if death is not None and slots:
                change = takeover_change(
                    cluster, plan.table, member, written=now, death=death, slots=slots, reports=self._reports
                )
                self._site_losses.began(
                    change, {order[0]: cluster.site(order[0]) for order in previous.orders if order}
                )
                self._start(change)
        planned = handover_change(cluster, plan.table, written=now)
        if planned is not None and plan.table.traceparent != previous.traceparent:
            self._start(planned)

    def _start(self, change: OwnershipChange) -> None:
        self._traced[change.traceparent] = None
        if len(self._traced) > _MAX_TRACES:
            self._traced.popitem(last=False)
        self._started.put_nowait(change)

    async def run(self) -> None:
        """Follow every change to its end, and record those that no table ordered, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._record_untraced())
            while True:
                change = await self._started.get()
                tasks.create_task(self._follow(change))
                if change.kind == names.KIND_HANDOVER:
                    tasks.create_task(self._watch_after(change))

    async def _follow(self, change: OwnershipChange) -> None:
        end = await self._outcome_of(change)
        change = change.corrected(end.claims)
        end.deliveries = list(self._deliveries)
        path = self._path(change, end)
        measured = bool(path) or bool(end.settled and change.kind == names.KIND_HANDOVER)
        self._record(change, path or leader_phases(change))
        self._record(change, _beside(change, end, path))
        attributes = change.attributes_at_end(end.claims)
        if measured:
            attributes[names.ERROR_MS] = change.doubt / 1e6
        else:
            attributes[names.UNMEASURED] = True
        if end.refused:
            attributes[names.ERROR_TYPE] = end.refused
        ended = path[-1].end if path else end.settled or self._telemetry.now_ns()
        links = ((change.last_request, names.LAST_REQUEST), (_first_request(end.claims), names.FIRST_REQUEST))
        trace = self._telemetry.failover(change.traceparent)
        trace.root(change.began, ended, attributes, name=change.root_name, links=links)
        logger.info(
            "%s of %d slots%s: %.0f ms%s",
            change.root_name,
            len(change.moving),
            f" of {change.subject}" if change.subject else "",
            (ended - change.began) / 1e6,
            "" if measured else " (unmeasured: it did not end in time)",
        )
        if change.kind == names.KIND_TAKEOVER:
            self._record_site_loss(self._site_losses.ended(EndedTakeover(change, ended, attributes)))
            await self._watch_after(change)

    def _record_site_loss(self, loss: SiteLoss | None) -> None:
        """Record the trace of a lost site: from the death of its first member until all are served elsewhere."""
        if loss is None:
            return
        trace = self._telemetry.failover(loss.ids.traceparent)
        for one in loss.takeovers:
            link = ((one.change.traceparent, names.TAKEOVER),)
            trace.phase(
                names.MEMBER_LOSS,
                one.change.began,
                one.ended,
                {**one.attributes, names.MEMBER: one.change.subject},
                link,
            )
        began, ended = min(one.change.began for one in loss.takeovers), max(one.ended for one in loss.takeovers)
        trace.root(began, ended, loss.attributes(), name=names.SITE_LOSS)
        logger.info(
            "site %s lost: %d members, %.0f ms, trace %s",
            loss.site,
            len(loss.takeovers),
            (ended - began) / 1e6,
            loss.ids.hex,
        )

    async def _outcome_of(self, change: OwnershipChange) -> _Outcome:
        """Wait for the end, and for the Envoys, until the change's bound."""
        end = _Outcome()
        bound = change.ends_by
        try:
            async with asyncio.timeout((bound - self._telemetry.now_ns()) / 1e9):
                while not self._is_over(change, end):
                    await self._changed.wait()
                await self._envoys.acknowledged((bound - self._telemetry.now_ns()) / 1e9)
                end.acknowledged = True
        except TimeoutError:  # the outcome says what is missing
            logger.debug("%s of %s did not end in time", change.kind, change.subject or "several members")
        except ConfigRejected as error:
            end.refused = str(error)
        end.claims = self._claims(change)
        return end

    def _is_over(self, change: OwnershipChange, end: _Outcome) -> bool:
        """Whether all slots have their new owners and are served, and the cache holds the result."""
        cluster = self._current()
        if cluster is None or not change.settled(cluster):
            return False
        end.settled = end.settled or self._telemetry.now_ns()
        end.served = end.served or change.kind == names.KIND_HANDOVER or change.served(cluster, self._claims(change))
        return end.served and self._publisher.is_current

    def _claims(self, change: OwnershipChange) -> list[ReportedClaim]:
        return self._reports.claims_of(change.trace, self._telemetry.now_ns())

    def _path(self, change: OwnershipChange, end: _Outcome) -> list[PhaseSpan]:
        """The phases of the critical path; empty if the end of the change was not seen."""
        if change.kind == names.KIND_HANDOVER:
            acked = last_ack(change, end.deliveries)
            return critical_path(change, (), end.settled, acked) if end.settled and end.acknowledged else []
        return critical_path(change, end.claims, end.settled, 0) if end.served else []

    async def _record_untraced(self) -> None:
        """Record, as unmeasured, the changes of active that no table ordered (``untraced_changes``)."""
        while True:
            await asyncio.sleep(POLL_INTERVAL)
            cluster, now = self._current(), self._telemetry.now_ns()
            if cluster is None:
                continue
            for one in self._untraced.due(now, self._traced.__contains__):
                if not self._leads():
                    continue
                site = sites_in(one.cause) if one.planned else cluster.site(one.source)
                kind = names.KIND_HANDOVER if one.planned else names.KIND_TAKEOVER
                root = names.HANDOVER if one.planned else names.FAILOVER
                attributes: Attributes = {
                    names.POOL: cluster.spec.pool,
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
                if not one.planned and (one.source, one.boot) in cluster.beating:
                    trace.phase(
                        names.RETURNED, one.at, now, {**attributes, **returned_alive(self._why_it_could_not_serve(one))}
                    )
                logger.info("%s from %s was not measured: %s", root, one.source, one.cause)

    def _why_it_could_not_serve(self, one: UntracedChange) -> str:
        """Why a member that others took over from, and that was never found dead here, could not serve."""
        if one.cause.endswith(CUT_OFF):
            return CUT_OFF
        return could_not_serve(self._reports, (one.source, one.boot), one.at - _WITNESS_TIME_NS, one.at)

    def _record(self, change: OwnershipChange, phases: Iterable[PhaseSpan]) -> None:
        trace = self._telemetry.failover(change.traceparent)
        for phase in phases:
            trace.phase(phase.name, phase.start, phase.end, phase.attributes)


def _beside(change: OwnershipChange, end: _Outcome, path: Sequence[PhaseSpan]) -> list[PhaseSpan]:
    """The phases beside the critical path: push and ack, and detect and decide if the claims did not wait for them."""
    named = {phase.name for phase in path}
    beside = [phase for phase in leader_phases(change) if path and phase.name not in named]
    for phase in delivery_phases(change, end.deliveries):
        late = phase.name == names.ACK and not end.acknowledged
        beside.append(replace(phase, attributes={**phase.attributes, names.UNMEASURED: True}) if late else phase)
    return beside


def _first_request(claims: Sequence[ReportedClaim]) -> str:
    """The traceparent of the first call that one of the new actives answered with success; '' if it carried none."""
    answered = [claim.report for claim in claims if claim.report.answered]
    return min(answered, key=lambda report: report.answered).request if answered else ""
